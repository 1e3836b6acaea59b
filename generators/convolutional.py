"""The field's convolutional generators, with a cheaper form of the same arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


Constants = Sequence[float]


class Standardised(nn.Module):
    """Tanh and a batch norm without parameters, then the normalisation undone and cut to [0, 1].

    The batch's images have the data's mean and spread, channel by channel, whatever the generator does; what falls
    below 0 is black. Source: the output of DAFL's and DFAD's releases, which hand it to the teacher as it is; undoing
    the normalisation and cutting to [0, 1] are ours.

    Args:
        mean: of the images, one value a channel, in units of [0, 1].
        std: likewise.
    """

    def __init__(self, mean: Constants, std: Constants) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(len(mean), affine=False)
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = self.norm(torch.tanh(x)) * self.get_buffer("std") + self.get_buffer("mean")
        return pixels.clamp(0, 1)


class Generator(nn.Module):
    """Latent (N, latent) -> first map (linear, batch norm) -> blocks that double it -> image (N, C, H, W) in [0, 1].

    The first map is ⌈H / 2^blocks⌉ × ⌈W / 2^blocks⌉ and the image is cropped, so that any size is made. The image comes
    out of a sigmoid, or of `Standardised` where `normalisation` (mean and std) is given.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, int, int],
        widths: tuple[int, ...],
        blocks: list[nn.Module],
        normalisation: tuple[Constants, Constants] | None,
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
        self.output: nn.Module = Standardised(*normalisation) if normalisation is not None else nn.Sigmoid()

    def raw(self, z: Tensor) -> Tensor:
        """The image before its output layer, any real numbers."""
        x = self.linear(z).view(-1, *self.first).contiguous(memory_format=torch.channels_last)
        x = self.norm(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = F.leaky_relu(norm(block(x)), 0.2, inplace=True)
        cut: Tensor = self.to_image(x)[..., : self.shape[1], : self.shape[2]]
        return cut

    def forward(self, z: Tensor) -> Tensor:
        pixels: Tensor = self.output(self.raw(z))
        return pixels


def small(
    latent: int,
    shape: tuple[int, int, int],
    width: int = 64,
    normalisation: tuple[Constants, Constants] | None = None,
) -> Generator:
    """Two doublings with 2w, 2w, w channels. Source: DAFL's generator as the common releases write it (w = 64)."""
    blocks: list[nn.Module] = [UpsampledConvolution(2 * width, 2 * width), UpsampledConvolution(2 * width, width)]
    return Generator(latent, shape, (2 * width, 2 * width, width), blocks, normalisation)


def large(
    latent: int,
    shape: tuple[int, int, int],
    width: int = 64,
    normalisation: tuple[Constants, Constants] | None = None,
) -> Generator:
    """`small` with twice the channels in the first map: 4w, 2w, w."""
    blocks: list[nn.Module] = [UpsampledConvolution(4 * width, 2 * width), UpsampledConvolution(2 * width, width)]
    return Generator(latent, shape, (4 * width, 2 * width, width), blocks, normalisation)


def dcgan(
    latent: int,
    shape: tuple[int, int, int],
    width: int = 64,
    normalisation: tuple[Constants, Constants] | None = None,
) -> Generator:
    """Four doublings by transposed 4×4 convolutions with 8w, 4w, 2w, 2w, w channels, for images of 64 px and more.

    Source: DCGAN (Radford et al. 2016), sec. 3, with the leaky ReLU and sigmoid of the data-free releases.
    """
    widths = (8 * width, 4 * width, 2 * width, 2 * width, width)
    blocks: list[nn.Module] = [
        nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False) for a, b in pairwise(widths)
    ]
    return Generator(latent, shape, widths, blocks, normalisation)
