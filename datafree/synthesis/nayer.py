"""NAYER: the class's row through a noisy layer that is drawn anew for every batch, in the place of a latent vector.

    x = G(L(e_y)),
    L_G = bn Σ_l (||σ²_l - σ̃²_l|| + ||μ_l - μ̃_l||) + onehot CE(t, y) - adv KL(t || s) [argmax s = argmax t]

e_y is what the class y is to the generator, L a linear layer with weights from N(0, 1). A layer serves every class once
(K to 1), a batch has as many as it holds each class, and all are trained together with G. Of the steps on one draw the
batch of the lowest loss is kept.

Source: Tran et al. 2024, "NAYER: noisy layer data generation for efficient and effective data-free knowledge
distillation", with the release's running average of the statistics (Fast, Fang et al. 2022) and masked adversarial term
(CMI, Fang et al. 2021). Our defaults differ: see the numbered list in docs/methods/nayer.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from datafree import config as flags
from datafree.fields import choice, not_negative, positive, share
from datafree.synthesis.noisy import NoisyImaging
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Setting
from datafree.synthesis.terms import inversion_terms


@dataclass(frozen=True, kw_only=True)
class NAYERConfig:
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
    student_steps: flags.StudentSteps = 40
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "eval"
    sample_mode: flags.SampleMode = "train"
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 20
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "adv", "bn", "first_bn", "onehot", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "generator_steps", "student_steps", "bank")
        positive(self, "synthesis_batch")
        share(self, "bn_momentum", "warmup")
        choice(self)


class NAYER:
    """One round: a draw of the noisy layers, and `generator_steps` steps on it with an Adam of its own."""

    Config = NAYERConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
    }
    # CIFAR-10 after 100 epochs of 400 student steps, with two draws an epoch and 200 draws before them.
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "official": {
            "batch_size": 512,
            "epochs": 100.0,
            "lr": 0.2,
            "weight_decay": 1e-4,
            "temperature": 20.0,
            "latent": 1000,
            "generator": "small",
            "generator_width": 64,
            "generator_steps": 30,
            "student_steps": 200,
            "synthesis_batch": 400,
            "bank": 160_000,
            "reset": 20,
            "warmup": 0.5,
        }
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = "onehot"

    def __init__(self, setting: Setting, config: NAYERConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, NoisyImaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        self.remembered = Remembered(config.bn_momentum, config.first_bn)

    def terms(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The weighted terms of this process's images and their classes."""
        return inversion_terms(self.setting, self.config, self.remembered, images, targets)

    def update(self) -> dict[str, float]:
        terms, best = self.imaging.invert(self.config.generator_steps, self.terms)
        self.store.keep(best)
        self.remembered.remember()
        return terms

    @property
    def made(self) -> int:
        return self.store.made

    def state_dict(self) -> dict[str, Any]:
        return {"imaging": self.imaging.state_dict(), "remembered": self.remembered.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.remembered.load_state_dict(state["remembered"])
