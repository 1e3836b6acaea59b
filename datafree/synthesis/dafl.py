"""DAFL: images that a teacher decides upon with confidence, evenly over the classes, with strong features.

    L_G = onehot CE(t, argmax t) + balance Σ_c p̄_c ln p̄_c - activation mean|f_t|

Source: Chen et al. 2019, "Data-free learning of student networks", eqs. 3-7. The release takes the logarithm to base 10
(balance 5 there is 2.17 here) and steps generator and student on the same batch, which is `feed last` with one student
step a round. Student there: KL at T = 1. Where our defaults differ: see the numbered list in docs/methods/dafl.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from datafree import losses
from datafree.config import (
    BankSize,
    Feed,
    GeneratorLr,
    GeneratorName,
    GeneratorWidth,
    Latent,
    Output,
    Reset,
    StudentSteps,
    SynthesisBatch,
    choice,
    not_negative,
    positive,
)
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Batch, Setting


@dataclass(frozen=True, kw_only=True)
class DAFLConfig:
    onehot: Annotated[float, "weight of the cross-entropy with the teacher's own decision"] = 1.0
    balance: Annotated[float, "weight of the class balance"] = 20.0
    activation: Annotated[float, "weight of the mean absolute feature"] = 0.001
    latent: Latent = 512
    generator: GeneratorName = "auto"
    generator_width: GeneratorWidth = None
    output: Output = "standardised"
    generator_lr: GeneratorLr = 4e-3
    student_steps: StudentSteps = 5
    synthesis_batch: SynthesisBatch = None
    feed: Feed = "bank"
    bank: BankSize = 20_000
    reset: Reset = 40

    def __post_init__(self) -> None:
        not_negative(self, "onehot", "balance", "activation", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "student_steps", "bank", "synthesis_batch")
        choice(self, "generator", "output", "feed")


class DAFL:
    """One round: one generator step."""

    Config = DAFLConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": True,
    }
    NEEDS_FEATURES = "activation"

    def __init__(self, setting: Setting, config: DAFLConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store = self.imaging.store

    def update(self) -> dict[str, float]:
        config, imaging = self.config, self.imaging
        imaging.begin_round()
        images = imaging.images()
        teacher, features, _ = self.setting.teacher.look(images, features=config.activation > 0)
        terms = {
            "onehot": config.onehot * losses.onehot(teacher),
            "balance": config.balance * losses.class_balance(teacher, self.setting.prior),
        }
        if features is not None:
            terms["activation"] = config.activation * losses.activation(features)
        imaging.step(terms)
        imaging.keep(images)
        return {name: float(term.detach()) for name, term in terms.items()}

    @property
    def made(self) -> int:
        return self.store.made

    def sample(self, n: int) -> Batch:
        return self.imaging.sample(n)

    def state_dict(self) -> dict[str, Any]:
        return self.imaging.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state)
