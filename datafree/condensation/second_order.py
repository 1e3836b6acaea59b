"""A ConvNet's blocks as functions that can be differentiated twice, with respect to what goes in.

Beside torch's own they save trips to memory, as `datafree.models.fused` does for first derivatives. Weights, scales and
shifts (C,) are constants, except for the first block's kernels. Maps are quickest in channels_last memory. Half types
are raised inside for statistics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from datafree.losses.precision import raised


def constant_conv(maps: Tensor, kernel: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Convolution (stride 1) by a kernel without gradient."""
    result: Tensor = _ConstantConv.apply(maps, kernel, padding)
    return result


def norm_relu_pool(maps: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Instance norm, ReLU and 2x2 average pooling: (N, C, H, W) to (N, C, H/2, W/2), same type; H and W are even."""
    result: Tensor = _NormReluPool.apply(maps, scale, shift, eps)
    return result


def first_block(
    kernels: Tensor, scale: Tensor, shift: Tensor, images: Tensor, padding: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """Convolution, norm, ReLU and pooling of images with few channels, a kernel (N, out, C, 3, 3) an image.

    With patches p around the pixels, their mean m and covariance S, the convolution w has mean w'm and variance w'Sw
    over an image. So the norm of it is the product of p - m with another matrix.
    """
    wide = F.pad(images, (padding,) * 4)
    windows = wide.unfold(2, 3, 1).unfold(3, 3, 1)  # (N, C, H, W, 3, 3)
    windows = torch.unflatten(torch.unflatten(windows, 2, (-1, 2)), 4, (-1, 2))  # (N, C, H/2, 2, W/2, 2, 3, 3)
    rows, columns = windows.shape[2], windows.shape[4]
    # Pixels that are pooled together stand a quarter apart.
    patches = windows.permute(0, 3, 5, 2, 4, 1, 6, 7).reshape(len(images), 4 * rows * columns, -1)
    patches = patches - patches.mean(1, keepdim=True)
    covariance = torch.bmm(patches.mT, patches) / patches.shape[1]
    matrix = kernels.flatten(2).mT  # (N, 9 C, out)
    gain = scale * torch.rsqrt((torch.bmm(covariance, matrix) * matrix).sum(1) + eps)
    # The norm's shift is the weight of one more value in each patch, which is always 1.
    matrix = torch.cat([matrix * gain[:, None], shift.expand(len(images), 1, -1)], 1).to(dtype)
    patches = F.pad(patches, (0, 1), value=1.0).to(dtype)
    pooled: Tensor = _ReluPool.apply(torch.bmm(patches, matrix))
    return pooled.view(len(images), rows, columns, -1).permute(0, 3, 1, 2)


class _ConstantConv(torch.autograd.Function):
    """torch's own, differentiated twice, computes the kernel's gradient even where nobody asks for it."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Tensor, padding: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.padding = padding
        return F.conv2d(maps, kernel, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kernel,) = ctx.saved_tensors
        return F.conv_transpose2d(grad, kernel, padding=ctx.padding), None, None


class _ReluPool(torch.autograd.Function):
    """(N, 4 T, C) to (N, T, C): ReLU and the mean of the four quarters."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        pooled = _mean_of_quarters(maps.relu())
        ctx.save_for_backward(maps.gt(0).to(maps.dtype))  # torch.where is 30 times slower than a product on a CPU
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        spread: Tensor = _ReluPoolBack.apply(grad, *ctx.saved_tensors)
        return spread


class _ReluPoolBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        spread: Tensor = (torch.unflatten(mask, 1, (4, -1)) * (0.25 * grad)[:, None]).flatten(1, 2)
        return spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return _mean_of_quarters(mask * grad), None


def _mean_of_quarters(x: Tensor) -> Tensor:
    first, second, third, fourth = torch.unflatten(x, 1, (4, -1)).unbind(1)
    mean: Tensor = (first + second).add_(third).add_(fourth).mul_(0.25)
    return mean


class _NormReluPool(torch.autograd.Function):
    """With h the maps less their mean, times s = 1 / sqrt(var + eps), and q the pooled mask of the ReLU,

    the result is scale pool(mask h) + shift q. Statistics of gradients are sums over these smaller maps.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        pixels = raised(maps.permute(0, 2, 3, 1).contiguous())
        h = pixels - _mean(pixels)
        s = torch.rsqrt(_mean(h * h) + eps)
        h.mul_(s)
        mask = torch.addcmul(shift, h, scale).gt_(0)
        pooled, q = _pool(mask * h), _pool(mask)
        ctx.save_for_backward(maps, h, s, mask, pooled, q, scale)
        return torch.addcmul(q * shift, pooled, scale).permute(0, 3, 1, 2).to(maps.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _NormReluPoolBack.apply(grad, *ctx.saved_tensors), None, None, None


class _NormReluPoolBack(torch.autograd.Function):
    """g to scale s P(r), where r is g spread over the mask, and P(v) = v - mean v - h mean(v h)."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        maps: Tensor,
        h: Tensor,
        s: Tensor,
        mask: Tensor,
        pooled: Tensor,
        q: Tensor,
        scale: Tensor,
    ) -> Tensor:
        g = raised(grad.permute(0, 2, 3, 1))
        n, rows, columns, channels = g.shape
        mean_r, mean_rh = 0.25 * _mean(g * q), 0.25 * _mean(g * pooled)
        r = mask.view(n, rows, 2, columns, 2, channels) * (0.25 * g)[:, :, None, :, None]
        r = r.view(h.shape)
        gain = scale * s
        result = torch.addcmul(-gain * mean_r, r, gain).addcmul_(h, -gain * mean_rh)
        ctx.save_for_backward(g, r, h, s, mask, pooled, q, gain, mean_r, mean_rh)
        ctx.dtypes = grad.dtype, maps.dtype
        return result.permute(0, 3, 1, 2).to(maps.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With v the incoming gradient, <v, scale s P(r)> differentiated by g (P is symmetric) and by the maps."""
        g, r, h, s, mask, pooled, q, gain, mean_r, mean_rh = ctx.saved_tensors
        v = raised(grad.permute(0, 2, 3, 1).contiguous())
        mean_v, mean_vh = _mean(v), _mean(v * h)
        met = _pool(mask * v)
        mean_vr = 0.25 * _mean(g * met)
        to_grad = gain * (met - q * mean_v - pooled * mean_vh)
        # -scale s² [P(v) mean(rh) + P(r) mean(vh) + h (mean(vr) - mean v mean r - mean(vh) mean(rh))]
        k = -gain * s
        to_maps = torch.addcmul(-k * (mean_v * mean_rh + mean_r * mean_vh), v, k * mean_rh)
        to_maps.addcmul_(r, k * mean_vh).addcmul_(h, k * (mean_vr - mean_v * mean_r - 3 * mean_vh * mean_rh))
        to_grad, to_maps = to_grad.permute(0, 3, 1, 2), to_maps.permute(0, 3, 1, 2)
        return to_grad.to(ctx.dtypes[0]), to_maps.to(ctx.dtypes[1]), None, None, None, None, None, None


def _mean(x: Tensor) -> Tensor:
    return x.mean((1, 2), keepdim=True)


def _pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
