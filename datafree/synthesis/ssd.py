"""SSD-KD: a small bank, from which the student is shown most what it is furthest from getting right.

    L_G = bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + onehot CE(t, argmax t) + balance KL(p̄ || π') - adv D(t, s)
    δ_i = mean |t_i - s_i|,   P(i) ∝ δ_i^α,   w_i ∝ (1 / P(i))^β,   L_S = mean w_i KL(t_i || s_i)

π' asks for the classes that the student has been shown too little: max(2π - b, π / 10), scaled to sum 1, where b are
the shares of the classes (by the teacher) among what it was shown. When the bank is full, images of small δ leave.

Source: Liu et al. 2024, "Small scale data-free knowledge distillation"; the draws are prioritized replay (Schaul et al.
2016, eqs. 1 and 2). No code was published; what is our reading is listed in docs/methods/ssd.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import config as flags
from datafree import losses
from datafree.fields import choice, not_negative, part, positive, share
from datafree.parallel import batch_mean, shard
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Batch, Setting, student_mode
from datafree.synthesis.terms import Means, look_and_judge

LEAST = 1e-3  # of a priority, so that no image is out of reach


@dataclass(frozen=True, kw_only=True)
class SSDConfig:
    priority: Annotated[float, "how much the student is shown more of what it gets wrong; 0: all images alike"] = 0.6
    correction: Annotated[float, "how much weights undo that in the loss, at the start; it grows to 1 over the run"] = (
        0.4
    )
    diversity: Annotated[float, "share of earlier batches in the count of the classes shown; 0: not counted"] = 0.98
    adv: Annotated[float, "weight of the disagreement with the student"] = 1.0
    distance: flags.Distance = "kl"
    masked: flags.Masked = True
    bn: Annotated[float, "weight of the batch-norm statistics"] = 1.0
    bn_momentum: flags.NormMomentum = 0.0
    first_bn: flags.FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the teacher's own decision"] = 0.5
    balance: Annotated[float, "weight of the class balance"] = 5.0
    latent: flags.Latent = 256
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "sigmoid"
    generator_lr: flags.GeneratorLr = 4e-3
    generator_steps: flags.GeneratorSteps = 5
    student_steps: flags.StudentSteps = 40
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "eval"
    feed: flags.Feed = "bank"
    sample_mode: flags.SampleMode = "train"
    bank: Annotated[int, "images the bank holds; --eviction says which leave when it is full"] = 5_000
    eviction: flags.Eviction = "priority"
    reset: flags.Reset = 20
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "priority", "adv", "bn", "first_bn", "onehot", "balance", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch")
        part(self, "correction")
        share(self, "diversity", "bn_momentum", "warmup")
        choice(self)


class SSD:
    """One round: `generator_steps` steps of the generator on the terms above."""

    Config = SSDConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = "balance"

    def __init__(self, setting: Setting, config: SSDConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config, config.eviction)
        self.store = self.imaging.store
        self.remembered = Remembered(config.bn_momentum, config.first_bn)
        classes = setting.domain.classes
        self.even = torch.full((classes,), 1 / classes, device=setting.device)
        self.shown = self.wanted.clone()
        self.beta = config.correction

    @property
    def wanted(self) -> Tensor:
        """π, the classes' shares that the run is to have, (C,)."""
        return self.even if self.setting.prior is None else self.setting.prior

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        self.beta = config.correction + (1 - config.correction) * setting.pace.fraction
        adv = 0.0 if setting.pace.warming else config.adv
        prior = lacking(self.wanted, self.shown) if config.diversity else setting.prior
        means = Means()
        for _ in setting.pace.inner(config.generator_steps):
            images = imaging.images()
            terms, teacher, student, _ = look_and_judge(setting, config, self.remembered, images, adv=adv, prior=prior)
            imaging.step(terms)
            self.store.keep(images, self._priority(images, student, teacher))
            means.add(terms)
        self.remembered.remember()
        return means.values()

    @torch.no_grad()
    def _priority(self, images: Tensor, student: Tensor | None, teacher: Tensor) -> Tensor | None:
        """Of new images, (N,). Where the terms do not ask the student, it is asked here, or these images
        would stand beside later ones with a priority that nobody has measured."""
        config = self.config
        if self.store.bank is None or not (config.priority or config.eviction == "priority"):
            return None
        if student is None:
            with student_mode(self.setting.student, "eval"):  # it stays as it is, begun or not
                student = self.setting.student(images)
        return gap(student, teacher)

    @property
    def made(self) -> int:
        return self.store.made

    def sample(self, n: int) -> Batch:
        """Draws by priority from the bank; the batch's `extras["rows"]` are this process's places in it."""
        bank, config = self.store.bank, self.config
        if bank is None or not len(bank):
            return self.imaging.sample(n)
        rows = bank.draw(n, self.setting.rng, config.priority)
        mine, weights = shard(rows), None
        if config.priority:
            weights = bank.chances(config.priority)[rows].pow(-self.beta)
            weights = shard(weights / weights.mean())
        return Batch(bank.images[mine].float().div_(255), weights, {"rows": mine})

    def observe(self, batch: Batch, student: Tensor, teacher: Tensor) -> None:
        """Takes in what the student made of a batch: logits (N, C) of both, the batch's own images first."""
        if self.config.diversity:
            shares = batch_mean(F.one_hot(teacher.argmax(1), len(self.shown)).float())
            self.shown = torch.lerp(shares, self.shown, self.config.diversity)
        rows = batch.extras.get("rows")
        if rows is not None and self.store.bank is not None:
            self.store.bank.prioritise(rows, gap(student, teacher)[: len(rows)])

    def state_dict(self) -> dict[str, Any]:
        return {
            "imaging": self.imaging.state_dict(),
            "remembered": self.remembered.state_dict(),
            "shown": self.shown,
            "beta": self.beta,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.remembered.load_state_dict(state["remembered"])
        self.shown, self.beta = state["shown"].to(self.setting.device), float(state["beta"])


def gap(student: Tensor, teacher: Tensor) -> Tensor:
    """An image's priority: mean |t - s| over the logits, (N,), above 0."""
    return losses.PER_SAMPLE["l1"](student, teacher).detach().clamp_min(LEAST)


def lacking(wanted: Tensor, shown: Tensor) -> Tensor:
    """The shares that as many images again need to even out what was shown: 2π - b, at least π / 10, to sum 1."""
    shares = torch.maximum(2 * wanted - shown, 0.1 * wanted)
    return shares / shares.sum()
