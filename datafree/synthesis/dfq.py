"""DFQ: adversarial images that match what the teacher's batch norm remembers.

    L_G = bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + onehot CE(t, argmax t) + balance Σ_c p̄_c ln p̄_c - adv KL(t || s)

Source: Choi et al. 2020, "Data-free network quantization with adversarial knowledge distillation", as the common
releases write it: adv 1, bn 1, onehot 1, balance 20, fresh images, 1 generator step to 5 or 10 student steps, T = 1.
Our defaults differ: see the numbered list in docs/methods/dfq.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from datafree import config as flags
from datafree.fields import choice, not_negative, positive, share
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.remembered import Remembered
from datafree.synthesis.setting import Setting
from datafree.synthesis.terms import Means, look_and_judge


@dataclass(frozen=True, kw_only=True)
class DFQConfig:
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
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 20
    warmup: flags.Warmup = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "adv", "bn", "first_bn", "onehot", "balance", "reset")
        positive(
            self,
            "latent",
            "generator_width",
            "generator_lr",
            "generator_steps",
            "student_steps",
            "bank",
            "synthesis_batch",
        )
        share(self, "bn_momentum", "warmup")
        choice(self)


class DFQ:
    """One round: `generator_steps` steps of the generator on the terms above; the last one waits for the student."""

    Config = DFQConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 20.0,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "augment": True,
    }
    # The common re-implementation, which announces T = 20 and overwrites it.
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "zju": {
            "batch_size": 256,
            "epochs": 200.0,
            "lr": 0.1,
            "weight_decay": 1e-4,
            "augment": False,
            "generator": "large",
            "generator_width": 64,
            "generator_lr": 1e-3,
            "output": "sigmoid",
            "synthesis_batch": 256,
            "feed": "fresh",
            "sample_mode": "eval",
            "reset": 0,
            "temperature": 1.0,
            "adv": 1.0,
            "masked": False,
            "bn": 1.0,
            "onehot": 1.0,
            "balance": 20.0,
            "latent": 256,
            "generator_steps": 1,
            "student_steps": 10,
            "warmup": 0.0,
        },
    }
    NEEDS_STATISTICS = "bn"
    FOLLOWS_PRIOR = "balance"

    def __init__(self, setting: Setting, config: DFQConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        self.remembered = Remembered(config.bn_momentum, config.first_bn)

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        adv = 0.0 if setting.pace.warming else config.adv
        means = Means()
        for _ in setting.pace.inner(config.generator_steps):
            images = imaging.images()
            terms = look_and_judge(setting, config, self.remembered, images, adv=adv, prior=setting.prior).terms
            imaging.step(terms)
            imaging.keep(images)
            means.add(terms)
        self.remembered.remember()
        return means.values()

    @property
    def made(self) -> int:
        return self.store.made

    def state_dict(self) -> dict[str, Any]:
        return {"imaging": self.imaging.state_dict(), "remembered": self.remembered.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.remembered.load_state_dict(state["remembered"])
