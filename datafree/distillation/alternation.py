"""A synthesis method and a student, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from datafree import parallel
from datafree.data import crop_and_flip, draw_crops
from datafree.data.tensors import Crops
from datafree.losses import CRITERIA
from datafree.synthesis.imaging import Setting
from datafree.training import Clock, Seconds, Trainer, run


class Alternation:
    """Rounds of synthesis, each followed by the method's number of student steps. A `training.Source`.

    Args:
        method: a synthesis method (`update`, `sample`, `config.student_steps`).
        setting: the same that the method was given.
        criterion: "kl", "l1" or "mse".
        temperature: of the kl.
        augmented: crop and, where the domain allows, flip the student's images.
    """

    def __init__(self, method: Any, setting: Setting, *, criterion: str, temperature: float, augmented: bool) -> None:
        self.method, self.setting = method, setting
        self.criterion, self.temperature, self.augmented = CRITERIA[criterion], temperature, augmented
        self.student_steps: int = method.config.student_steps
        self.warmup: float = getattr(method.config, "warmup", 0.0)
        self.rounds = 0
        self.due = True
        self.agreement: Tensor = torch.zeros(())

    def warming_up(self, clock: Clock) -> bool:
        """A share of the wall clock, or of the rounds in a run of steps; over once the student has begun."""
        if clock.step or not self.warmup:
            return False
        if clock.steps is None:
            return clock.fraction < self.warmup
        return self.rounds < self.warmup / (1 - self.warmup) * clock.steps / self.student_steps

    def advance(self, clock: Clock) -> Mapping[str, float]:
        if not self.due:
            return {}
        self.rounds += 1
        self.due = False
        terms: Mapping[str, float] = self.method.update()
        return terms

    def terms(self, clock: Clock) -> Mapping[str, Tensor]:
        if self.warming_up(clock):
            self.due = True
            return {}
        setting = self.setting
        batch = self.method.sample(setting.batch_size)
        images = batch.images
        if self.augmented:
            pad = max(1, images.shape[-1] // 8)
            crops = draw_crops(setting.batch_size, setting.rng, pad=pad, flip=setting.domain.flip)
            images = crop_and_flip(images, Crops(*map(parallel.shard, crops)), pad=pad)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            teacher = setting.teacher(images)
        setting.student.train()
        student = setting.student(images)
        with torch.no_grad():
            self.agreement = (student.argmax(1) == teacher.argmax(1)).float().mean()
        self.due = (clock.step + 1) % self.student_steps == 0
        return {self.criterion.__name__: self.criterion(student, teacher, self.temperature)}

    def state_dict(self) -> dict[str, Any]:
        return {"method": self.method.state_dict(), "rounds": self.rounds, "due": self.due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.rounds, self.due = int(state["rounds"]), bool(state["due"])


def distill(
    alternation: Alternation,
    trainer: Trainer,
    clock: Clock,
    *,
    seconds: Seconds,
    autocast: Callable[[], Any],
    after_step: Callable[[Mapping[str, Tensor], Mapping[str, float]], bool],
) -> bool:
    """Trains the student until the clock ends; see `training.run` for arguments, result and errors."""
    return run(trainer, alternation, clock, seconds=seconds, autocast=autocast, after_step=after_step)
