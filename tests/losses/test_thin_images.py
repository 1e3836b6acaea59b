"""Roughness of images that are one pixel high or wide: a difference without a pixel counts nothing."""

from __future__ import annotations

import pytest
import torch

from datafree.losses import total_variation


@pytest.mark.parametrize("order", ["l1", "l2"])
def test_an_image_of_one_row_varies_along_it_alone(order: str) -> None:
    # Differences 1, -2: mean |d| = 1.5, norm = sqrt(5).
    row = torch.tensor([[[[0.0, 1.0, -1.0]]]])
    wanted = torch.tensor({"l1": 1.5, "l2": 5**0.5}[order])
    torch.testing.assert_close(total_variation(row, order), wanted)
    torch.testing.assert_close(total_variation(row.mT, order), wanted)


@pytest.mark.parametrize("order", ["l1", "l2"])
def test_a_single_pixel_does_not_vary(order: str) -> None:
    pixel = torch.rand(2, 3, 1, 1, requires_grad=True)
    value = total_variation(pixel, order)
    torch.autograd.backward(value)
    assert value == 0
    assert pixel.grad is not None
    assert not pixel.grad.any()
