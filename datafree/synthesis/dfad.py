"""DFAD: images on which student and teacher disagree most.

    L_G = -mean |s - t|,   L_S = mean |s - t|

Source: Fang et al. 2019, "Data-free adversarial distillation", eqs. 4 and 5; the release takes 5 student steps on fresh
images to one generator step, student in training mode throughout. Our defaults differ: see docs/methods/dfad.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from datafree import config as flags
from datafree import losses
from datafree.fields import choice, not_negative, positive
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Setting, student_mode


@dataclass(frozen=True, kw_only=True)
class DFADConfig:
    distance: flags.Distance = "l1"
    masked: flags.Masked = False
    latent: flags.Latent = 256
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "standardised"
    generator_lr: flags.GeneratorLr = 3e-2
    generator_milestones: Annotated[
        flags.Floats | None, "shares of the run at which the generator's rate is divided by 10; default: it stays"
    ] = None
    student_steps: flags.StudentSteps = 5
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "train"
    feed: flags.Feed = "bank"
    sample_mode: flags.SampleMode = "train"
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 50

    def __post_init__(self) -> None:
        not_negative(self, "reset")
        positive(self, "latent", "generator_width", "generator_lr", "student_steps", "bank", "synthesis_batch")
        choice(self)
        if any(not 0 < m < 1 for m in self.generator_milestones or ()):
            raise ValueError(
                f"--generator-milestones is {self.generator_milestones}: give shares of the run between 0 and 1"
            )


class DFAD:
    """One round: one generator step."""

    Config = DFADConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "l1",
        "temperature": 1.0,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": True,
    }
    FOLLOWS_PRIOR = False
    # "official": the authors' release on CIFAR-10 with --scheduler, 500 times 50 rounds; both rates fall. "zju": the
    # common re-implementation.
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "official": {
            "batch_size": 256,
            "epochs": 312.5,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "multistep",
            "milestones": (0.2, 0.4),
            "augment": False,
            "generator": "small",
            "generator_width": 64,
            "generator_lr": 1e-3,
            "generator_milestones": (0.2, 0.4),
            "output": "standardised",
            "synthesis_batch": 256,
            "student_mode": "train",
            "feed": "fresh",
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
            "student_mode": "eval",
        },
    }

    def __init__(self, setting: Setting, config: DFADConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        self.state_dict, self.load_state_dict = self.imaging.state_dict, self.imaging.load_state_dict

    def update(self) -> dict[str, float]:
        setting, imaging = self.setting, self.imaging
        imaging.begin_round()
        for group in imaging.optimizer.param_groups:
            group["lr"] = self.generator_rate
        images = imaging.images()
        with student_mode(setting.student, self.config.student_mode):
            student = setting.student(images)
        terms = {
            "adv": -losses.disagreement(student, setting.teacher(images), self.config.distance, self.config.masked)
        }
        imaging.step(terms)
        imaging.keep(images)
        return {name: float(term.detach()) for name, term in terms.items()}

    @property
    def generator_rate(self) -> float:
        """Adam's rate at this point of the run."""
        passed = sum(self.setting.pace.fraction >= m for m in self.config.generator_milestones or ())
        return self.config.generator_lr * 0.1**passed

    @property
    def made(self) -> int:
        return self.store.made
