"""Noisy layers: one product for all of them against each by itself, who serves which rows, new draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.generators import GENERATORS
from datafree.generators.noisy import Noisy, NoisyLinear, slots_of


@pytest.mark.parametrize("slots", [[0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [11, 2, 5, 4], [8, 0, 9]])
def test_each_layer_serves_its_own_slots(slots: list[int]) -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(5, 7, layers=3, rows=4).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(len(slots), 5, dtype=torch.float64)
    wanted = [F.linear(row, layer.weight[s // 4].T, layer.bias[s // 4, 0]) for s, row in zip(slots, x, strict=True)]
    torch.testing.assert_close(layer(x, torch.tensor(slots)), torch.stack(wanted), rtol=0, atol=1e-12)


def test_no_rows_are_left_out_silently() -> None:
    layer = NoisyLinear(5, 7, layers=2, rows=4)
    with pytest.raises(IndexError):
        layer(torch.randn(1, 5), torch.tensor([8]))


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


def test_an_image_of_a_class_stands_in_the_layer_of_its_count() -> None:
    classes = torch.tensor([4, 2, 4, 4, 0, 2])
    # By hand: 4, 2, 0 are firsts; the second 4 and the second 2 go to layer 1, the third 4 to layer 2.
    assert slots_of(classes, 5).tolist() == [0, 1, 5, 10, 2, 6]
    assert slots_of(torch.arange(12) % 4, 4).tolist() == list(range(12))


@pytest.mark.parametrize("batch", [3, 5, 6, 10])
def test_all_layers_learn(batch: int) -> None:
    generator = Noisy(GENERATORS["small"](6, (1, 8, 8), 2), torch.eye(5), 6, -(-batch // 5), min(batch, 5))
    images = generator(torch.arange(batch) % 5)
    assert images.shape == (batch, 1, 8, 8)
    images.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_part_of_a_batch_is_made_as_in_the_whole() -> None:
    torch.manual_seed(2)
    generator = Noisy(GENERATORS["small"](6, (1, 8, 8), 2), torch.eye(3), 6, 2, 3).eval()
    targets = torch.tensor([1, 0, 2, 2])
    slots = generator.slots(targets)
    parts = [generator(part, its) for part, its in zip(targets.chunk(2), slots.chunk(2), strict=True)]
    torch.testing.assert_close(torch.cat(parts), generator(targets))


def test_the_gradient_of_rows_is_not_an_indexs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads add an index's gradient up in no fixed order: one seed would not give the same bits twice."""
    monkeypatch.setattr(NoisyLinear, "forward", lambda self, rows, slots: rows)
    rows = Noisy(nn.Identity(), torch.randn(3, 5), 1, 2, 3)(torch.tensor([2, 0, 2]))
    assert rows.grad_fn is not None
    assert "Embedding" in rows.grad_fn.name()


@pytest.mark.parametrize(
    ("targets", "layers"), [([0, 1, 2, 0, 1, 2], 2), ([1, 1, 1, 1, 1, 1], 6), ([0, 0, 0, 1, 0, 2], 4)]
)
def test_no_two_images_are_alike(targets: list[int], layers: int) -> None:
    torch.manual_seed(2)
    generator = Noisy(GENERATORS["small"](16, (1, 8, 8), 4), torch.eye(3), 16, layers, 3)
    images: Tensor = generator(torch.tensor(targets))
    apart = (images[:, None] - images[None]).abs().amax((2, 3, 4)) + torch.eye(len(images))
    assert apart.min() > 0.01
