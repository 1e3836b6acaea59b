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
        eviction: "fifo" replaces the oldest, "priority" those of the lowest priority.
    """

    def __init__(
        self, capacity: int, shape: tuple[int, int, int], device: torch.device | str = "cpu", eviction: str = "fifo"
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a bank holds at least one image, not {capacity}")
        self.images = torch.empty((capacity, *shape), dtype=torch.uint8, device=device)
        self.priorities = torch.ones(capacity, device=device)
        self.eviction = eviction
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, len(self.images))

    def add(self, images: Tensor, priorities: Tensor | None = None) -> None:
        """Stores this process's slice of a batch: images (N, C, H, W) in [0, 1], priorities (N,) >= 0 (default 1)."""
        capacity = len(self.images)
        rows = gather((images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8))[-capacity:]
        if priorities is None:
            weights = torch.ones(len(rows), device=rows.device)
        else:
            weights = gather(priorities.detach().float())[-capacity:]
        places = (torch.arange(len(rows), device=rows.device) + self.added) % capacity
        if self.eviction == "priority" and self.added >= capacity:
            places = self.priorities.topk(len(rows), largest=False).indices
        self.images[places] = rows
        self.priorities[places] = weights
        self.added += len(rows)

    def draw(self, n: int, generator: torch.Generator, exponent: float = 0.0) -> Tensor:
        """Places of n images for the global batch, with replacement, int64 (n,): P ∝ priority^exponent."""
        assert len(self), "the bank is empty"
        if exponent == 0:
            return torch.randint(len(self), (n,), generator=generator, device=self.images.device)
        chances = self.priorities[: len(self)].pow(exponent).cumsum(0)
        picks = torch.rand(n, generator=generator, device=self.images.device) * chances[-1]
        return torch.searchsorted(chances, picks).clamp_max(len(self) - 1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws n images with replacement for the global batch; returns this process's slice (.., C, H, W), uint8."""
        return self.images[shard(self.draw(n, generator))]

    def state_dict(self) -> dict[str, Any]:
        # A copy: a view would be saved with the places that are still empty.
        held = len(self)
        return {
            "images": self.images[:held].clone(),
            "priorities": self.priorities[:held].clone(),
            "added": self.added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        held = len(state["images"])
        self.images[:held], self.priorities[:held] = state["images"], state["priorities"]
        self.added = int(state["added"])
