"""The replay bank: synthesized images as uint8 on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datafree.parallel import gather, shard


class Bank:
    """At most `capacity` images; when it is full, new ones take the places of the oldest or of the least important.

    Images are kept as uint8 (rounded to 1/255), so 20,000 at 3×32×32 take 61 MB. Across processes every bank holds the
    global batch, so that all draw the same.

    Args:
        capacity: how many images are held at most, >= 1.
        shape: (C, H, W).
        device: where they are held.
        eviction: "fifo" replaces the oldest, "priority" those of the lowest priority, the oldest first among equals.
    """

    def __init__(
        self, capacity: int, shape: tuple[int, int, int], device: torch.device | str = "cpu", eviction: str = "fifo"
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a bank holds at least one image, not {capacity}")
        self.images = torch.empty((capacity, *shape), dtype=torch.uint8, device=device)
        self.priorities = torch.ones(capacity, device=device)
        self.births = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.eviction = eviction
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, len(self.images))

    def add(self, images: Tensor, priorities: Tensor | None = None) -> None:
        """Stores this process's slice of a batch; of one larger than the bank the last images stay.

        Args:
            images: (N, C, H, W) in [0, 1].
            priorities: (N,) >= 0; default: the highest that is held (1 at first), so that new images come up.
        """
        capacity = len(self.images)
        rows = gather((images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8))[-capacity:]
        highest = self.priorities[: len(self)].max() if len(self) else torch.ones((), device=rows.device)
        weights = highest if priorities is None else gather(priorities.detach().float())[-capacity:]
        places = self._places(len(rows))
        self.images[places] = rows
        self.priorities[places] = weights
        self.births[places] = torch.arange(self.added, self.added + len(rows), device=rows.device)
        self.added += len(rows)

    def _places(self, count: int) -> Tensor:
        """Where that many new images go: empty places first."""
        ring = torch.arange(self.added, self.added + count, device=self.images.device)
        free = len(self.images) - len(self)
        if self.eviction == "fifo" or count <= free:
            return ring % len(self.images)
        oldest = self.births[: len(self)].argsort()
        least = oldest[self.priorities[oldest].argsort(stable=True)]
        return torch.cat([ring[:free], least[: count - free]])

    def prioritise(self, places: Tensor, priorities: Tensor) -> None:
        """New priorities of drawn images. A place that was drawn several times takes the highest.

        Args:
            places: this process's slice of what `draw` gave, (N,).
            priorities: (N,) >= 0.
        """
        self.priorities.scatter_reduce_(
            0, gather(places), gather(priorities.detach().float()), "amax", include_self=False
        )

    def chances(self, exponent: float) -> Tensor:
        """Each held image's chance to be drawn, (len,), sums to 1: P ∝ priority^exponent; all alike if none has any.

        Source: prioritized experience replay (Schaul et al. 2016), eq. 1.
        """
        weights = self.priorities[: len(self)].pow(exponent)
        total = weights.sum()
        return torch.where(total > 0, weights / total, 1 / len(self))

    def draw(self, n: int, generator: torch.Generator, exponent: float = 0.0) -> Tensor:
        """Places of n images for the global batch, with replacement, int64 (n,), by `chances`."""
        assert len(self), "the bank is empty"
        if exponent == 0:
            return torch.randint(len(self), (n,), generator=generator, device=self.images.device)
        bounds = self.chances(exponent).cumsum(0)
        picks = torch.rand(n, generator=generator, device=self.images.device) * bounds[-1]
        # From the right, so that a pick on a bound belongs to the next image: one of chance 0 is never drawn.
        return torch.searchsorted(bounds, picks, right=True).clamp_max(len(self) - 1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws n images with replacement for the global batch; returns this process's slice (.., C, H, W), uint8."""
        return self.images[shard(self.draw(n, generator))]

    def state_dict(self) -> dict[str, Any]:
        # A copy: a view would be saved with the places that are still empty.
        held = len(self)
        return {
            "images": self.images[:held].clone(),
            "priorities": self.priorities[:held].clone(),
            "births": self.births[:held].clone(),
            "added": self.added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        held = len(state["images"])
        for name in ("images", "priorities", "births"):
            getattr(self, name)[:held] = state[name]
        self.added = int(state["added"])
