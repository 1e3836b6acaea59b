"""CuDFKD: from easy images to hard ones, each unlike those made before.

    L_G = bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + onehot CE(t, argmax t) + balance Σ_c p̄_c ln p̄_c
          - α(τ) D(t || s) + contrast NCE(f(x), f(x'), Q)

τ is the share of the run that is done: from `begin` to `end` α goes in a straight line from `easy` to `adv`. NCE asks
that the teacher's features of an image be nearest those of its own crop x', among the batch's other crops and the queue
Q of earlier ones.

Source: Li et al. 2022, "Dynamic data-free knowledge distillation by easy-to-hard learning strategy", and its release,
for the curriculum; its successor AdaDFKD has negative samples as MoCo (He et al. 2020) has. How both are put together
here is our reading, see docs/methods/cudfkd.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import config as flags
from datafree.fields import choice, not_negative, positive, share
from datafree.losses.contrast import info_nce
from datafree.parallel import gather, rank
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Setting
from datafree.synthesis.terms import Means, look_and_judge


@dataclass(frozen=True, kw_only=True)
class CuDFKDConfig:
    easy: Annotated[float, "weight of the disagreement at the start; below 0 agreement is sought, everywhere"] = 0.1
    adv: Annotated[float, "weight of the disagreement at the end"] = 1.0
    begin: Annotated[float, "share of the run after which the weight begins to rise"] = 0.25
    end: Annotated[float, "share of the run after which it has risen"] = 0.75
    distance: flags.Distance = "kl"
    masked: flags.Masked = True
    bn: Annotated[float, "weight of the batch-norm statistics"] = 1.0
    bn_momentum: flags.NormMomentum = 0.0
    first_bn: flags.FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the teacher's own decision"] = 0.5
    balance: Annotated[float, "weight of the class balance"] = 5.0
    contrast: Annotated[float, "weight of the contrast with earlier images"] = 0.2
    contrast_temperature: Annotated[float, "temperature of the contrast"] = 0.1
    negatives: Annotated[int, "features of earlier images that the queue holds"] = 1024
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
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 20
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "adv", "bn", "first_bn", "onehot", "balance", "contrast", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch", "contrast_temperature", "negatives")
        share(self, "begin", "bn_momentum", "warmup")
        choice(self)
        if not -1 <= self.easy <= self.adv:
            raise ValueError(f"--easy is {self.easy}: give a number from -1 to --adv {self.adv:g}")
        if not self.begin < self.end <= 1:
            raise ValueError(f"--end is {self.end}: give a share of the run above --begin {self.begin:g}, up to 1")


class CuDFKD:
    """One round: `generator_steps` steps of the generator on the terms above."""

    Config = CuDFKDConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
    }
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        # CIFAR-10, ResNet-34 to ResNet-18: the weight rises by 0.5 in each of 124 epochs.
        "official": {
            "easy": 0.0,
            "adv": 62.0,
            "onehot": 1.0,
            "balance": 20.0,
            "contrast": 0.0,
            "latent": 512,
            "generator_width": 64,
            "generator_lr": 1e-3,
            "generator_steps": 1,
            "student_steps": 10,
            "synthesis_batch": 768,
            "feed": "fresh",
            "sample_mode": "eval",
            "reset": 0,
            "warmup": 0.0,
            "batch_size": 768,
            "epochs": 250.0,
            "criterion": "l1",
            "lr": 0.05,
            "weight_decay": 1e-4,
            "augment": False,
        }
    }
    NEEDS_STATISTICS = "bn"
    NEEDS_FEATURES = "contrast"
    FOLLOWS_PRIOR = "balance"

    def __init__(self, setting: Setting, config: CuDFKDConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        self.remembered = Remembered(config.bn_momentum, config.first_bn)
        self.queue: Tensor | None = None

    @property
    def difficulty(self) -> float:
        """The disagreement's weight at this point of the run; 0 before the student has begun."""
        config, pace = self.config, self.setting.pace
        if pace.warming:
            return 0.0
        risen = (pace.fraction - config.begin) / (config.end - config.begin)
        return config.easy + (config.adv - config.easy) * min(max(risen, 0.0), 1.0)

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        adv = self.difficulty
        # Agreement is sought where there is none: just what the mask would leave out.
        judged = config if adv >= 0 else dataclasses.replace(config, masked=False)
        means = Means()
        for _ in setting.pace.inner(config.generator_steps):
            images = imaging.images()
            terms, _, _, features = look_and_judge(
                setting, judged, self.remembered, images, adv=adv, prior=setting.prior, features=config.contrast > 0
            )
            if features is not None:
                terms["contrast"] = config.contrast * self._contrast(images.detach(), features)
            imaging.step(terms)
            imaging.keep(images)
            means.add(terms)
        self.remembered.remember()
        return means.values()

    def _contrast(self, images: Tensor, features: Tensor) -> Tensor:
        """The term for this process's images and their features; then the queue takes their crops' features in."""
        with torch.no_grad():
            crops = self.setting.teacher.look(self.setting.view(images), features=True).features
            assert crops is not None
            keys = gather(F.normalize(crops.float(), dim=1))
        known = keys if self.queue is None else torch.cat([keys, self.queue])
        self.queue = known[: self.config.negatives]  # the newest come first
        return info_nce(features, known, self.config.contrast_temperature, first=rank() * len(features))

    @property
    def made(self) -> int:
        return self.store.made

    def state_dict(self) -> dict[str, Any]:
        return {
            "imaging": self.imaging.state_dict(),
            "remembered": self.remembered.state_dict(),
            "queue": self.queue,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.remembered.load_state_dict(state["remembered"])
        queue: Tensor | None = state["queue"]
        self.queue = queue if queue is None else queue.to(self.setting.device)
