"""Grids and inlined pictures: pixels and sizes against values derived by hand."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datafree import pictures
from datafree.pictures import GAP, GROUND, WIDEST, data_uri, grid, png_bytes


def test_grid_puts_each_pixel_where_it_belongs():
    # Two grey 1x2 images, scaled by 3: each is 6 wide and 3 high, at left GAP and 2 GAP + 6, top GAP.
    images = torch.tensor([[[[0.0, 1.0]]], [[[0.2, 0.6]]]])
    picture = np.asarray(grid(images, scale=3))
    assert picture.shape == (GAP + 3 + 2 * GAP, GAP + 2 * (6 + GAP), 3)
    for left, value in ((GAP, 0), (GAP + 3, 255), (2 * GAP + 6, 51), (2 * GAP + 9, 153)):
        assert (picture[GAP : GAP + 3, left : left + 3] == value).all()
    assert (picture[:GAP] == GROUND).all()
    assert (picture[:, GAP + 6 : 2 * GAP + 6] == GROUND).all()


def test_grid_fills_rows_first():
    images = torch.arange(5).view(5, 1, 1, 1) / 5
    picture = np.asarray(grid(images, columns=3, scale=1))
    row, column = 1 + 2 * GAP, 1 + GAP
    seen = [picture[GAP + i // 3 * row, GAP + i % 3 * column, 0] for i in range(5)]
    assert seen == [0, 51, 102, 153, 204]
    assert tuple(picture[GAP + row, GAP + 2 * column]) == GROUND


@pytest.mark.parametrize(
    ("channels", "pixel"),
    [
        ([0.2], (51, 51, 51)),
        ([0.2, 0.6], (102, 102, 102)),  # the mean, 0.4
        ([0.2, 0.4, 0.6], (51, 102, 153)),
        ([0.2, 0.4, 0.6, 0.8, 1.0], (51, 102, 153)),
        ([-3.0, float("nan"), float("inf")], (0, 0, 255)),
    ],
)
def test_grid_turns_channels_into_colour(channels: list[float], pixel: tuple[int, int, int]):
    images = torch.tensor(channels).view(1, -1, 1, 1)
    assert grid(images, scale=1).getpixel((GAP, GAP)) == pixel


@pytest.mark.parametrize(("side", "cell"), [(8, 64), (28, 56), (32, 64), (48, 48), (64, 64), (100, 100), (224, 128)])
def test_grid_scales_an_image_to_about_64_pixels(side: int, cell: int):
    assert grid(torch.rand(1, 3, side, side)).size == (cell + 2 * GAP, cell + 3 * GAP)


def test_grid_averages_large_images_down():
    board = (torch.arange(256).view(-1, 1) + torch.arange(256)) % 2  # black and white pixels in turn: grey
    picture = np.asarray(grid(board[None, None].float()))
    assert (picture[GAP : GAP + 128, GAP : GAP + 128] == 128).all()


def test_grid_takes_half_types_and_tensors_with_a_gradient():
    images = torch.rand(2, 3, 8, 8)
    plain = grid(images.bfloat16().float())
    assert np.array_equal(np.asarray(grid(images.bfloat16().requires_grad_())), np.asarray(plain))


def test_captions_are_drawn_below_and_never_widen_a_cell_without_limit():
    images = torch.zeros(2, 1, 8, 8)
    bare, named = grid(images), grid(images, ["cat 98 %", ""])
    assert named.height > bare.height
    below = np.asarray(named)[GAP + 64 :]
    assert (below[:, : named.width // 2] != GROUND).any()
    assert (below[:, named.width // 2 :] == GROUND).all()
    assert grid(images, ["w" * 500, "a\nb\nc"]).width <= GAP + 2 * (WIDEST + GAP)


@pytest.mark.parametrize("label", ["Ankle boot 98 %", "an uncommonly long name of a class 98 %", "w" * 90 + " 98 %"])
def test_a_long_caption_keeps_its_confidence(label: str):
    font = pictures._font()
    lines = pictures._lines(label, WIDEST)
    assert len(lines) == 2
    assert lines[1].endswith("98 %")
    assert all(font.getlength(line) <= WIDEST for line in lines)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.rand(3, 8, 8), {}, "N, C, H, W"),
        (torch.rand(0, 3, 8, 8), {}, "N, C, H, W"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}, "floating-point"),
        (torch.rand(2, 3, 8, 8), {"labels": ["one"]}, "give 2 labels, not 1"),
        (torch.rand(2, 3, 8, 8), {"columns": 0}, "at least 1"),
        (torch.rand(2, 3, 8, 8), {"scale": 0}, "at least 1"),
    ],
)
def test_grid_refuses(images: torch.Tensor, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        grid(images, **options)


def test_png_bytes_hold_the_same_pixels_and_are_reproducible():
    picture = grid(torch.rand(3, 3, 8, 8), ["a", "b", "c"])
    data = png_bytes(picture)
    assert data == png_bytes(picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))


def test_data_uri_keeps_a_small_file_as_it_is():
    data = png_bytes(Image.new("RGB", (7, 5)))
    address, width, height = data_uri(data)
    kind, _, text = address.partition(",")
    assert (kind, width, height) == ("data:image/png;base64", 7, 5)
    assert base64.b64decode(text) == data


def test_data_uri_shrinks_a_large_file():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    address, width, height = data_uri(png_bytes(Image.fromarray(noise)), limit=40_000)
    kind, _, text = address.partition(",")
    data = base64.b64decode(text)
    assert kind == "data:image/jpeg;base64"
    assert len(data) <= 40_000
    assert Image.open(io.BytesIO(data)).size == (width, height)
    assert width / height == pytest.approx(4 / 3, abs=0.02)


@pytest.mark.parametrize("keep", [0, 4, 30, 60, -40])
def test_data_uri_refuses_a_torn_picture(keep: int):
    data = png_bytes(grid(torch.rand(4, 3, 8, 8)))
    with pytest.raises(ValueError, match="no complete picture"):
        data_uri(data[:keep])
