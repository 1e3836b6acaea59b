"""ZCA whitening against published code and by its meaning. Vectors: see test_augmentation.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree.data import whitening
from datafree.data.whitening import Whitening

PARITY = np.load(Path(__file__).with_name("augmentation.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[f"zca.{name}"])


@pytest.mark.parametrize("chunk", [4096, 7])
def test_whitening_equals_published_code(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(whitening, "_CHUNK", chunk)
    zca = Whitening.fit(held("in_train"), eps=float(PARITY["zca.par_eps"]))
    torch.testing.assert_close(zca.mean, held("out_mean")[0], **CLOSE)
    torch.testing.assert_close(zca.matrix, held("out_matrix"), **CLOSE)
    torch.testing.assert_close(zca.inverse, held("out_matrix_inv"), **CLOSE)
    white = zca.apply(held("in_test"))
    torch.testing.assert_close(white, held("out_white_test"), **CLOSE)
    torch.testing.assert_close(zca.invert(white), held("out_restored_test"), **CLOSE)
    torch.testing.assert_close(zca.invert(white), held("in_test"), **CLOSE)


def test_white_images_are_uncorrelated() -> None:
    mixed = torch.randn(500, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64) + 3
    images = mixed.reshape(500, 3, 2, 2)
    white = Whitening.fit(images, eps=1e-9).apply(images).flatten(1).numpy()
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(12), atol=1e-6)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)


def test_fewer_images_than_pixels() -> None:
    images = torch.rand(3, 3, 4, 4)
    zca = Whitening.fit(images)
    assert all(part.isfinite().all() for part in zca)
    torch.testing.assert_close(zca.invert(zca.apply(images)), images, rtol=0, atol=1e-5)


def test_float32_and_half_types() -> None:
    images = held("in_train")
    exact = Whitening.fit(images)
    single = Whitening.fit(images.float())
    assert single.matrix.dtype == torch.float32
    torch.testing.assert_close(single.matrix, exact.matrix.float(), rtol=1e-4, atol=1e-5)
    half = images.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        white = single.apply(half)
    assert white.dtype == torch.float32
    torch.testing.assert_close(white, exact.apply(half.double()).float(), rtol=0, atol=1e-5)


def test_gradients_by_finite_differences() -> None:
    zca = Whitening.fit(torch.rand(9, 2, 2, 2, dtype=torch.float64))
    images = torch.rand(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(zca.apply, images)
    assert torch.autograd.gradcheck(zca.invert, images)


def test_impossible_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="two or more"):
        Whitening.fit(torch.rand(1, 3, 2, 2))
    with pytest.raises(ValueError, match="greater than 0"):
        Whitening.fit(torch.rand(4, 3, 2, 2), eps=0)
    with pytest.raises(ValueError, match="images of 16 values, whitening of 12"):
        Whitening.fit(torch.rand(4, 3, 2, 2)).apply(torch.rand(4, 1, 4, 4))
