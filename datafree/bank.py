"""The replay bank: synthesized images as uint8 on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datafree.parallel import gather, shard


class Bank:
    """A ring of `capacity` images: new ones replace the oldest (first in, first out).

    Images are kept as uint8 (rounded to 1/255), so 20,000 at 3×32×32 take 61 MB. Across processes every bank holds the
    global batch, so that all draw the same.

    Args:
        capacity: how many images are held at most, >= 1.
        shape: (C, H, W).
        device: where they are held.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        if capacity < 1:
            raise ValueError(f"a bank holds at least one image, not {capacity}")
        self.images = torch.empty((capacity, *shape), dtype=torch.uint8, device=device)
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, len(self.images))

    def add(self, images: Tensor) -> None:
        """Stores this process's slice of a batch: images (N, C, H, W) in [0, 1]."""
        rows = gather((images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8))[-len(self.images) :]
        start = self.added % len(self.images)
        head = min(len(rows), len(self.images) - start)
        self.images[start : start + head] = rows[:head]
        self.images[: len(rows) - head] = rows[head:]
        self.added += len(rows)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws n images with replacement for the global batch; returns this process's slice (.., C, H, W), uint8."""
        assert len(self), "the bank is empty"
        rows = torch.randint(len(self), (n,), generator=generator, device=self.images.device)
        return self.images[shard(rows)]

    def state_dict(self) -> dict[str, Any]:
        # A copy: a view would be saved with the places that are still empty.
        return {"images": self.images[: len(self)].clone(), "added": self.added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images[: len(state["images"])] = state["images"]
        self.added = int(state["added"])
