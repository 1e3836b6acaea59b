"""The memory's network: sizes, codes, and that it can learn to remember."""

from __future__ import annotations

import pytest
import torch

from datafree.generators import GENERATORS
from datafree.generators.autoencoder import Autoencoder


def autoencoder(shape: tuple[int, int, int], latent: int = 6, width: int = 4) -> Autoencoder:
    return Autoencoder(GENERATORS["small"](latent, shape, width), latent, shape, width)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 24, 40), (3, 65, 33)])
def test_any_shape_goes_in_and_comes_out(shape: tuple[int, int, int]) -> None:
    network = autoencoder(shape)
    images, mean, log_variance = network(torch.rand(4, *shape), torch.randn(4, 6))
    assert images.shape == (4, *shape)
    assert mean.shape == log_variance.shape == (4, 6)
    assert 0 <= images.min() <= images.max() <= 1
    (images.sum() + mean.sum() + log_variance.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_codes_are_drawn_from_their_mean_and_variance() -> None:
    network = autoencoder((1, 8, 8)).eval()
    x, noise = torch.rand(3, 1, 8, 8), torch.randn(3, 6)
    images, mean, log_variance = network(x, noise)
    torch.testing.assert_close(images, network.decode(mean + log_variance.exp().sqrt() * noise))


def test_it_remembers_what_it_is_trained_on() -> None:
    """Eight patterns of blocks come back much closer than their mean."""
    torch.manual_seed(0)
    x = torch.rand(8, 1, 2, 2).round().repeat_interleave(4, 2).repeat_interleave(4, 3)
    network = autoencoder((1, 8, 8), width=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(80):
        error = (network(x, torch.zeros(8, 6))[0] - x).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error.item() < 0.3 * (x - x.mean(0)).abs().mean().item()
