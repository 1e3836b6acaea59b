"""Noise: the baseline that knows nothing. The student matches the teacher on random images; no generator is trained.

Source: the row "Gaussian noise" of DAFL's Table 1 (Chen et al. 2019). In normalised space the noise is standard normal;
it is cut to [0, 1] in pixel space, as every image here is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from datafree.config import choice, positive
from datafree.parallel import shard
from datafree.synthesis.setting import Batch, Setting


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    distribution: Annotated[
        Literal["normal", "uniform"], "of the pixels: N(mean, std) of the domain cut to [0, 1], or U(0, 1)"
    ] = "normal"
    student_steps: Annotated[int, "student steps a round; a round makes nothing here"] = 100

    def __post_init__(self) -> None:
        positive(self, "student_steps")
        choice(self, "distribution")


class Noise:
    """No synthesis: every sample is drawn anew."""

    Config = NoiseConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 1.0,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "augment": False,
    }

    def __init__(self, setting: Setting, config: NoiseConfig) -> None:
        self.setting, self.config, self.made = setting, config, 0

    def update(self) -> dict[str, float]:
        return {}

    def sample(self, n: int) -> Batch:
        setting, domain = self.setting, self.setting.domain
        self.made += n
        draw = torch.rand if self.config.distribution == "uniform" else torch.randn
        images = shard(draw(n, *domain.shape, generator=setting.rng, device=setting.device))
        if self.config.distribution == "normal":
            mean, std = (torch.tensor(v, device=setting.device).view(1, -1, 1, 1) for v in (domain.mean, domain.std))
            images = (images * std + mean).clamp(0, 1)
        return Batch(images.contiguous(memory_format=torch.channels_last))

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.made = int(state["made"])
