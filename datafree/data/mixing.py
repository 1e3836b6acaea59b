"""Images cut from one another and out of order: CutMix, shuffled patches, random crops at a new size."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixed(NamedTuple):
    """CutMix of a batch.

    images: (N, C, H, W).
    order: int64 (N,); image i holds a box of image order[i].
    share: of its own pixels that an image keeps, in [0, 1]; the weight of its own label.
    """

    images: Tensor
    order: Tensor
    share: float


def cutmix(images: Tensor, generator: torch.Generator) -> Mixed:
    """A box of each image (N, C, H, W) replaced by another's, one box and one order for the whole batch.

    Yun et al. 2019, alg. 1, with Beta(1, 1), which is uniform: the box has the part 1 - lambda of the area before it is
    cut off at the edges; its centre is any pixel. `images` is left as it is.
    """
    count, _, height, width = images.shape
    device = generator.device
    order = torch.randperm(count, generator=generator, device=device).to(images.device)
    part, middle, centre = torch.rand(3, generator=generator, device=device).tolist()
    side = (1 - part) ** 0.5
    top, bottom = _span(height, side, middle)
    left, right = _span(width, side, centre)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
    return Mixed(mixed, order, 1 - (bottom - top) * (right - left) / (height * width))


def _span(size: int, part: float, place: float) -> tuple[int, int]:
    half, centre = int(size * part) // 2, int(size * place)
    return max(centre - half, 0), min(centre + half, size)


def mix_labels(labels: Tensor, order: Tensor, share: float) -> Tensor:
    """Probabilities (N, classes) of images mixed as `Mixed` says."""
    return torch.lerp(labels[order], labels, share)


def shuffle_patches(images: Tensor, factor: int, generator: torch.Generator) -> Tensor:
    """Columns of patches in a random order, then rows of them, drawn for each image (N, C, H, W).

    Sun et al. 2024 (RDED), release: `factor` strips along each axis; the last takes the pixels that are left over.
    """
    if factor < 1:
        raise ValueError(f"{factor} patches a side: give 1 or more")
    if factor == 1:
        return images
    count, channels, height, width = images.shape
    columns = _strips(count, width, factor, generator).to(images.device)
    rows = _strips(count, height, factor, generator).to(images.device)
    moved = images.gather(3, columns[:, None, None, :].expand(count, channels, height, width))
    return moved.gather(2, rows[:, None, :, None].expand(count, channels, height, width))


def _strips(count: int, size: int, factor: int, generator: torch.Generator) -> Tensor:
    """Where each of `size` pixels comes from, (count, size)."""
    rank = torch.rand(count, factor, generator=generator, device=generator.device).argsort(1)
    strip = (torch.arange(size, device=generator.device) // max(size // factor, 1)).clamp_max(factor - 1)
    return rank[:, strip].argsort(stable=True, dim=1)


def random_resized_crop(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """A part of each image (N, C, H, W), enlarged to the full size bilinearly.

    The part of the area is uniform in [smallest, 1], the logarithm of the aspect ratio uniform between 3/4 and 4/3
    (Szegedy et al. 2015). A side that would be longer than the image is as long as the image; torchvision draws again.
    """
    if not 0 < smallest <= 1:
        raise ValueError(f"the smallest part of a crop is {smallest:g}: give a number above 0, up to 1")
    count, _, height, width = images.shape
    area, ratio, down, right = torch.rand(4, count, generator=generator, device=generator.device).to(images.device)
    area = smallest + (1 - smallest) * area
    ratio = (4 / 3) ** (2 * ratio - 1)
    tall, wide = (area / ratio).sqrt().clamp_max(1), (area * ratio).sqrt().clamp_max(1)
    theta = images.new_zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = wide, (2 * right - 1) * (1 - wide)
    theta[:, 1, 1], theta[:, 1, 2] = tall, (2 * down - 1) * (1 - tall)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
