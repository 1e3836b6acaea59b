"""A synthesis method and a student, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from datafree import losses
from datafree.distillation.attention import common_maps, watch_maps
from datafree.losses import CRITERIA
from datafree.parallel import latest
from datafree.synthesis import check_values
from datafree.synthesis.setting import Batch, Setting
from datafree.training import Clock, Seconds, Trainer, run


class Alternation:
    """Rounds of synthesis, each followed by the method's number of student steps. A `training.Source`.

    Args:
        method: a synthesis method (`update`, `sample`, `config.student_steps`).
        setting: the same that the method was given.
        criterion: "kl", "l1" or "mse".
        temperature: of the kl.
        augmented: crop and, where the domain allows, flip the student's images.
        attention: weight of the attention transfer beside the criterion; 0: off.
    """

    def __init__(
        self,
        method: Any,
        setting: Setting,
        *,
        criterion: str,
        temperature: float,
        augmented: bool,
        attention: float = 0.0,
    ) -> None:
        self.method, self.setting, self.attention = method, setting, attention
        self.criterion, self.temperature, self.augmented = CRITERIA[criterion], temperature, augmented
        # A method may answer in the teacher's place, and may look at what the student made of a batch.
        own: Callable[[Tensor], Tensor] | None = getattr(method, "answer", None)
        # Attention is watched on the teacher itself.
        self.answer = own or (setting.teacher if attention else setting.teacher.answering())
        self.observe: Callable[[Batch, Tensor, Tensor], None] | None = getattr(method, "observe", None)
        self.student_steps: int = method.config.student_steps
        self.warmup: float = getattr(method.config, "warmup", 0.0)
        self.rounds = 0
        self.round_seconds = 0.0
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
        self._keep_pace(clock)
        if not self.due:
            return {}
        self.due = False
        if clock.step and clock.seconds is not None and clock.seconds * (1 - clock.fraction) < self.round_seconds:
            return {}  # what another round made, hardly a step would see: the student goes on with what is there
        self.rounds += 1
        begin = time.monotonic()
        terms: Mapping[str, float] = self.method.update()
        check_values(self.method, terms)
        if clock.seconds is not None:
            self.round_seconds = latest(time.monotonic() - begin)
        return terms

    def terms(self, clock: Clock) -> Mapping[str, Tensor]:
        setting = self.setting
        if setting.pace.warming:  # this round was for the generator alone
            self.due = True
            return {}
        batch = self.method.sample(setting.batch_size)
        images = batch.images
        if self.augmented:
            images = setting.view(images)
        images = images.contiguous(memory_format=torch.channels_last)
        setting.student.train()
        with (
            watch_maps(setting.student, self.attention) as ours,
            watch_maps(setting.teacher.network, self.attention) as theirs,
        ):
            with torch.no_grad():
                teacher = self.answer(images)
            student = setting.student(images)
        with torch.no_grad():
            self.agreement = (student.argmax(1) == teacher.argmax(1)).float().mean()
            if self.observe is not None:
                self.observe(batch, student.detach(), teacher)
        self.due = (clock.step + 1) % self.student_steps == 0
        terms = {self.criterion.__name__: self.criterion(student, teacher, self.temperature, batch.weights)}
        if self.attention:
            terms["attention"] = self.attention * losses.attention_transfer(*common_maps(ours, theirs))
        return terms

    def _keep_pace(self, clock: Clock) -> None:
        pace = self.setting.pace
        pace.steps, pace.seconds = clock.steps, clock.seconds
        pace.fraction, pace.warming = clock.progress, self.warming_up(clock)

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
