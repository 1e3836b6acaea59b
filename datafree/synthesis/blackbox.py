"""Black box: the teacher answers queries and is never differentiated; the generator's gradient is estimated.

    L_G = -mean_n L(x_n),   L(x) = mean_c |s - t̄|,   t̄ = log p_t - mean_c log p_t
    ∂L/∂x ≈ d/m Σ_k (L(x + ε u_k) - L(x)) / ε · u_k

L may be another distance. x is the image before the generator's sigmoid, so that every query is an image in [0, 1], d
is its number of values, and the u_k are m random directions of length 1. The estimate is then propagated back through
the generator. The student learns from the same t̄: L_S = L, whatever the generator's distance.

Source: Truong et al. 2021, "Data-free model extraction" (DFME), whose release takes m = 1, ε = 1e-3 before a tanh, and
1 generator step to 5 student steps on fresh images. Our defaults differ: see docs/methods/blackbox.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from datafree import config as flags
from datafree import losses
from datafree.fields import choice, not_negative, positive
from datafree.generators.convolutional import Generator
from datafree.parallel import shard, world_size
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Setting, student_mode


@dataclass(frozen=True, kw_only=True)
class BlackBoxConfig:
    directions: Annotated[int, "random directions of a gradient's estimate; each is one more query an image"] = 1
    epsilon: Annotated[float, "length of the step in a direction, before the generator's sigmoid"] = 2e-3
    probabilities: Annotated[bool, "the teacher answers with probabilities, not with logits"] = False
    distance: flags.Distance = "l1"
    latent: flags.Latent = 256
    generator: flags.GeneratorName = "auto"
    generator_width: flags.GeneratorWidth = None
    generator_lr: flags.GeneratorLr = 1e-3
    generator_steps: flags.GeneratorSteps = 1
    student_steps: flags.StudentSteps = 5
    synthesis_batch: flags.SynthesisBatch = None
    feed: flags.Feed = "bank"
    sample_mode: flags.SampleMode = "train"
    bank: flags.BankSize = 20_000
    reset: flags.Reset = 50

    def __post_init__(self) -> None:
        not_negative(self, "reset")
        positive(self, "directions", "epsilon", "latent", "generator_width", "generator_lr", "generator_steps")
        positive(self, "student_steps", "synthesis_batch", "bank")
        choice(self)

    @property
    def output(self) -> str:
        return "sigmoid"


class BlackBox:
    """One round: `generator_steps` steps of the generator along estimated gradients.

    `queries` counts the images that the teacher was asked about, by the generator and by the student.
    """

    Config = BlackBoxConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "l1",
        "temperature": 1.0,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": True,
    }
    # 20 million queries: 256 · (2 + 5) a round.
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "official": {
            "batch_size": 256,
            "epochs": 139.5,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "multistep",
            "milestones": (0.1, 0.3, 0.5),
            "augment": False,
            "directions": 1,
            "epsilon": 2e-3,
            "latent": 256,
            "generator": "small",
            "generator_width": 64,
            "generator_lr": 1e-4,
            "generator_steps": 1,
            "student_steps": 5,
            "synthesis_batch": 256,
            "feed": "fresh",
            "reset": 0,
        }
    }
    NEEDS_GRADIENTS = False
    FOLLOWS_PRIOR = False

    def __init__(self, setting: Setting, config: BlackBoxConfig) -> None:
        self.setting, self.config, self.imaging = setting, config, Imaging(setting, config)
        self.store, self.sample = self.imaging.store, self.imaging.sample
        assert isinstance(self.imaging.generator, Generator)
        self.generator = self.imaging.generator
        self.queries = 0

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """What the teacher says of this process's images (N, C, H, W), as centred logits. Costs a query an image."""
        self.queries += len(images) * world_size()
        return losses.centred_logits(self.setting.teacher(images), self.config.probabilities)

    def disagreement(self, raw: Tensor) -> Tensor:
        """L, or another `distance`, of each image before its sigmoid, (N,), without gradient."""
        images = raw.sigmoid().contiguous(memory_format=torch.channels_last)
        student: Tensor = self.setting.student(images)
        return losses.PER_SAMPLE[self.config.distance](student, self.answer(images))

    def directions(self) -> list[Tensor]:
        """This process's slices of random directions, each (N, C, H, W) with rows of length 1."""
        setting, shape = self.setting, (self.imaging.batch_size, *self.setting.domain.shape)
        return [
            shard(unit(torch.randn(shape, generator=setting.rng, device=setting.device)))
            for _ in range(self.config.directions)
        ]

    def update(self) -> dict[str, float]:
        setting, config, imaging = self.setting, self.config, self.imaging
        imaging.begin_round()
        steps, total = 0, torch.zeros((), device=setting.device)
        for _ in setting.pace.inner(config.generator_steps):
            self.generator.train()
            raw = self.generator.raw(imaging.latents(imaging.batch_size)).float()
            # Half types cannot tell the two ends of so short a step apart.
            with torch.autocast(setting.device.type, enabled=False), student_mode(setting.student, "eval"):
                value, gradient = forward_differences(
                    self.disagreement, raw.detach(), self.directions(), config.epsilon
                )
            imaging.step({"adv": -(gradient * raw).sum() / len(raw)})
            imaging.keep(raw.detach().sigmoid())
            steps, total = steps + 1, total - value.mean()
        return {"adv": float(total) / steps}

    @property
    def made(self) -> int:
        return self.store.made

    def state_dict(self) -> dict[str, Any]:
        return {"imaging": self.imaging.state_dict(), "queries": self.queries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.imaging.load_state_dict(state["imaging"])
        self.queries = int(state["queries"])


def unit(rows: Tensor) -> Tensor:
    """Each row (of the first dimension) scaled to length 1."""
    lengths: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return rows / lengths.view(-1, *(1 for _ in rows.shape[1:]))


@torch.no_grad()
def forward_differences(
    objective: Callable[[Tensor], Tensor], x: Tensor, directions: list[Tensor], epsilon: float
) -> tuple[Tensor, Tensor]:
    """The objective at x, (N,), and an estimate of its gradient there, of the shape of x.

    It is d/m Σ_k (f(x + ε u_k) - f(x)) / ε · u_k, up to terms of size ε right in the mean for directions drawn evenly
    from the sphere, and the whole gradient for d directions at right angles.

    Args:
        objective: f, from points (N, ...) to values (N,); it is asked m + 1 times, never for a gradient.
        x: (N, ...), d values a row.
        directions: m tensors of the shape of x with rows of length 1.
        epsilon: > 0.

    Source: DFME (Truong et al. 2021), sec. 3.3.
    """
    value = objective(x)
    shape = (-1, *(1 for _ in x.shape[1:]))
    slopes = [(objective(x + epsilon * u) - value).view(shape) / epsilon * u for u in directions]
    return value, x[0].numel() / len(slopes) * torch.stack(slopes).sum(0)
