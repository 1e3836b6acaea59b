"""Attention maps of two networks of any make, paired by their size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datafree.models.build import in_evaluation
from datafree.parallel import forked

Size = tuple[int, int]
Maps = dict[Size, Tensor]


@contextmanager
def watch_maps(network: nn.Module, wanted: float) -> Iterator[Maps]:
    """The activations (N, C, H, W) at the end of each map size's blocks that pass inside; none if `wanted` is 0.

    Blocks end where the size changes. Where a pooling changes it, what is kept is the map that it is handed; where a
    layer with weights does, what is handed to the outermost module that ends in the next size (inside of it others may
    still give maps of the size before: a WRN's first norm, a bottleneck's first convolution). Where neither is seen, as
    at the end of a network, it is the output of the last module that has others in it, or of the last one.
    """
    maps: Maps = {}
    blocks: set[Size] = set()  # sizes of which a module with others in it has given a map
    pooled: set[Size] = set()
    later: set[nn.Module] = set()  # modules that were handed a map of a size that had been given before

    def enter(module: nn.Module, inputs: Any) -> None:
        (later.add if inputs and _is_map(inputs[0]) and _size(inputs[0]) in maps else later.discard)(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if not _is_map(output):
            return
        size, whole = _size(output), next(module.children(), None) is not None
        if module in later and _follows(size, before := _size(inputs[0]), list(maps)) and before not in pooled:
            maps[before] = inputs[0]
            if not whole and next(module.parameters(), None) is None:
                pooled.add(before)
        if whole or size not in blocks:
            maps[size] = output
        if whole:
            blocks.add(size)

    handles = [m.register_forward_pre_hook(enter) for m in network.modules()] if wanted else []
    handles += [m.register_forward_hook(leave) for m in network.modules()] if wanted else []
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _is_map(held: Any) -> bool:
    return isinstance(held, Tensor) and held.dim() == 4 and min(held.shape[2:]) > 1


def _size(maps: Tensor) -> Size:
    return maps.shape[2], maps.shape[3]


def _follows(size: Size, before: Size, sizes: list[Size]) -> bool:
    """Whether `size` comes right after `before` among the sizes so far. A container of all stages skips some."""
    return before in sizes and size != before and [*sizes, size].index(size) == sizes.index(before) + 1


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
