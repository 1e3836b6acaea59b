"""What several methods ask of an image: remembered, decided, balanced, fought over; or remembered and of a class.

bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + onehot CE(t, argmax t) + balance KL(p̄ || π) - adv D(t, s)   (dfq's)
bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + onehot CE(t, y) - adv D(t, s)                            (nayer's)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.losses.precision import raised
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Setting, student_mode


class OpponentConfig(Protocol):
    """The fields that both kinds of terms read from a method's configuration."""

    @property
    def distance(self) -> str: ...
    @property
    def masked(self) -> bool: ...
    @property
    def bn(self) -> float: ...
    @property
    def onehot(self) -> float: ...
    @property
    def student_mode(self) -> str: ...


class TermsConfig(OpponentConfig, Protocol):
    """And what `look_and_judge` alone reads."""

    @property
    def balance(self) -> float: ...


class InversionConfig(OpponentConfig, Protocol):
    """And what `inversion_terms` alone reads."""

    @property
    def adv(self) -> float: ...


class Judged(NamedTuple):
    """Weighted terms of a batch, and what the networks made of it."""

    terms: dict[str, Tensor]
    teacher: Tensor
    student: Tensor | None
    features: Tensor | None


def look_and_judge(
    setting: Setting,
    config: TermsConfig,
    remembered: Remembered,
    images: Tensor,
    *,
    adv: float,
    prior: Tensor | None,
    features: bool = False,
) -> Judged:
    """The first terms above for this process's images (N, C, H, W), with gradients.

    Args:
        setting: the method's.
        config: the method's.
        remembered: the run's average of the statistics.
        images: in [0, 1].
        adv: weight of the disagreement. 0: the student is not asked; below 0: agreement is sought.
        prior: shares of the classes that the balance asks for, (C,); None: equal ones.
        features: give the teacher's penultimate features too.
    """
    teacher, penultimate, seen, _ = setting.teacher.look(images, features=features, statistics=config.bn > 0)
    terms = {
        "onehot": config.onehot * losses.onehot(teacher),
        "balance": config.balance * losses.class_balance(teacher, prior),
    }
    if seen:
        terms["bn"] = config.bn * remembered.term(seen)
    student: Tensor | None = None
    if adv:
        with student_mode(setting.student, config.student_mode):
            student = setting.student(images)
        terms["adv"] = -adv * losses.disagreement(student, teacher, config.distance, config.masked)
    return Judged(terms, teacher, student, penultimate)


def inversion_terms(
    setting: Setting, config: InversionConfig, remembered: Remembered, images: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The second terms above for this process's images (N, C, H, W) and their classes (N,), weighted, with gradients.

    Both networks see the images cropped and, where labels allow, flipped. The disagreement begins with the student.
    """
    shown = setting.view(images)
    teacher, _, seen, _ = setting.teacher.look(shown, statistics=config.bn > 0)
    terms = {"onehot": config.onehot * F.cross_entropy(raised(teacher), targets)}
    if seen:
        terms["bn"] = config.bn * remembered.term(seen)
    if config.adv and not setting.pace.warming:
        with student_mode(setting.student, config.student_mode):
            student = setting.student(shown)
        terms["adv"] = -config.adv * losses.disagreement(student, teacher, config.distance, config.masked)
    return terms


class Means:
    """The means of a round's terms over its steps, each of which has the same terms."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Takes in one step's, without gradient."""
        old = self.sums
        self.sums = {name: term.detach() + old[name] if name in old else term.detach() for name, term in terms.items()}
        self.steps += 1

    def values(self) -> dict[str, float]:
        return {name: float(value) / self.steps for name, value in self.sums.items()}
