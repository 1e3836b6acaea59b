"""Multi-formation against published code and by hand. Vectors: see test_augmentation.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree.data.formation import decode, decoded_labels, encode

PARITY = np.load(Path(__file__).with_name("augmentation.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[f"formation.{name}"])


def test_decoding_equals_published_code() -> None:
    images = held("in_images").requires_grad_()
    large = decode(images, 2)
    torch.testing.assert_close(large, held("out_decoded_f2"), **CLOSE)
    (gradient,) = torch.autograd.grad((large * held("in_cotangent_f2")).sum(), images)
    torch.testing.assert_close(gradient, held("grad_images_f2"), **CLOSE)
    assert torch.equal(decoded_labels(held("in_target"), 2), held("out_target_f2"))
    # 8 does not divide by 3: patches of 3, filled up with 0.5.
    torch.testing.assert_close(decode(images, 3), held("out_decoded_f3"), **CLOSE)
    assert torch.equal(decoded_labels(held("in_target"), 3), held("out_target_f3"))


def test_a_factor_of_one_changes_nothing() -> None:
    images, labels = torch.rand(3, 2, 5, 4), torch.arange(3)
    assert torch.equal(decode(images, 1), images)
    assert torch.equal(encode(images, 1), images)
    assert torch.equal(decoded_labels(labels, 1), labels)


def test_soft_labels_keep_their_columns() -> None:
    labels = torch.rand(2, 3)
    assert torch.equal(decoded_labels(labels, 2), torch.stack([labels] * 4).flatten(0, 1))


def test_a_mosaic_by_hand() -> None:
    # Eight images of one colour each: mosaic m holds images m, 2 + m, 4 + m and 6 + m, by rows.
    images = (torch.arange(8.0) / 8)[:, None, None, None].expand(-1, 1, 4, 6)
    mosaics = encode(images, 2)
    corners = torch.stack([mosaics[:, 0, y, x] for y in (0, 3) for x in (0, 5)], 1)
    assert torch.equal(corners, torch.tensor([[0.0, 2, 4, 6], [1, 3, 5, 7]]) / 8)
    assert torch.equal(decode(mosaics, 2), images)


def smooth(count: int, height: int, width: int) -> Tensor:
    y = torch.linspace(0, 3, height, dtype=torch.float64)[:, None]
    x = torch.linspace(0, 3, width, dtype=torch.float64)
    phase = torch.linspace(0, 2, count, dtype=torch.float64)[:, None, None]
    return (0.5 + 0.4 * torch.sin(x + phase) * torch.cos(y - phase))[:, None]


@pytest.mark.parametrize(("factor", "size"), [(2, (28, 28)), (2, (32, 20)), (3, (30, 36)), (4, (32, 32))])
def test_decoding_gives_smooth_images_back(factor: int, size: tuple[int, int]) -> None:
    images = smooth(2 * factor * factor, *size)
    error = (decode(encode(images, factor), factor) - images).abs()
    # Curvature 0.4 along either axis. Straight lines over a small pixel h are off by h^2 / 8 of it, means over two
    # pixels u before by u^2 / 8. At the edges the value of a small pixel's middle, h / 2 inside, stands for all of it.
    u = 3 / (min(size) - 1)
    inside = 2 * 0.4 * ((factor * u) ** 2 + u**2) / 8
    assert error[:, :, factor:-factor, factor:-factor].max() < inside
    assert error.max() < inside + 2 * 0.4 * factor * u / 2


@pytest.mark.parametrize("size", [(28, 28), (9, 13)])
def test_where_the_size_does_not_divide_the_margins_alone_are_lost(size: tuple[int, int]) -> None:
    images = torch.rand(18, 1, 1, 1, dtype=torch.float64).expand(-1, 2, *size)
    mosaics = encode(images, 3)
    assert mosaics.shape == (2, 2, *size)
    back = decode(mosaics, 3)
    # The last patch in a row or column keeps `patch - lost` of its `patch` pixels.
    whole = []
    for side in size:
        patch = -(-side // 3)
        source = (torch.arange(side).double() + 0.5) * patch / side - 0.5
        last = source <= patch - (3 * patch - side) - 1 + 1e-9
        whole.append(torch.stack([torch.ones_like(last), torch.ones_like(last), last]))
    rows, columns = whole
    same = (rows[:, None, :, None] & columns[None, :, None, :]).reshape(9, 1, *size).repeat_interleave(2, 0)
    torch.testing.assert_close(torch.where(same, back, images), images, **CLOSE)
    assert (same[-1].all() or (back != images)[-1].any()).item()


def test_gradients_by_finite_differences() -> None:
    images = torch.rand(4, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: decode(x, 2), images)
    assert torch.autograd.gradcheck(lambda x: encode(x, 2), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_and_memory_format_stay(dtype: torch.dtype) -> None:
    images = torch.rand(8, 3, 8, 8)
    changes: list[Callable[[Tensor, int], Tensor]] = [decode, encode]
    for change in changes:
        wanted = change(images, 2)
        plain, last = change(images.to(dtype), 2), change(images.to(dtype, memory_format=torch.channels_last), 2)
        assert plain.dtype == last.dtype == dtype
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
        for result in (plain, last):
            torch.testing.assert_close(result.float(), wanted, rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_impossible_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="factor 0"):
        decode(torch.rand(1, 1, 4, 4), 0)
    with pytest.raises(ValueError, match="factor 5 for images of 4 x 6"):
        encode(torch.rand(25, 1, 4, 6), 5)
    with pytest.raises(ValueError, match="give a multiple of 4"):
        encode(torch.rand(6, 1, 4, 4), 2)
    with pytest.raises(ValueError, match="factor 0"):
        decoded_labels(torch.arange(2), 0)
