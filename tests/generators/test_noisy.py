"""Noisy layers: one product for all of them against each by itself, who serves which rows, new draws."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from datafree.generators import GENERATORS
from datafree.generators.noisy import Noisy, NoisyLinear


@pytest.mark.parametrize("n", [1, 3, 4, 10, 12])
def test_each_layer_serves_its_own_rows(n: int) -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(5, 7, layers=3, rows=4).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(n, 5, dtype=torch.float64)
    wanted = [F.linear(row, layer.weight[i // 4].T, layer.bias[i // 4, 0]) for i, row in enumerate(x)]
    torch.testing.assert_close(layer(x), torch.stack(wanted), rtol=0, atol=1e-12)


def test_part_of_a_batch_is_served_as_in_the_whole() -> None:
    layer, x = NoisyLinear(5, 7, layers=3, rows=4).double(), torch.randn(12, 5, dtype=torch.float64)
    parts = [layer(x[first : first + 3], first) for first in (0, 3, 6, 9)]
    torch.testing.assert_close(torch.cat(parts), layer(x), rtol=0, atol=1e-12)


def test_no_rows_are_left_out_silently() -> None:
    layer = NoisyLinear(5, 7, layers=2, rows=4)
    with pytest.raises(AssertionError, match="more rows"):
        layer(torch.randn(9, 5))
    with pytest.raises(AssertionError, match="more rows"):
        layer(torch.randn(4, 5), 5)


def test_layers_are_drawn_from_the_standard_normal_without_bias() -> None:
    torch.manual_seed(1)
    layer = NoisyLinear(40, 50, layers=5, rows=2)
    before = layer.weight.detach().clone()
    torch.nn.init.ones_(layer.bias)
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight)
    # 10,000 draws: mean within 4 / sqrt(10,000), variance within 4 sqrt(2 / 10,000).
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.04)
    assert layer.weight.var().item() == pytest.approx(1, abs=0.06)
    assert not layer.bias.any()


@pytest.mark.parametrize(("batch", "layers"), [(3, 1), (5, 1), (6, 2), (10, 2)])
def test_a_batch_has_a_layer_for_each_set_of_classes(batch: int, layers: int) -> None:
    generator = Noisy(GENERATORS["small"](6, (1, 8, 8), 2), torch.eye(5), 6, batch)
    assert generator.noise.weight.shape == (layers, 5, 6)
    targets = torch.arange(batch) % 5
    images = generator(targets)
    assert images.shape == (batch, 1, 8, 8)
    images.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_one_class_looks_different_in_every_layer() -> None:
    torch.manual_seed(2)
    generator = Noisy(GENERATORS["small"](16, (1, 8, 8), 4), torch.eye(3), 16, 6)
    images = generator(torch.tensor([0, 1, 2, 0, 1, 2]))
    assert (images[:3] - images[3:]).abs().amax((1, 2, 3)).min() > 0.01
