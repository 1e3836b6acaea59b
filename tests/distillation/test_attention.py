"""Which maps of two networks are compared, and that watching them leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.distillation.attention import common_maps, watch_maps


def network(*widths: int) -> nn.Sequential:
    """A block a width, each of half the size of the one before, and a classifier."""
    blocks, channels = list[nn.Module](), 3
    for width in widths:
        blocks.append(nn.Sequential(nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()))
        channels = width
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


def test_the_last_activations_of_each_size_are_kept() -> None:
    net, x = network(4, 5), torch.rand(2, 3, 16, 8)
    with watch_maps(net, 1.0) as maps:
        net(x)
    assert list(maps) == [(8, 4), (4, 2)], "one pixel after the pooling is no map"
    assert torch.equal(maps[8, 4], net[0](x))
    assert torch.equal(maps[4, 2], net[1](net[0](x)))


def test_nothing_is_watched_without_a_weight_and_after_the_pass() -> None:
    net = network(4)
    with watch_maps(net, 0.0) as maps:
        net(torch.rand(2, 3, 8, 8))
    assert not maps
    with pytest.raises(RuntimeError), watch_maps(net, 1.0):
        net(torch.rand(2, 5, 8, 8))
    assert not any(m._forward_hooks for m in net.modules())


def test_maps_are_paired_by_size() -> None:
    nets, x = (network(4, 6, 5), network(3, 7)), torch.rand(2, 3, 16, 16)
    with watch_maps(nets[0], 1.0) as ours, watch_maps(nets[1], 1.0) as theirs:
        for net in nets:
            net(x)
    student, teacher = common_maps(ours, theirs)
    assert [tuple(m.shape) for m in student] == [(2, 4, 8, 8), (2, 6, 4, 4)]
    assert [tuple(m.shape) for m in teacher] == [(2, 3, 8, 8), (2, 7, 4, 4)]


def test_networks_without_a_size_in_common_are_refused() -> None:
    maps = {(4, 4): torch.zeros(1, 1, 4, 4)}
    with pytest.raises(ValueError, match="--attention: student and teacher have no maps of one size"):
        common_maps(maps, {(5, 5): torch.zeros(1, 1, 5, 5)})
