"""What a condensation method is given: the real images by class, networks, augmentation, random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree import parallel
from datafree.data.augmentation import Augmentation, apply, draw
from datafree.data.tensors import to_float
from datafree.data.whitening import Whitening
from datafree.domain import Domain
from datafree.training import Clock


def operations_a_second(device: torch.device) -> float:
    """What lengths of networks and experts are scaled with: of a core that is not idle, of any GPU.

    Fixed, so that equal runs make, and find, equal ones.
    """
    return 1e11 if device.type == "cpu" else 5e12


class Real:
    """The real training images, uint8 on the device, by class.

    Args:
        x: uint8 (N, C, H, W).
        y: int64 (N,).
        classes: how many there are; every one has an image.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int) -> None:
        self.x, self.y, self.classes = x, y, classes
        self.rows = [(y == label).nonzero().flatten() for label in range(classes)]

    def of_class(self, label: int, n: int, rng: torch.Generator) -> Tensor:
        """n images of a class at random, float (n, C, H, W): none a second time before each was there once."""
        rows = self.rows[label]
        times = max(1, math.ceil(n / len(rows)))
        orders = [torch.randperm(len(rows), generator=rng, device=self.x.device) for _ in range(times)]
        places = torch.cat(orders)[:n]
        return to_float(self.x[rows[places]])

    def batch(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """n images (float) of all classes at random with their labels, with repeats."""
        rows = torch.randint(len(self.x), (n,), generator=rng, device=self.x.device)
        return to_float(self.x[rows]), self.y[rows]


@dataclass(kw_only=True)
class Setting:
    """What a method is given.

    Attributes:
        real: the training images.
        domain: what they are of.
        new_network: makes a network with fresh random weights, from images in [0, 1] to logits, on the device.
        arch: the network's name.
        augmentation: differentiable augmentation of the run, or None.
        whitening: what networks see instead of the normalisation, or None; `new_network` has it built in.
        rng: source of every random draw, on the device. All processes draw alike.
        device: where tensors live.
        clock: how far the run is (`fraction`, `steps`, `seconds`); what a method makes for itself is scaled to it.
        cast: makes the context of the run's arithmetic (bf16 or plain).
        cache: folder in which experts and trained networks are kept and found again by what they depend on.
        say: tells a person a line.
        nets, net_pool, net_steps: see `CondenseConfig`.
        stopping: whether a person asked to stop; long preparations look at it.
        prepared: told the seconds that training a network took, ahead of what it is for.
    """

    real: Real
    domain: Domain
    new_network: Callable[[], nn.Module]
    arch: str
    augmentation: Augmentation | None
    whitening: Whitening | None = None
    rng: torch.Generator
    device: torch.device
    clock: Clock
    cast: Callable[[], AbstractContextManager[Any]] = nullcontext
    cache: Path | None = None
    say: Callable[[str], None] = lambda _: None
    nets: str = "fresh"
    net_pool: int = 10
    net_steps: int = 100
    stopping: Callable[[], bool] = field(default=lambda: False)
    prepared: Callable[[float], None] = lambda _: None

    @property
    def precision(self) -> str:
        """ "bf16" or "32": the arithmetic of the run's networks."""
        with self.cast():
            return "bf16" if torch.is_autocast_enabled(self.device.type) else "32"

    def own_classes(self) -> list[int]:
        """The classes whose terms this process computes."""
        return list(range(self.domain.classes))[parallel.rank() :: parallel.world_size()]

    def augment_alike(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """One draw of the augmentation for all given batches (siamese), differentiable."""
        if self.augmentation is None:
            return batches
        drawn = draw(self.augmentation, None, self.rng)
        return tuple(apply(images, drawn, self.augmentation) for images in batches)

    def augment_each(self, images: Tensor, *, but: str = "") -> Tensor:
        """A draw for each image, for training networks; the family `but` is left out."""
        if self.augmentation is None:
            return images
        families = tuple(name for name in self.augmentation.families if name != but)
        augmentation = replace(self.augmentation, families=families)
        return apply(images, draw(augmentation, len(images), self.rng), augmentation)
