"""The entropy of patch similarities: against scipy's kernel density, at its limits, and by finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import gaussian_kde
from torch import Tensor

from datafree import losses


def by_scipy(patches: Tensor, h: float) -> float:
    """Mean over images of the entropy of a density that scipy estimates and integrates."""
    values = []
    for image in patches.numpy():
        rows = image / np.linalg.norm(image, axis=1, keepdims=True)
        pairs = np.array([rows[i] @ rows[j] for i in range(len(rows)) for j in range(i)])
        density = gaussian_kde(pairs, bw_method=h / pairs.std(ddof=1))  # scipy gives it in units of the deviation

        def integrand(x: float, density: gaussian_kde = density) -> float:
            f = density(x)[0]
            return float(-f * np.log(f)) if f > 0 else 0.0

        values.append(quad(integrand, -1 - 8 * h, 1 + 8 * h, limit=400)[0])
    return float(np.mean(values))


@pytest.mark.parametrize("h", [0.05, 0.2])
def test_it_is_the_entropy_of_scipys_density(h: float) -> None:
    blocks = [torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64) + 1]
    wanted = sum(by_scipy(patches, h) for patches in blocks)
    assert losses.patch_similarity_entropy(blocks, h).item() == pytest.approx(wanted, abs=5e-4)


def test_equal_patches_have_the_entropy_of_one_normal_distribution() -> None:
    h = 0.05
    patches = torch.randn(3, 1, 6, dtype=torch.float64).expand(3, 9, 6)
    least = math.log(h * math.sqrt(2 * math.pi * math.e))
    assert losses.patch_similarity_entropy([patches], h).item() == pytest.approx(least, abs=5e-4)
    assert losses.patch_similarity_entropy([torch.randn(3, 9, 6)], h).item() > least + 1


def test_evenly_spread_similarities_come_near_the_greatest_entropy() -> None:
    # Directions in a half circle whose similarities with each other cover [-1, 1].
    angles = torch.linspace(0, math.pi, 60, dtype=torch.float64)
    patches = torch.stack([angles.cos(), angles.sin()], 1)[None]
    value = losses.patch_similarity_entropy([patches]).item()
    assert 0.5 < value < math.log(2 + 8 * 0.05)


def test_length_and_order_of_patches_do_not_matter() -> None:
    patches = torch.randn(2, 6, 4, dtype=torch.float64)
    value = losses.patch_similarity_entropy([patches])
    other = patches[:, torch.randperm(6)] * torch.rand(2, 6, 1, dtype=torch.float64).add(0.5)
    torch.testing.assert_close(losses.patch_similarity_entropy([other]), value)


def test_gradient_by_finite_differences() -> None:
    blocks = [torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *tokens: losses.patch_similarity_entropy(tokens), blocks)


def test_half_types_and_autocast_are_raised() -> None:
    patches = torch.randn(2, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.patch_similarity_entropy([patches]), losses.patch_similarity_entropy([patches]))
        inside = losses.patch_similarity_entropy([patches])
    assert torch.equal(inside, losses.patch_similarity_entropy([patches]))
    half = losses.patch_similarity_entropy([patches.bfloat16()])
    assert half.dtype == torch.float32
    assert half == losses.patch_similarity_entropy([patches.bfloat16().float()])
