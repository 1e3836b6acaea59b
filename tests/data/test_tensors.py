from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datafree.data import augment, batches, crop_and_flip, draw_crops, to_float
from datafree.data.tensors import Crops, usual_pad


def one_by_one(images: Tensor, crops: Crops, pad: int) -> Tensor:
    """The oracle: each image on its own, by slicing."""
    height, width = images.shape[2:]
    results = []
    for image, top, left, mirrored in zip(images, *(part.tolist() for part in crops), strict=True):
        canvas = image.new_zeros((image.shape[0], height + 2 * pad, width + 2 * pad))
        canvas[:, pad : pad + height, pad : pad + width] = image
        cut = canvas[:, top : top + height, left : left + width]
        results.append(cut.flip(2) if mirrored else cut)
    return torch.stack(results)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("shape", "pad"), [((3, 8, 8), 4), ((1, 5, 9), 2), ((2, 7, 3), 1), ((3, 6, 6), 0)])
@pytest.mark.parametrize("flip", [True, False])
def test_augment_equals_the_loop(dtype: torch.dtype, shape: tuple[int, int, int], pad: int, flip: bool) -> None:
    images = torch.randint(0, 256, (64, *shape)).to(dtype)
    crops = draw_crops(64, torch.Generator().manual_seed(1), pad=pad, flip=flip)
    result = augment(images, torch.Generator().manual_seed(1), pad=pad, flip=flip)
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert torch.equal(result, one_by_one(images, crops, pad))
    assert torch.equal(
        augment(images.to(memory_format=torch.channels_last), torch.Generator().manual_seed(1), pad=pad, flip=flip),
        result,
    )


def test_each_way_has_its_own_padding() -> None:
    images = torch.rand(300, 1, 8, 64) + 0.1
    crops = draw_crops(300, torch.Generator().manual_seed(0), pad=(1, 8), flip=False)
    assert (set(crops.top.tolist()), set(crops.left.tolist())) == ({0, 1, 2}, set(range(17)))
    found = crop_and_flip(images, crops, pad=(1, 8))
    canvas = torch.zeros(300, 1, 10, 80)
    canvas[:, :, 1:9, 8:72] = images
    rows = zip(canvas, crops.top.tolist(), crops.left.tolist(), strict=True)
    assert torch.equal(found, torch.stack([each[:, y : y + 8, x : x + 64] for each, y, x in rows]))
    assert usual_pad(images.shape) == (1, 8)


def test_without_padding_and_flip_nothing_changes() -> None:
    images = torch.rand(4, 3, 5, 5)
    assert torch.equal(augment(images, torch.Generator().manual_seed(0), pad=0, flip=False), images)


def test_draws_are_uniform() -> None:
    crops = draw_crops(90_000, torch.Generator().manual_seed(0), pad=1, flip=True)
    # 18 equally likely outcomes of 5,000 each; one standard deviation is 69.
    outcome = (crops.top * 3 + crops.left) * 2 + crops.mirrored
    assert (torch.bincount(outcome, minlength=18) - 5000).abs().max() < 5 * 69


def test_draws_come_from_the_generator_alone_and_flip_does_not_move_it() -> None:
    before = torch.get_rng_state()
    a, b = (torch.Generator().manual_seed(7) for _ in range(2))
    first, second = draw_crops(10, a, pad=2, flip=True), draw_crops(10, b, pad=2, flip=False)
    assert torch.equal(first.top, second.top)
    assert torch.equal(first.left, second.left)
    assert not second.mirrored.any()
    assert torch.equal(a.get_state(), b.get_state())
    assert torch.equal(torch.get_rng_state(), before)


def test_slices_of_the_draws_are_the_slices_of_the_batch() -> None:
    # What each of several processes does: draw for the global batch, take its own part.
    images = torch.rand(8, 3, 6, 6)
    crops = draw_crops(8, torch.Generator().manual_seed(0), pad=2, flip=True)
    mine = Crops(*(part[4:] for part in crops))
    assert torch.equal(crop_and_flip(images[4:], mine, pad=2), crop_and_flip(images, crops, pad=2)[4:])


def test_augment_is_differentiable() -> None:
    images = torch.rand(4, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    crops = draw_crops(4, torch.Generator().manual_seed(0), pad=2, flip=True)
    assert torch.autograd.gradcheck(lambda x: crop_and_flip(x, crops, pad=2), images)


def test_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        augment(torch.rand(1, 1, 4, 4), torch.Generator(), pad=-1, flip=False)


def test_to_float() -> None:
    values = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert values.dtype == torch.float32
    assert torch.equal(values, torch.tensor([0.0, 0.2, 1.0]))
    with pytest.raises(ValueError, match="uint8"):
        to_float(torch.rand(2))


def test_batches_cover_everything_once_in_order() -> None:
    x, y = torch.arange(7), torch.arange(7) * 10
    parts = list(batches(x, y, 3))
    assert [len(part[0]) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part[0] for part in parts]), x)
    assert torch.equal(torch.cat([part[1] for part in parts]), y)
    with pytest.raises(ValueError, match="give 1 or more"):
        next(batches(x, y, 0))
    with pytest.raises(ValueError, match="7 images and 6 labels"):
        next(batches(x, y[:6], 2))
