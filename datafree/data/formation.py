"""Multi-formation: one stored image holds f x f small ones, which are enlarged before anything sees them.

Source: IDC (Kim et al. 2022), in the layout of its release. What is stored for one image gives f f samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def decode(images: Tensor, factor: int) -> Tensor:
    """Cut each image (M, C, H, W) into f x f patches and enlarge each to H x W: (M f f, C, H, W).

    Order: all images' patch (0, 0), then all images' patch (0, 1), and so on by rows. Bilinear with half-pixel centres.
    Where a size does not divide by f, the patches are ceil(size / f) wide, and what they lack on the right and at the
    bottom is 0.5. Differentiable; type, device and memory format stay. A factor of 1 changes nothing.

    Raises:
        ValueError: a factor below 1 or above the height or width.
    """
    m, channels, height, width = images.shape
    rows, columns = _patch_size(height, width, factor)
    if factor == 1:
        return images
    padded = F.pad(images, (0, factor * columns - width, 0, factor * rows - height), value=0.5)
    patches = padded.reshape(m, channels, factor, rows, factor, columns).permute(2, 4, 0, 1, 3, 5)
    flat = patches.reshape(factor * factor * m, channels, rows, columns)
    large = F.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)
    return large.contiguous(memory_format=_memory_format(images))


def decoded_labels(labels: Tensor, factor: int) -> Tensor:
    """The labels of the decoded images: (M,) or soft (M, K) repeated to (M f f, ...), in the order of `decode`."""
    if factor < 1:
        raise ValueError(f"multi-formation factor {factor}: give 1 or more")
    return torch.cat([labels] * (factor * factor))


def encode(images: Tensor, factor: int) -> Tensor:
    """Mosaics (M, C, H, W) of M f f images (C, H, W), each made small: where condensation starts from (IDC's "mix").

    The images come in the order of `decode`, which gives them back, blurred. They are made small bilinearly (the mean
    of 2 x 2 pixels where f = 2). The release takes the nearest pixel: on MNIST, f = 2 and 3, what comes back is then
    16.3 and 11.8 dB from the original; bilinearly it is 18.3 and 16.1, with antialiasing 16.9 and 15.1. Where a size
    does not divide by f, the right and lower margins that `decode` fills with 0.5 are cut off (the release shares the
    pixels out, and its decoding cuts beside the seams). Differentiable; type, device and memory format stay.

    Raises:
        ValueError: a number of images that does not divide by f f, or a factor below 1 or above the height or width.
    """
    count, channels, height, width = images.shape
    rows, columns = _patch_size(height, width, factor)
    if count % (factor * factor):
        raise ValueError(f"{count} images for mosaics of {factor} x {factor}: give a multiple of {factor * factor}")
    if factor == 1:
        return images
    small = F.interpolate(images, size=(rows, columns), mode="bilinear", align_corners=False)
    tiles = small.reshape(factor, factor, -1, channels, rows, columns).permute(2, 3, 0, 4, 1, 5)
    mosaic = tiles.reshape(-1, channels, factor * rows, factor * columns)[:, :, :height, :width]
    return mosaic.contiguous(memory_format=_memory_format(images))


def _patch_size(height: int, width: int, factor: int) -> tuple[int, int]:
    if not 1 <= factor <= min(height, width):
        raise ValueError(
            f"multi-formation factor {factor} for images of {height} x {width}: give 1 to the shorter side"
        )
    return -(-height // factor), -(-width // factor)


def _memory_format(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
