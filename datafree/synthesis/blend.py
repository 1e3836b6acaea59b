"""Blend: parts of several methods that have been shown to pay, and a student that begins with its teacher's layers.

    L_G = bn Σ_l (||σ²_l - σ̃²_l|| + ||μ_l - μ̃_l||) + onehot CE(t, y) - adv KL(t || s) [argmax s = argmax t]

Images come of the class's row through noisy layers that are drawn anew for each round (NAYER, Tran et al. 2024); σ̃ and
μ̃ mix this batch with earlier ones (Fast, Fang et al. 2022); the adversarial term counts where both still decide alike
(CMI, Fang et al. 2021). What each part is worth: docs/methods/blend.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from datafree import config as flags
from datafree.fields import choice, not_negative, part, positive, share
from datafree.parallel import shard
from datafree.synthesis.noisy import NoisyImaging
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Batch, Setting
from datafree.synthesis.shapes import ShapeBank
from datafree.synthesis.terms import inversion_terms


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    adv: Annotated[float, "weight of the disagreement with the student, once it has begun"] = 1.33
    distance: flags.Distance = "kl"
    masked: flags.Masked = True
    bn: Annotated[float, "weight of the batch-norm statistics"] = 10.0
    bn_momentum: flags.NormMomentum = 0.9
    first_bn: flags.FirstNorm = 1.0
    onehot: Annotated[float, "weight of the cross-entropy with the class asked for"] = 0.5
    embedding: flags.Embedding = "teacher"
    latent: Annotated[int, "size of the noisy layer's output"] = 256
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "sigmoid"
    generator_lr: flags.GeneratorLr = 4e-3
    generator_steps: flags.GeneratorSteps = 10
    student_steps: flags.StudentSteps = 20
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "eval"
    sample_mode: flags.SampleMode = "train"
    bank: Annotated[int, "images the bank holds, and the bank of random shapes; the oldest go first"] = 20_000
    shapes: Annotated[float, "share of random shapes among the student's images; 0.5 where there is no batch norm"] = (
        0.0
    )
    reset: flags.Reset = 20
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "adv", "bn", "first_bn", "onehot", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch")
        share(self, "bn_momentum", "warmup")
        part(self, "shapes")
        if self.shapes == 1:
            raise ValueError("--shapes 1 shows no image of the generator: take --method noise --distribution shapes")
        choice(self)

    @property
    def banks(self) -> int:
        """How many banks of `bank` images are held."""
        return 2 if self.shapes else 1


class Blend:
    """One round: a draw of the noisy layers, `generator_steps` steps on it, and the batch of the lowest loss."""

    Config = BlendConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
        "inherit": True,
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = "onehot"
    WITHOUT_STATISTICS: Mapping[str, float] = {"shapes": 0.5, "student_steps": 60}

    def __init__(self, setting: Setting, config: BlendConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, NoisyImaging(setting, config)
        self.store = self.imaging.store
        self.remembered = Remembered(config.bn_momentum, config.first_bn)
        self.shapes = ShapeBank(setting, config.bank) if config.shapes else None

    def terms(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The weighted terms of this process's images and their classes."""
        return inversion_terms(self.setting, self.config, self.remembered, images, targets)

    def update(self) -> dict[str, float]:
        terms, best = self.imaging.invert(self.config.generator_steps, self.terms)
        self.store.keep(best)
        self.remembered.remember()
        if self.shapes is not None:
            self.shapes.refill()
        return terms

    @property
    def made(self) -> int:
        return self.store.made + (self.shapes.made if self.shapes is not None else 0)

    def sample(self, n: int) -> Batch:
        if self.shapes is None:
            return self.imaging.sample(n)
        bank, count = self.store.bank, round(self.config.shapes * n)
        assert bank is not None
        images = bank.images[bank.draw(n - count, self.setting.rng)]
        return Batch(shard(torch.cat([images, self.shapes.draw(count)])).float().div_(255))

    def state_dict(self) -> dict[str, Any]:
        shapes = self.shapes.state_dict() if self.shapes is not None else None
        return {"imaging": self.imaging.state_dict(), "remembered": self.remembered.state_dict(), "shapes": shapes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.remembered.load_state_dict(state["remembered"])
        if self.shapes is not None:
            self.shapes.load_state_dict(state["shapes"])
