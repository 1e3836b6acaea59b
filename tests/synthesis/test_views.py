"""Parts of images, enlarged: against bilinear interpolation by hand, and the boxes against what they should be."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree.parallel import shard
from datafree.synthesis.views import RATIOS, Boxes, draw_boxes, local_view, resized_crops


def boxes(*rows: tuple[float, float, float, float, bool]) -> Boxes:
    """Of (centre x, centre y, width, height, mirrored)."""
    table = torch.tensor([row[:4] for row in rows], dtype=torch.float64)
    return Boxes(table[:, :2], table[:, 2:], torch.tensor([row[4] for row in rows]))


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The image (C, H, W) at a place in pixels, whose centres are at whole numbers; cut to the outermost centres."""
    height, width = image.shape[1:]
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    u, v = x - left, y - top
    upper = (1 - u) * image[:, top, left] + u * image[:, top, left + 1]
    lower = (1 - u) * image[:, top + 1, left] + u * image[:, top + 1, left + 1]
    return np.asarray((1 - v) * upper + v * lower)


@pytest.mark.parametrize("size", [(5, 7), (8, 8)])
def test_a_box_is_enlarged_as_by_hand(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    rows = ((0.3, -0.2, 0.5, 0.6, False), (-0.4, 0.1, 0.6, 0.9, True))
    parts = resized_crops(images, boxes(*rows))
    height, width = size
    for image, part, (cx, cy, w, h, mirrored) in zip(images.numpy(), parts.numpy(), rows, strict=True):
        for i in range(height):
            for j in range(width):
                across = (j + 0.5) / width  # share of the box's width
                across = 1 - across if mirrored else across
                x = ((cx - w + 2 * w * across) + 1) / 2 * width - 0.5
                y = ((cy - h + 2 * h * (i + 0.5) / height) + 1) / 2 * height - 0.5
                np.testing.assert_allclose(part[:, i, j], bilinear(image, x, y), rtol=0, atol=1e-12)


def test_the_whole_box_is_the_image_or_its_mirror_image() -> None:
    images = torch.rand(2, 1, 6, 9)
    parts = resized_crops(images, boxes((0, 0, 1, 1, False), (0, 0, 1, 1, True)))
    torch.testing.assert_close(parts[0], images[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(parts[1], images[1].flip(2), rtol=0, atol=1e-6)
    assert parts.is_contiguous(memory_format=torch.channels_last)


def test_gradients_by_finite_differences() -> None:
    images = torch.rand(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    where = boxes((0.1, 0.2, 0.7, 0.5, False), (-0.3, 0.0, 0.5, 0.9, True))

    def view(x: Tensor) -> Tensor:
        return resized_crops(x, where)

    assert torch.autograd.gradcheck(view, images)


@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_lie_inside_and_have_the_areas_and_ratios_asked_for(shape: tuple[int, int], flip: bool) -> None:
    drawn = draw_boxes(4000, torch.Generator().manual_seed(1), shape=shape, flip=flip)
    assert (drawn.centre.abs() + drawn.size <= 1 + 1e-6).all()
    assert (drawn.size <= 1).all()
    assert drawn.mirrored.float().mean().item() == pytest.approx(0.5 if flip else 0.0, abs=0.03)
    width, height = drawn.size[:, 0] * shape[1], drawn.size[:, 1] * shape[0]
    uncut = (drawn.size < 1).all(1)
    area, ratio = (width * height / math.prod(shape))[uncut], (width / height)[uncut]
    assert area.min() >= 0.25 - 1e-6
    assert ratio.min() >= RATIOS[0] - 1e-5
    assert ratio.max() <= RATIOS[1] + 1e-5
    small = draw_boxes(4000, torch.Generator().manual_seed(1), shape=shape, area=(0.1, 0.2), flip=flip)
    shares = small.size.prod(1)
    # Uniform: mean 0.15, deviation 0.1 / sqrt(12) = 0.029; a ratio of 4/3 does not reach the border at such areas.
    assert shares.mean().item() == pytest.approx(0.15, abs=0.002)
    assert shares.std().item() == pytest.approx(0.0289, abs=0.002)


def test_a_local_view_is_drawn_from_the_generator_it_is_given() -> None:
    images = torch.rand(6, 3, 8, 8)
    one, two, other = (local_view(images, torch.Generator().manual_seed(seed), flip=True) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    assert one.min() >= 0
    assert one.max() <= 1


@pytest.mark.parametrize("flip", [False, True])
def test_a_local_view_mirrors_only_where_labels_allow(flip: bool) -> None:
    brighter_to_the_right = torch.linspace(0, 1, 8).expand(200, 1, 8, 8)
    views = local_view(brighter_to_the_right, torch.Generator().manual_seed(1), flip=flip)
    mirrored = views[:, 0, 0, 0] > views[:, 0, 0, -1]
    assert mirrored.float().mean().item() == pytest.approx(0.5 if flip else 0.0, abs=0.15)


def test_two_processes_have_the_local_views_of_one(in_two: Callable[[Callable[[], Tensor]], list[Tensor]]) -> None:
    images = torch.rand(6, 3, 8, 8)

    def work() -> Tensor:
        return local_view(shard(images), torch.Generator().manual_seed(1), flip=True)

    assert torch.equal(torch.cat(in_two(work)), work())


def test_autocast_moves_no_place() -> None:
    images, where = torch.rand(2, 3, 32, 32), boxes((0.31, -0.21, 0.53, 0.67, False), (-0.4, 0.1, 0.6, 0.9, True))
    wanted = resized_crops(images, where)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resized_crops(images, where), wanted)
