"""The images a method has made, and how the student is served from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from datafree.bank import Bank
from datafree.parallel import gather, shard, world_size
from datafree.synthesis.setting import Batch, Setting


class Store:
    """A bank that the student draws from, or the last batch alone, or fresh images at every step.

    Args:
        setting: the method's.
        feed: "bank", "last" or "fresh".
        capacity: images the bank holds.
        eviction: "fifo" or "priority", see `Bank`.

    Attributes:
        last: this process's slice of the last batch; with "last" the whole batch, so that the state that one process
            saves is that of all, and serves any number of them.
        made: images made so far, by all processes.
    """

    def __init__(self, setting: Setting, feed: str, capacity: int, eviction: str = "fifo") -> None:
        self.setting, self.feed = setting, feed
        self.bank = Bank(capacity, setting.domain.shape, setting.device, eviction) if feed == "bank" else None
        self.last: Tensor | None = None
        self.made = 0

    def keep(self, images: Tensor, priority: Tensor | None = None) -> None:
        """Takes this process's slice of a batch of synthesized images (N, C, H, W); none is generated twice."""
        self.last = gather(images.detach().float()) if self.feed == "last" else images.detach()
        self.made += len(images) * world_size()
        if self.bank is not None:
            self.bank.add(self.last, priority)

    @torch.no_grad()
    def sample(self, n: int, fresh: Callable[[int], Tensor]) -> Batch:
        """This process's slice of n images for the student: of the last batch the first ones.

        `fresh(n)` makes them where nothing, or too little, is held.
        """
        if self.bank is not None and len(self.bank):
            return Batch(self.bank.sample(n, self.setting.rng).float().div_(255))
        if self.feed == "last" and self.last is not None and len(self.last) >= n:
            return Batch(shard(self.last[:n]))
        self.made += n
        return Batch(fresh(n).float())

    def state_dict(self) -> dict[str, Any]:
        return {
            "bank": self.bank.state_dict() if self.bank is not None else None,
            "last": self.last,
            "made": self.made,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
        last, self.made = state["last"], int(state["made"])
        self.last = None if last is None else last.to(self.setting.device)
