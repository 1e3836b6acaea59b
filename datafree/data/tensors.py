"""Batches of images: scale, iteration, and the usual crop-and-flip augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1], any shape."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images of type {images.dtype} where uint8, 0 to 255, is wanted")
    return images.to(torch.float32).div_(255)


def batches(x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive (images, labels) of at most `batch_size`, in order, each image once. Nothing is copied."""
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: give 1 or more")
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} labels: give one label an image")
    for start in range(0, len(x), batch_size):
        yield x[start : start + batch_size], y[start : start + batch_size]


Pad = int | tuple[int, int]  # pixels on all sides; or above and below, left and right


class Crops(NamedTuple):
    """One crop and flip an image: offsets `top` and `left` in 0..2*pad, int64 (N,); `mirrored`, bool (N,)."""

    top: Tensor
    left: Tensor
    mirrored: Tensor


def usual_pad(shape: Sequence[int]) -> tuple[int, int]:
    """An eighth of the height and of the width of images (..., H, W), at least a pixel: 4 at 32 x 32."""
    height, width = shape[-2:]
    return max(1, height // 8), max(1, width // 8)


def draw_crops(count: int, generator: torch.Generator, *, pad: Pad, flip: bool) -> Crops:
    """Draw crops for `count` images from `generator`, on its device.

    Every offset is equally likely. With `flip`, half of the images are mirrored. The generator moves on by the same
    amount with and without `flip`.
    """
    down, right = _sides(pad)
    # One draw where both ways are alike, so that square images keep their numbers.
    drawn = [(down, 2)] if down == right else [(down, 1), (right, 1)]
    offsets = torch.cat(
        [torch.randint(0, 2 * p + 1, (n, count), generator=generator, device=generator.device) for p, n in drawn]
    )
    mirrored = torch.rand(count, generator=generator, device=generator.device) < 0.5
    return Crops(offsets[0], offsets[1], mirrored if flip else torch.zeros_like(mirrored))


def _sides(pad: Pad) -> tuple[int, int]:
    return pad if isinstance(pad, tuple) else (pad, pad)


def crop_and_flip(images: Tensor, crops: Crops, *, pad: Pad) -> Tensor:
    """Pad each image (N, C, H, W) with `pad` zeros on its sides, cut H x W out at its offset, then mirror it or not.

    Any number type, any device, differentiable. The result is a new contiguous tensor.
    """
    n, channels, height, width = images.shape
    crops = Crops(*(part.to(images.device) for part in crops))
    above, left = _sides(pad)
    padded = F.pad(images, (left, left, above, above))
    down = torch.arange(height, device=images.device)
    right = torch.arange(width, device=images.device)
    rows = crops.top[:, None] + down
    columns = crops.left[:, None] + torch.where(crops.mirrored[:, None], width - 1 - right, right)
    # One gather over the flattened planes, its index shared by the channels: on a CPU 1.4 to 2.4 times faster than
    # unfold + where, and 2.6 to 6 times faster than advanced indexing of every pixel (batches of 8 to 256).
    index = rows[:, :, None] * (width + 2 * left) + columns[:, None, :]
    planes = padded.reshape(n, channels, -1)
    picked = planes.gather(2, index.reshape(n, 1, -1).expand(n, channels, -1))
    return picked.reshape(n, channels, height, width)


def augment(images: Tensor, generator: torch.Generator, *, pad: Pad, flip: bool) -> Tensor:
    """The usual augmentation of small images, drawn anew for each image of (N, C, H, W).

    A random crop of the original size after padding with `pad` zeros (He et al. 2016, sec. 4.2, use 4), and with `flip`
    a horizontal flip with probability one half. Zero is black for images in [0, 1] or 0..255; images that are
    normalised already would be padded with grey.
    """
    if min(_sides(pad)) < 0:
        raise ValueError(f"padding {pad}: give 0 or more")
    return crop_and_flip(images, draw_crops(len(images), generator, pad=pad, flip=flip), pad=pad)
