"""The field's convolutional generators, with a cheaper form of the same arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UpsampledConvolution(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3×3 convolution (padding 1, no bias), in one go.

    The two equal one transposed convolution with stride 2, whose 4×4 kernel is the 3×3 kernel summed over 2×2 windows:
    4 products an output value instead of 9, and the upsampled map is never built. The parameter is the 3×3 kernel.

    Args:
        in_channels: of the input (N, in_channels, H, W).
        out_channels: of the output (N, out_channels, 2H, 2W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as torch's convolutions

    def forward(self, x: Tensor) -> Tensor:
        rows = F.pad(self.weight, (0, 0, 1, 0)) + F.pad(self.weight, (0, 0, 0, 1))
        kernel = F.pad(rows, (1, 0)) + F.pad(rows, (0, 1))
        return F.conv_transpose2d(x, kernel.flip(2, 3).transpose(0, 1), stride=2, padding=1)


class Generator(nn.Module):
    """Latent (N, latent) -> first map (linear, batch norm) -> blocks that double it -> image (N, C, H, W) in [0, 1].

    The first map is ⌈H / 2^blocks⌉ × ⌈W / 2^blocks⌉ and the image is cropped, so that any size is made.
    """

    def __init__(
        self, latent: int, shape: tuple[int, int, int], widths: tuple[int, ...], blocks: list[nn.Module]
    ) -> None:
        super().__init__()
        self.latent, self.shape = latent, tuple(shape)
        scale = 2 ** len(blocks)
        self.first = (widths[0], -(-shape[1] // scale), -(-shape[2] // scale))
        self.linear = nn.Linear(latent, math.prod(self.first))
        self.norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.ModuleList(blocks)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.to_image = nn.Conv2d(widths[-1], shape[0], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).view(-1, *self.first).contiguous(memory_format=torch.channels_last)
        x = self.norm(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = F.leaky_relu(norm(block(x)), 0.2, inplace=True)
        return torch.sigmoid(self.to_image(x))[..., : self.shape[1], : self.shape[2]]


def small(latent: int, shape: tuple[int, int, int], width: int = 64) -> Generator:
    """Two doublings with 2w, 2w, w channels. Source: DAFL's generator as the common releases write it (w = 64)."""
    blocks: list[nn.Module] = [UpsampledConvolution(2 * width, 2 * width), UpsampledConvolution(2 * width, width)]
    return Generator(latent, shape, (2 * width, 2 * width, width), blocks)


def large(latent: int, shape: tuple[int, int, int], width: int = 64) -> Generator:
    """`small` with twice the channels in the first map: 4w, 2w, w."""
    blocks: list[nn.Module] = [UpsampledConvolution(4 * width, 2 * width), UpsampledConvolution(2 * width, width)]
    return Generator(latent, shape, (4 * width, 2 * width, width), blocks)


def dcgan(latent: int, shape: tuple[int, int, int], width: int = 64) -> Generator:
    """Four doublings by transposed 4×4 convolutions with 8w, 4w, 2w, 2w, w channels, for images of 64 px and more.

    Source: DCGAN (Radford et al. 2016), sec. 3, with the leaky ReLU and sigmoid of the data-free releases.
    """
    widths = (8 * width, 4 * width, 2 * width, 2 * width, width)
    blocks: list[nn.Module] = [
        nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False) for a, b in pairwise(widths)
    ]
    return Generator(latent, shape, widths, blocks)
