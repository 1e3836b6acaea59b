"""Which maps of two networks are compared, and that watching them leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.distillation.attention import common_maps, watch_maps
from datafree.models import build_model


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


def test_wide_resnets_give_the_outputs_of_their_three_blocks() -> None:
    """As ZSKT compares them; the next block's first norm gives maps of the size before."""
    net, x = build_model("wrn16_1", shape=(3, 16, 16), classes=2), torch.rand(2, 3, 16, 16)
    with watch_maps(net, 1.0) as maps:
        net(x)
    ends = [block := net.get_submodule("conv1")(x)]
    ends += [block := net.get_submodule(name)(block) for name in ("block1", "block2", "block3")]
    assert list(maps) == [(16, 16), (8, 8), (4, 4)]
    for found, end in zip(maps.values(), ends[1:], strict=True):
        torch.testing.assert_close(found, end)


class Block(nn.Module):
    """Convolutions, of which the last has a stride, or else a pooling at the end."""

    def __init__(self, inputs: int, outputs: int, *, pooled: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())
        self.last = nn.MaxPool2d(2) if pooled else nn.Conv2d(outputs, outputs, 3, stride=2, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.first(maps))
        return out


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_a_block_ends_at_its_pooling_or_where_a_layer_with_weights_makes_maps_smaller(
    pooled: bool, together: bool
) -> None:
    """Whether or not a container holds all blocks: it is no block, since it goes through several sizes."""
    stem, blocks = nn.Conv2d(3, 4, 3, padding=1), [Block(4, 5, pooled=pooled), Block(5, 6, pooled=pooled)]
    net = nn.Sequential(stem, nn.Sequential(*blocks)) if together else nn.Sequential(stem, *blocks)
    begun = stem(x := torch.rand(2, 3, 8, 8))
    with watch_maps(net, 1.0) as maps:
        net(x)
    after = blocks[0](begun)
    wanted = [blocks[0].first(begun), blocks[1].first(after)] if pooled else [begun, after]
    assert list(maps) == [(8, 8), (4, 4), (2, 2)]
    for found, end in zip(maps.values(), [*wanted, blocks[1](after)], strict=True):
        torch.testing.assert_close(found, end)


def test_the_image_itself_is_no_map() -> None:
    net, x = Block(3, 4, pooled=False), torch.rand(2, 3, 8, 8)
    with watch_maps(net, 1.0) as maps:
        net(x)
    torch.testing.assert_close(maps[8, 8], net.first(x))


def test_nothing_is_watched_without_a_weight_and_after_the_pass() -> None:
    net = network(4)
    with watch_maps(net, 0.0) as maps:
        net(torch.rand(2, 3, 8, 8))
    assert not maps
    with pytest.raises(RuntimeError), watch_maps(net, 1.0):
        net(torch.rand(2, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


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
