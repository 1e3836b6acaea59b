"""ConvNet's passes with fewer trips to memory: for training many networks on few images, on a CPU above all.

A ConvNet block spends most of a plain step in instance norm, ReLU and pooling, not in its convolution. Here

* the three are one function with a hand-written derivative, on (N, H, W, C) memory;
* the convolution's bias is left out: instance norm removes what is added to a whole channel; its gradient is zero;
* the first block never forms the convolution's output before the norm. Mean and variance of a linear map of the patches
  follow from the patches' mean m and covariance S: w'm + b and w'Sw. So the norm is folded into one matrix an image,
  and what is left is a product, ReLU and pooling.

The results equal the plain network's up to rounding (`tests/models/test_fused.py`). The functions can be differentiated
once, with respect to parameters and images; a second derivative raises an error: use the network itself there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datafree.losses.precision import raised
from datafree.models.convnet import ConvNet

# Above this many values a patch (9 a channel) the first block's covariance costs more than it saves.
FOLD_AT_MOST = 27


def fused_logits(network: ConvNet, images: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """`network(images)`, quicker.

    Args:
        network: its parameters are read at each call, and get the gradients.
        images: normalised, (N, C, H, W).
        dtype: the type of the convolutions, such as torch.bfloat16; that of the images if None. Statistics, norms and
            the classifier are computed in float32 then (in float64 for float64 images).

    Returns:
        Logits (N, classes), float32, or float64 for float64 images.
    """
    with torch.autocast(images.device.type, enabled=False):
        return F.linear(
            fused_features(network, images, dtype=dtype), network.classifier.weight, network.classifier.bias
        )


def fused_features(network: ConvNet, images: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """What the classifier is given, (N, D) in the order channel, row, column. Arguments and types as `fused_logits`."""
    with torch.autocast(images.device.type, enabled=False):
        images = raised(images)
        dtype = dtype or images.dtype
        maps = images
        for index in range(0, len(network.features), 4):
            conv, norm = network.features[index], network.features[index + 1]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
            maps = _block(conv, norm, maps, dtype, first=index == 0)
        return maps.flatten(1).to(images.dtype)


def norm_relu_pool(maps: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm, ReLU and 2x2 average pooling in one: (N, C, H, W) to (N, C, H // 2, W // 2), same type.

    Args:
        maps: quickest in channels_last memory. Half types are raised inside.
        weight, bias: of the norm, (C,), in the type that half types are raised to.
        eps: added to the biased variance of each image and channel.
    """
    result: Tensor = _NormReluPool.apply(maps, weight, bias, eps)
    return result


def _block(conv: nn.Conv2d, norm: nn.GroupNorm, maps: Tensor, dtype: torch.dtype, *, first: bool) -> Tensor:
    assert isinstance(conv.padding, tuple)
    padding = conv.padding[0]
    even = maps.shape[2] % 2 == 0 and maps.shape[3] % 2 == 0
    assert conv.bias is not None
    # Zero times the bias: a gradient of zero, so that optimisers treat the bias as they do in the plain network.
    shift = norm.bias + 0 * conv.bias
    if first and even and 9 * conv.in_channels <= FOLD_AT_MOST:
        return _first_block(conv.weight, norm.weight, shift, maps, padding, norm.eps, dtype)
    maps = maps.to(dtype, memory_format=torch.channels_last)
    kernel = conv.weight.to(dtype, memory_format=torch.channels_last)
    return norm_relu_pool(F.conv2d(maps, kernel, padding=padding), norm.weight, shift, norm.eps)


