"""Attention maps of two networks of any make, paired by their size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datafree.models.build import in_evaluation
from datafree.parallel import forked

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


@torch.no_grad()
def check_maps(student: nn.Module, teacher: nn.Module, image: Tensor) -> None:
    """Shows both networks an image (1, C, H, W), in evaluation mode. They, and what is drawn later, stay as they are.

    Each may lie on a device of its own: a student is moved to the run's once all is known to fit.

    Raises:
        ValueError: they have no maps of one size.
    """
    with (
        forked(image.device),
        in_evaluation(student, teacher),
        watch_maps(student, 1.0) as ours,
        watch_maps(teacher, 1.0) as theirs,
    ):
        for network in (student, teacher):
            network(image.to(next(network.parameters(), image).device))
    common_maps(ours, theirs)
