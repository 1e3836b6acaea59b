"""What a method is given, and what it hands to the student."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from datafree.data import crop_and_flip, draw_crops
from datafree.data.tensors import Crops, usual_pad
from datafree.domain import Domain
from datafree.parallel import latest, shard, world_size
from datafree.teacher import Teacher

# In a run of wall clock one round of synthesis takes at most this share of it, so that the student gets its turn.
ROUND_SHARE = 0.1


@dataclass(kw_only=True)
class Pace:
    """How far the run is; the trainer keeps it up to date.

    Attributes:
        steps: length of the run in student steps, or None.
        seconds: length of the run in seconds, or None.
        fraction: share of the run that is done, in [0, 1].
        warming: the student has not begun yet.
    """

    steps: int | None = None
    seconds: float | None = None
    fraction: float = 0.0
    warming: bool = False

    def inner(self, wanted: int) -> Iterator[float]:
        """The steps of a method's inner loop: yields the share of the loop that is done, from 0 to below 1.

        No more than `wanted` steps, no more than the run has student steps, and in a run of wall clock no longer than
        `ROUND_SHARE` of it (the first step always runs). A loop that the clock cuts short still sees its schedule end.
        """
        limit = wanted if self.steps is None else min(wanted, self.steps)
        begin, seconds = time.monotonic(), None if self.seconds is None else ROUND_SHARE * self.seconds
        for step in range(limit):
            fraction = step / limit
            if seconds is not None and step:
                used = latest(time.monotonic() - begin)
                if used * (step + 1) / step > seconds:
                    return
                fraction = max(fraction, used / seconds)
            yield fraction


@dataclass(kw_only=True)
class Setting:
    """What a method is given.

    Attributes:
        teacher: frozen; takes images in [0, 1].
        student: takes images in [0, 1]; trained by the caller, never by the method.
        domain: shape and classes of the images.
        batch_size: images a step, over all processes.
        rng: source of every random draw, on the device.
        device: where tensors live.
        prior: share of each class among the images, (C,), sums to 1; None: all alike. A class of share 0 is not made.
        pace: how far the run is.
    """

    teacher: Teacher
    student: nn.Module
    domain: Domain
    batch_size: int
    rng: torch.Generator
    device: torch.device
    prior: Tensor | None = None
    pace: Pace = field(default_factory=Pace)

    def targets(self, n: int) -> Tensor:
        """n classes for the global batch, int64 (n,), drawn from the prior."""
        if self.prior is None:
            return torch.randint(self.domain.classes, (n,), generator=self.rng, device=self.device)
        return torch.multinomial(self.prior, n, replacement=True, generator=self.rng)

    def view(self, images: Tensor) -> Tensor:
        """This process's images (N, C, H, W), each cropped after padding by an eighth; mirrored where labels allow.

        Differentiable.

        Source: the views that the networks of the field's releases are shown while images are synthesized.
        """
        pad = usual_pad(images.shape)
        crops = draw_crops(len(images) * world_size(), self.rng, pad=pad, flip=self.domain.flip)
        return crop_and_flip(images, Crops(*map(shard, crops)), pad=pad).contiguous(memory_format=torch.channels_last)


def usual_batch(student_batch: int) -> int:
    """Images a synthesis step where nobody says: 64, or the student's batch if that is smaller; in equal shares."""
    size = world_size()
    return max(min(64, student_batch) // size, 1) * size


class Batch:
    """What the student learns from: images (N, C, H, W) in [0, 1], weights (N,) or None, what else a method knows."""

    def __init__(self, images: Tensor, weights: Tensor | None = None, extras: dict[str, Tensor] | None = None) -> None:
        self.images, self.weights, self.extras = images, weights, extras or {}


@contextmanager
def student_mode(student: nn.Module, mode: str) -> Iterator[None]:
    """Puts the student into "train" or "eval" mode while the generator looks at it, and back."""
    was = student.training
    student.train(mode == "train")
    try:
        yield
    finally:
        student.train(was)
