"""Attention maps of two networks of any make, paired by their size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Maps = dict[tuple[int, int], Tensor]


@contextmanager
def watch_maps(network: nn.Module, wanted: float) -> Iterator[Maps]:
    """The last activations (N, C, H, W) of each map size that passes inside; none if `wanted` is 0.

    Blocks end where the size changes, so these are the ends of a network's blocks, whatever its modules are called.
    """
    maps: Maps = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
            maps[output.shape[2], output.shape[3]] = output

    handles = [m.register_forward_hook(keep) for m in network.modules()] if wanted else []
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def common_maps(student: Maps, teacher: Maps) -> tuple[list[Tensor], list[Tensor]]:
    """The activations of the sizes that both have, pair by pair.

    Raises:
        ValueError: they have none in common.
    """
    sizes = [size for size in student if size in teacher]
    if not sizes:
        raise ValueError("--attention: student and teacher have no maps of one size; leave it out with --attention 0")
    return [student[size] for size in sizes], [teacher[size] for size in sizes]
