"""ZeroQ's distance of moments: by hand, at zero, and by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datafree import losses
from datafree.losses import Statistics
from datafree.parallel import channel_statistics


def test_it_is_the_sum_of_squared_distances_of_means_and_deviations() -> None:
    layers, wanted = [], 0.0
    for channels in (3, 5):
        x = torch.randn(4, channels, 6, 6, dtype=torch.float64)
        mean, var = torch.randn(channels, dtype=torch.float64), torch.rand(channels, dtype=torch.float64) + 0.5
        layers.append(Statistics(*channel_statistics(x), mean, var))
        rows = x.numpy().transpose(1, 0, 2, 3).reshape(channels, -1)
        wanted += ((rows.mean(1) - mean.numpy()) ** 2).sum()
        wanted += ((np.sqrt(rows.var(1) + 1e-6) - np.sqrt(var.numpy() + 1e-6)) ** 2).sum()
    assert losses.squared_moments(layers).item() == pytest.approx(wanted, rel=1e-12)


def test_it_is_zero_where_all_agrees_and_only_there() -> None:
    mean, var = torch.randn(4), torch.rand(4)
    assert losses.squared_moments([Statistics(mean, var, mean, var)]) == 0
    assert losses.squared_moments([Statistics(mean + 0.1, var, mean, var)]) > 0
    assert losses.squared_moments([Statistics(mean, var * 2, mean, var)]) > 0


def test_gradient_by_finite_differences_and_at_no_variance() -> None:
    given = [torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    kept = torch.rand(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, v: losses.squared_moments([Statistics(m, v, *kept)]), given)
    flat = torch.zeros(3, requires_grad=True)
    losses.squared_moments([Statistics(torch.zeros(3), flat, *kept.float())]).backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None
    assert flat.grad.isfinite().all()
