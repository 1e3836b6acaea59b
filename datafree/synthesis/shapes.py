"""Random shapes: strokes and textured blobs, cut out of smooth random fields. Images that nobody has to optimise.

Ours. That a network can be distilled on structured noise is known (Baradad et al. 2021 learn to see by it; Raikwar and
Mishra 2022 distil by it); here a bank keeps the shapes by what the teacher takes them for, so that classes come alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.generators.noisy import count_before
from datafree.synthesis.setting import Setting

CHUNK = 64  # shapes of one draw; they share the coarseness of their fields
FILL = 160  # chunks of the first round, as far as the run's pace allows


class Draw:
    """Random numbers of one chunk of `n` images of `shape`."""

    def __init__(self, n: int, shape: tuple[int, int, int], rng: torch.Generator) -> None:
        self.n, (_, self.height, self.width), self.rng = n, shape, rng

    def number(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """One number an image, uniform, (n, 1, 1, 1)."""
        return low + (high - low) * torch.rand(self.n, 1, 1, 1, generator=self.rng, device=self.rng.device)

    def field(self, channels: int, low: int, high: int) -> Tensor:
        """Smooth fields of about unit variance, (n, channels, H, W): normal values on a grid of low to high - 1 points
        a side, interpolated."""
        points = int(torch.randint(low, high, (), generator=self.rng, device=self.rng.device))
        grid = torch.randn(self.n, channels, points, points, generator=self.rng, device=self.rng.device)
        return F.interpolate(grid, size=(self.height, self.width), mode="bicubic", align_corners=False)

    def radius(self) -> Tensor:
        """Squared distance from the middle in units of a random half-axis each way, (n, 1, H, W)."""
        y = torch.linspace(-1, 1, self.height, device=self.rng.device).view(1, 1, -1, 1)
        x = torch.linspace(-1, 1, self.width, device=self.rng.device).view(1, 1, 1, -1)
        return (x / self.number(0.5, 1.3)) ** 2 + (y / self.number(0.5, 1.3)) ** 2


def strokes(draw: Draw) -> Tensor:
    """How much of each pixel lines cover, (n, 1, H, W) in [0, 1]: where a field is near 0, within another's reach."""
    width = draw.number(0.1, 0.5)
    line = torch.sigmoid(12 * (width - draw.field(1, 2, 7).abs()) / width)
    return line * torch.sigmoid(8 * (draw.field(1, 3, 4) + 0.6 * draw.number(-1, 1)))


def blobs(draw: Draw) -> Tensor:
    """How much of each pixel blobs cover, (n, 1, H, W) in [0, 1]: where a field is high, the rather the nearer to the
    middle."""
    field = draw.field(1, 2, 8) + draw.number(0, 0.7) * draw.field(1, 5, 12)
    return torch.sigmoid((field + draw.number(0, 2) - draw.number(0, 3) * draw.radius()) * draw.number(1.5, 4).exp())


def draw_shapes(n: int, shape: tuple[int, int, int], rng: torch.Generator, *, bright: bool = False) -> Tensor:
    """n images (n, C, H, W) in [0, 1], half of them strokes, half blobs, textured.

    Grey shapes lie on black, or as negatives on white where `bright`; coloured ones on a smooth coloured ground.
    """
    channels, images = shape[0], []
    for kind, count in ((blobs, n // 2), (strokes, n - n // 2)):
        draw = Draw(count, shape, rng)
        cover = kind(draw)
        if kind is strokes and channels == 1:
            paint = draw.number(0.5, 1).expand_as(cover)
        else:
            paint = draw.number() + draw.number(0, 0.35) * (draw.field(channels, 2, 8) + draw.field(channels, 6, 28))
        if channels > 1:
            ground = torch.sigmoid(draw.field(channels, 1, 4) * draw.number(0.3, 2))
            paint = paint + draw.number(0, 0.5) * torch.randn(count, channels, 1, 1, generator=rng, device=rng.device)
            images.append((ground + cover * (paint - ground)).clamp(0, 1))
        else:
            images.append((cover * paint).clamp(0, 1))
    whole = torch.cat(images)
    return 1 - whole if bright else whole


class ShapeBank:
    """Shapes by the class that the teacher takes them for; of each class the latest stay.

    Args:
        setting: the method's.
        capacity: shapes in all, at least one a class.
    """

    def __init__(self, setting: Setting, capacity: int) -> None:
        domain = setting.domain
        self.setting, self.each = setting, max(1, capacity // domain.classes)
        self.bright = domain.shape[0] == 1 and domain.pixels[0][0] > 0.5
        self.images = torch.zeros(domain.classes, self.each, *domain.shape, dtype=torch.uint8, device=setting.device)
        self.added = torch.zeros(domain.classes, dtype=torch.int64, device=setting.device)
        self.made, self.answer = 0, setting.teacher.answering()

    @torch.no_grad()
    def refill(self) -> None:
        """Adds a chunk; the first time as many as the bank is worth, within the run's pace. Every process adds all."""
        setting = self.setting
        chunk = min(CHUNK, setting.batch_size)
        for _ in setting.pace.inner(1 if self.made else FILL):
            images = draw_shapes(chunk, setting.domain.shape, setting.rng, bright=self.bright)
            classes = self.answer(images.contiguous(memory_format=torch.channels_last)).argmax(1)
            # The how-manieth of its class each is in this chunk: places are a ring for each class.
            rank = count_before(classes)
            counts = torch.bincount(classes, minlength=len(self.added))
            places = (self.added[classes] + rank) % self.each
            stays = rank >= counts[classes] - self.each  # each place is written once: which write wins is left open
            self.images[classes[stays], places[stays]] = (images[stays] * 255).round().to(torch.uint8)
            self.added += counts
            self.made += chunk

    def draw(self, n: int) -> Tensor:
        """n >= 0 shapes for the global batch, (n, C, H, W) uint8; classes by the prior, among those that are held."""
        if not n:
            return self.images[0, :0]
        setting, held = self.setting, self.added.clamp_max(self.each)
        prior = torch.ones_like(held, dtype=torch.float32) if setting.prior is None else setting.prior
        weights = prior * (held > 0)
        weights = torch.where(weights.sum() > 0, weights, (held > 0).float())
        classes = torch.multinomial(weights, n, replacement=True, generator=setting.rng)
        picks = torch.rand(n, generator=setting.rng, device=setting.device)
        places = (picks * held[classes]).long().clamp_max(self.each - 1)
        return self.images[classes, places]

    def state_dict(self) -> dict[str, Any]:
        most = int(self.added.clamp_max(self.each).max())
        return {"images": self.images[:, :most].clone(), "added": self.added.clone(), "made": self.made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images[:, : state["images"].shape[1]] = state["images"]
        self.added, self.made = state["added"].clone().to(self.setting.device), int(state["made"])
