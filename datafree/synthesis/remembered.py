"""What the teacher's norm layers remember of its data, as a term over the batches of a run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from datafree import losses


class Remembered:
    """Distance from the remembered statistics, where earlier batches may stand in for part of this one.

    Args:
        momentum: share of earlier batches in the matched statistics, [0, 1); 0: this batch alone.
        first: weight of the first layer beside the others.
    """

    def __init__(self, momentum: float = 0.0, first: float = 1.0) -> None:
        self.momentum, self.first = momentum, first
        self.average: list[tuple[Tensor, Tensor]] = []
        self.seen: list[losses.Statistics] = []

    def term(self, seen: list[losses.Statistics]) -> Tensor:
        """The term for what one pass showed (`Teacher.look(statistics=True)`), unweighted."""
        self.seen = seen
        device = seen[0].mean.device  # a resumed average comes from the CPU
        self.average = [(mean.to(device), var.to(device)) for mean, var in self.average]
        return losses.batch_norm_statistics(losses.mix_statistics(seen, self.average, self.momentum), self.first)

    def remember(self) -> None:
        """Takes the last batch into the average; once a round, as the Fast release does."""
        if self.momentum and self.seen:
            self.average = losses.update_average(self.average, self.seen, self.momentum)
        self.seen = []

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average = state["average"]
