"""ZSKT: images on which the student's predictions are furthest from the teacher's; the student copies attention too.

    L_G = -KL(t || s),   L_S = KL(t || s) + 250 Σ_l mean (a_l(s) - a_l(t))²

a_l is the map of layer l: the channels' mean of the squared activations, at unit length. One batch of latents serves
one generator step and ten student steps, which see what the updated generator makes of it.

Source: Micaelli & Storkey 2019, "Zero-shot knowledge transfer via adversarial belief matching", and the authors'
release. What common re-implementations call ZSKT has no attention and no reuse of latents: `--preset zju`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from datafree import config as flags
from datafree import losses
from datafree.fields import choice, not_negative, positive
from datafree.parallel import average_gradients
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Setting, student_mode
from datafree.training import cosine


@dataclass(frozen=True, kw_only=True)
class ZSKTConfig:
    distance: flags.Distance = "kl"
    masked: flags.Masked = False
    latent: flags.Latent = 100
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    output: flags.Output = "standardised"
    generator_lr: flags.GeneratorLr = 1e-3
    generator_schedule: Annotated[Literal["cosine", "constant"], "the generator's rate over the run"] = "cosine"
    generator_clip: Annotated[float, "largest norm of the generator's gradient; 0: not clipped"] = 5.0
    student_steps: flags.StudentSteps = 10
    synthesis_batch: flags.SynthesisBatch = None
    student_mode: flags.StudentMode = "train"
    feed: flags.Feed = "last"
    sample_mode: flags.SampleMode = "train"
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 0

    def __post_init__(self) -> None:
        not_negative(self, "generator_clip", "reset")
        positive(self, "latent", "generator_width", "generator_lr", "student_steps", "bank", "synthesis_batch")
        choice(self)


class ZSKT:
    """One round: one generator step, then the same latents once more for the student."""

    Config = ZSKTConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 1.0,
        "optimizer": "adam",
        "lr": 2e-3,
        "weight_decay": 0.0,
        "augment": False,
        "attention": 250.0,
        "gradient_clip": 5.0,
    }
    FOLLOWS_PRIOR = False
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        # The release's KL is a mean over classes too: a tenth of ours for its ten classes. Adam does not see a common
        # factor, so its total, ours / 10, is attention and both clips times ten.
        "official": {
            "generator": "small",
            "generator_width": 64,
            "generator_clip": 50.0,
            "batch_size": 128,
            "attention": 2500.0,
            "gradient_clip": 50.0,
            "lr": 2e-3,
            "steps": 800_000,
        },
        # Nothing is clipped there: a norm of a million is never reached.
        "zju": {
            "latent": 256,
            "generator": "large",
            "generator_width": 64,
            "output": "sigmoid",
            "generator_schedule": "constant",
            "generator_clip": 0.0,
            "student_steps": 5,
            "synthesis_batch": 256,
            "student_mode": "eval",
            "feed": "fresh",
            "sample_mode": "eval",
            "batch_size": 256,
            "attention": 0.0,
            "gradient_clip": 1e6,
            "optimizer": "sgd",
            "lr": 0.1,
            "weight_decay": 1e-4,
            "epochs": 200.0,
        },
    }

    def __init__(self, setting: Setting, config: ZSKTConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        self.state_dict, self.load_state_dict = self.imaging.state_dict, self.imaging.load_state_dict

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        imaging.generator.train()
        latents = imaging.latents(imaging.batch_size)
        images = imaging.generator(latents)
        with student_mode(setting.student, config.student_mode):
            student = setting.student(images)
        adv = -losses.disagreement(student, setting.teacher(images), config.distance, config.masked)
        self._step(adv)
        if config.feed != "fresh":
            with torch.no_grad():
                images = imaging.generator(latents)
        imaging.keep(images)
        return {"adv": float(adv.detach())}

    def _step(self, loss: Tensor) -> None:
        """Imaging's step, with the gradient clipped and the rate following the run."""
        config, optimizer = self.config, self.imaging.optimizer
        parameters = list(self.imaging.generator.parameters())
        torch.autograd.backward(loss, inputs=parameters)
        average_gradients(parameters)
        if config.generator_clip:
            nn.utils.clip_grad_norm_(parameters, config.generator_clip)
        if config.generator_schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = config.generator_lr * cosine(self.setting.pace.fraction)
        optimizer.step()
        optimizer.zero_grad()

    @property
    def made(self) -> int:
        return self.store.made