def _first_block(
    kernel: Tensor, weight: Tensor, bias: Tensor, images: Tensor, padding: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """Convolution, norm, ReLU and pooling of images with few channels and an even size after the convolution."""
    patches = _patches(images, padding)  # (N, K, 4 T)
    count, _, positions = patches.shape
    patches = patches - patches.mean(2, keepdim=True)
    covariance = torch.bmm(patches, patches.mT) / positions
    matrix = kernel.flatten(1).T  # (K, out)
    variance = ((covariance @ matrix) * matrix).sum(1)  # (N, out)
    gain = weight * torch.rsqrt(variance + eps)
    # The norm's bias is the weight of one more value in each patch, which is always 1.
    folded = torch.cat([matrix * gain[:, None], bias.expand(count, 1, -1)], 1)
    ones = patches.new_ones(count, 1, positions)
    pooled: Tensor = _PatchReluPool.apply(torch.cat([patches, ones], 1).to(dtype), folded.to(dtype))
    rows, columns = images.shape[2] // 2 + padding - 1, images.shape[3] // 2 + padding - 1
    return pooled.view(count, rows, columns, -1).permute(0, 3, 1, 2)


def _patches(images: Tensor, padding: int) -> Tensor:
    """The 3x3 patches around each pixel, (N, 9 C, 4 T): first those that pool as upper left, then the other three."""
    wide = F.pad(images, (padding,) * 4)
    windows = wide.unfold(2, 3, 1).unfold(3, 3, 1)  # (N, C, H, W, 3, 3)
    count, channels, height, width = windows.shape[:4]
    windows = windows.view(count, channels, height // 2, 2, width // 2, 2, 3, 3)
    return windows.permute(0, 1, 6, 7, 3, 5, 2, 4).reshape(count, 9 * channels, height * width)


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        n, channels, height, width = maps.shape
        pixels = raised(maps.permute(0, 2, 3, 1).reshape(n, height * width, channels))
        centred = pixels - pixels.mean(1, keepdim=True)
        scale = torch.rsqrt((centred * centred).mean(1, keepdim=True) + eps)
        active = torch.addcmul(bias, centred, scale * weight).relu_()
        ctx.save_for_backward(centred, active, scale, weight)
        ctx.sizes = (height, width)
        pooled = F.avg_pool2d(active.view(n, height, width, channels).permute(0, 3, 1, 2), 2)
        return pooled.to(maps.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, active, scale, weight = ctx.saved_tensors
        n, positions, channels = centred.shape
        active = active.view(n, *ctx.sizes, channels).permute(0, 3, 1, 2)
        wide = raised(grad).contiguous(memory_format=torch.channels_last)
        spread = torch.ops.aten.avg_pool2d_backward(wide, active, [2, 2], [], [0, 0], False, True, None)
        spread = torch.ops.aten.threshold_backward(spread, active, 0)
        spread = spread.permute(0, 2, 3, 1).reshape(n, positions, channels)
        shift = spread.sum(1, keepdim=True)
        stretch = (spread * centred).sum(1, keepdim=True) * scale
        gain = scale * weight
        # With h the normalised maps: gain * (g - mean g - h mean(g h)).
        moved = torch.addcmul(shift * gain / -positions, spread, gain)
        moved = moved.addcmul_(centred, stretch * gain * scale / -positions)
        moved = moved.view(n, *ctx.sizes, channels).permute(0, 3, 1, 2).to(grad.dtype)
        return moved, stretch.sum((0, 1)), shift.sum((0, 1)), None


class _PatchReluPool(torch.autograd.Function):
    """Patches (N, K, 4 T) and matrices (N, K, C) to (N, T, C): product, ReLU, mean of the four quarters."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, matrices: Tensor) -> Tensor:
        active = torch.bmm(patches.mT, matrices).relu_()
        ctx.save_for_backward(patches, matrices, active)
        first, second, third, fourth = torch.chunk(active, 4, 1)
        return (first + second).add_(third).add_(fourth).mul_(0.25)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        patches, matrices, active = ctx.saved_tensors
        four = active.view(len(active), 4, *grad.shape[1:])
        spread = torch.ops.aten.threshold_backward((0.25 * grad)[:, None].expand_as(four), four, 0)
        spread = spread.view_as(active)
        back = torch.bmm(matrices, spread.mT) if ctx.needs_input_grad[0] else None
        return back, torch.bmm(patches, spread)
