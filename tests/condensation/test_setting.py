"""Draws of real images."""

from __future__ import annotations

import pytest
import torch

from datafree.condensation.setting import Real


@pytest.mark.parametrize(("wanted", "most", "least"), [(0, 0, 0), (3, 1, 0), (5, 1, 1), (6, 2, 1), (13, 3, 2)])
def test_no_image_of_a_class_comes_again_before_all_were_there(wanted: int, most: int, least: int) -> None:
    """So a batch as large as a small class, or larger, has its mean."""
    x, y = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1), torch.tensor([0, 1, 1, 0, 1, 1, 0, 1])
    real, rng = Real(x, y, 2), torch.Generator().manual_seed(0)
    drawn = (real.of_class(1, wanted, rng) * 255).round().long().flatten()
    assert drawn.shape == (wanted,)
    times = torch.bincount(drawn, minlength=8)
    assert times[y == 0].sum() == 0
    assert (int(times[y == 1].max()), int(times[y == 1].min())) == (most, least)
