"""DAFL: images that a teacher decides upon with confidence, evenly over the classes, with strong features.

    L_G = onehot CE(t, argmax t) + balance Σ_c p̄_c ln p̄_c - activation mean|f_t|

Source: Chen et al. 2019, "Data-free learning of student networks", eqs. 3-7. The release takes the logarithm to base 10
(balance 5 there is 2.17 here) and steps generator and student on the same batch, which is `feed last` with one student
step a round. Student there: KL at T = 1. Where our defaults differ: see the numbered list in docs/methods/dafl.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from datafree import config as flags
from datafree import losses
from datafree.fields import choice, not_negative, positive
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Setting


@dataclass(frozen=True, kw_only=True)
class DAFLConfig:
    onehot: Annotated[float, "weight of the cross-entropy with the teacher's own decision"] = 1.0
    balance: Annotated[float, "weight of the class balance"] = 20.0
    activation: Annotated[float, "weight of the mean absolute feature"] = 0.001
    latent: flags.Latent = 512
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "standardised"
    generator_lr: flags.GeneratorLr = 4e-3
    student_steps: flags.StudentSteps = 5
    synthesis_batch: flags.SynthesisBatch = None
    feed: flags.Feed = "bank"
    sample_mode: flags.SampleMode = "train"
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 40

    def __post_init__(self) -> None:
        not_negative(self, "onehot", "balance", "activation", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "student_steps", "bank", "synthesis_batch")
        choice(self)


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
    FOLLOWS_PRIOR = "balance"
    # "official": the authors' release on CIFAR-10, whose balance of 5 is of a logarithm to base 10. "zju": the common
    # re-implementation, which announces T = 20 and overwrites it.
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "official": {
            "batch_size": 1024,
            "epochs": 600.0,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "multistep",
            "milestones": (0.4, 0.8),
            "temperature": 1.0,
            "augment": False,
            "onehot": 0.05,
            "balance": 5 / math.log(10),
            "activation": 0.01,
            "latent": 1000,
            "generator": "small",
            "generator_width": 64,
            "generator_lr": 0.02,
            "output": "standardised",
            "student_steps": 1,
            "synthesis_batch": 1024,
            "feed": "last",
            "reset": 0,
        },
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
            "onehot": 1.0,
            "balance": 20.0,
            "activation": 0.001,
            "latent": 512,
            "student_steps": 5,
        },
    }

    def __init__(self, setting: Setting, config: DAFLConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        self.state_dict, self.load_state_dict = self.imaging.state_dict, self.imaging.load_state_dict

    def update(self) -> dict[str, float]:
        config, imaging = self.config, self.imaging
        imaging.begin_round()
        images = imaging.images()
        teacher, features, _, _ = self.setting.teacher.look(images, features=config.activation > 0)
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
