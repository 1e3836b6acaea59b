"""Random parts of images, enlarged to the whole size, with gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised
from datafree.parallel import shard, world_size

RATIOS = (3 / 4, 4 / 3)


class Boxes(NamedTuple):
    """One box an image: `centre` (N, 2), x and y from -1 (left, upper edge) to 1; `size` (N, 2), shares of width and
    height in (0, 1]; `mirrored`, bool (N,)."""

    centre: Tensor
    size: Tensor
    mirrored: Tensor


def draw_boxes(
    count: int,
    generator: torch.Generator,
    *,
    shape: tuple[int, int],
    area: tuple[float, float] = (0.25, 1.0),
    flip: bool,
) -> Boxes:
    """Draws boxes inside images of `shape` (H, W).

    The area's share is uniform in `area`, the logarithm of width over height (in pixels) uniform between those of
    `RATIOS`, a side that comes out longer than the image is cut to it, and every place is equally likely.
    """
    draws = torch.rand(5, count, generator=generator, device=generator.device)
    shares = area[0] + (area[1] - area[0]) * draws[0]
    low, high = map(math.log, RATIOS)
    ratio = torch.exp(low + (high - low) * draws[1]) * shape[0] / shape[1]
    size = torch.stack([(shares * ratio).sqrt(), (shares / ratio).sqrt()], 1).clamp_max(1)
    centre = (2 * draws[2:4].T - 1) * (1 - size)
    mirrored = draws[4] < 0.5
    return Boxes(centre, size, mirrored if flip else torch.zeros_like(mirrored))


def resized_crops(images: Tensor, boxes: Boxes) -> Tensor:
    """The boxes' parts of images (N, C, H, W), each brought to H × W by bilinear interpolation, mirrored or not.

    Differentiable; float32 at least; channels last.
    """
    x = raised(images)
    centre, size, mirrored = (part.to(x.device) for part in boxes)
    matrix = x.new_zeros(len(x), 2, 3)
    matrix[:, 0, 0] = torch.where(mirrored, -size[:, 0], size[:, 0])
    matrix[:, 1, 1] = size[:, 1]
    matrix[:, :, 2] = centre
    with torch.autocast(
        x.device.type, enabled=False
    ):  # it multiplies matrices: places would be off by parts of a pixel
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    # Pixels have an extent: what lies beyond the outermost centres has their value.
    parts = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return parts.contiguous(memory_format=torch.channels_last)


def local_view(images: Tensor, rng: torch.Generator, *, flip: bool) -> Tensor:
    """Each image of (N, C, H, W), this process's part of the global batch, in a part of a quarter or more of its area.

    Source: CMI (Fang et al. 2021), the local view of its release.
    """
    boxes = draw_boxes(len(images) * world_size(), rng, shape=(images.shape[2], images.shape[3]), flip=flip)
    return resized_crops(images, Boxes(*map(shard, boxes)))
