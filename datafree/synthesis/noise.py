"""Noise: the baseline that knows nothing. The student matches the teacher on random images; no generator is trained.

Source: the row "Gaussian noise" of DAFL's Table 1 (Chen et al. 2019). In normalised space the noise is standard normal;
it is cut to [0, 1] in pixel space, as every image here is. With `batch_statistics` the teacher's batch norms use the
noise's own mean and variance, so that later layers see values of the size that they were trained on: Raikwar & Mishra
2022, "Discovering and overcoming limitations of noise-engineered data-free knowledge distillation".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from datafree.fields import choice, positive
from datafree.parallel import channel_statistics, shard
from datafree.synthesis.setting import Batch, Setting
from datafree.synthesis.shapes import ShapeBank


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    distribution: Annotated[
        Literal["normal", "uniform", "shapes"],
        "of the pixels: N(mean, std) of the domain cut to [0, 1], or U(0, 1); or random shapes, classes alike",
    ] = "normal"
    bank: Annotated[int, "random shapes that are held; the oldest of each class go first"] = 20_000
    batch_statistics: Annotated[
        bool, "the teacher's batch norms use the batch's mean and variance instead of what they remember"
    ] = False
    student_steps: Annotated[int, "student steps a round; a round makes nothing here, or some random shapes"] = 100

    def __post_init__(self) -> None:
        positive(self, "student_steps", "bank")
        choice(self)

    @property
    def shaped(self) -> bool:
        return self.distribution == "shapes"


class Noise:
    """No synthesis: every sample is drawn anew, or from a bank of random shapes."""

    Config = NoiseConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 1.0,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "augment": False,
    }
    NEEDS_GRADIENTS = False
    FOLLOWS_PRIOR = "shaped"
    PRESETS: Mapping[str, Mapping[str, Any]] = {"official": {"batch_statistics": True, "lr": 1e-3}}

    def __init__(self, setting: Setting, config: NoiseConfig) -> None:
        if config.batch_statistics and not setting.teacher.has_statistics:
            raise ValueError("--batch-statistics: the teacher has no batch norm; give --no-batch-statistics")
        self.setting, self.config, self.made = setting, config, 0
        if config.batch_statistics:
            self.answer = self._unprepared
        self.shapes = ShapeBank(setting, config.bank) if config.shaped else None

    def update(self) -> dict[str, float]:
        if self.shapes is not None:
            self.shapes.refill()
            self.made = self.shapes.made
        return {}

    def _unprepared(self, images: Tensor) -> Tensor:
        """The teacher's logits (N, C) by the batch's own statistics; the teacher is the same afterwards."""
        teacher = self.setting.teacher
        with batch_statistics(teacher.norms):
            return teacher(images)

    def sample(self, n: int) -> Batch:
        setting, domain = self.setting, self.setting.domain
        if self.shapes is not None:
            return Batch(shard(self.shapes.draw(n)).float().div_(255))
        self.made += n
        draw = torch.rand if self.config.distribution == "uniform" else torch.randn
        images = shard(draw(n, *domain.shape, generator=setting.rng, device=setting.device))
        if self.config.distribution == "normal":
            mean, std = (torch.tensor(v, device=setting.device).view(1, -1, 1, 1) for v in (domain.mean, domain.std))
            images = (images * std + mean).clamp(0, 1)
        return Batch(images.contiguous(memory_format=torch.channels_last))

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made, "shapes": self.shapes.state_dict() if self.shapes is not None else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.made = int(state["made"])
        if self.shapes is not None:
            self.shapes.load_state_dict(state["shapes"])


@contextmanager
def batch_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """Inside, the layers normalise by the global batch's mean and biased variance, and remember nothing of it.

    They must be in evaluation mode. What else a layer does, such as an activation of its own, it goes on doing.
    """
    remembered = [(norm, norm.running_mean, norm.running_var) for norm in norms]

    def present(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean, norm.running_var = channel_statistics(inputs[0])

    handles = [norm.register_forward_pre_hook(present) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, mean, var in remembered:
            norm.running_mean, norm.running_var = mean, var
