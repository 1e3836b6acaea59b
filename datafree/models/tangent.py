"""ConvNet's logits and how they change along a direction in the parameters; differentiable once, and quick.

With L a loss of the logits, the derivative of <dL/dlogits, change> with respect to parameters and images is the
Hessian times the direction, and the mixed second derivative: what `torch.autograd.grad(..., create_graph=True)` and a
second pass give, but forward first and backward second (Pearlmutter 1994, "Fast exact multiplication by the Hessian"),
with instance norm, ReLU, pooling and their changes in one function with a hand-written derivative. As in
`datafree.models.fused`, the convolutions' biases are left out: instance norm removes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datafree.models.convnet import ConvNet


def tangent_logits(network: ConvNet, images: Tensor, direction: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and their derivative along `direction`, both with a graph.

    Args:
        network: its parameters are read, and get gradients; zero for the convolutions' biases.
        images: normalised, (N, C, H, W), float32 or float64.
        direction: in the order and of the shapes of `network.parameters()`, without gradients.
    """
    ways = dict(zip((name for name, _ in network.named_parameters()), direction, strict=True))
    maps, change = images, None
    for index in range(0, len(network.features), 4):
        conv, norm = network.features[index], network.features[index + 1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.GroupNorm)
        assert isinstance(conv.padding, tuple)
        assert conv.bias is not None
        maps = maps.contiguous(memory_format=torch.channels_last)
        way = ways[f"features.{index}.weight"]
        below = F.conv2d(maps, conv.weight, padding=conv.padding)
        moved = F.conv2d(maps, way, padding=conv.padding)
        if change is not None:
            moved = moved + F.conv2d(change, conv.weight, padding=conv.padding)
        ways_norm = (ways[f"features.{index + 1}.{name}"] for name in ("weight", "bias"))
        shift = norm.bias + 0 * conv.bias
        maps, change = _Block.apply(below, moved, norm.weight, shift, *ways_norm, norm.eps)
    assert change is not None
    last, seen, change = network.classifier, maps.flatten(1), change.flatten(1)
    logits = F.linear(seen, last.weight, last.bias)
    moved = F.linear(change, last.weight) + F.linear(seen, ways["classifier.weight"], ways["classifier.bias"])
    return logits, moved


class _Block(torch.autograd.Function):
    """Instance norm, ReLU and 2x2 average pooling of maps z (N, C, H, W), and their change for the maps' change dz.

    With h = (z - mean z) s, s = 1 / sqrt(var z + eps), e = dz - mean dz and means over an image's channel:

        a = w h + b,  da = w dh + dw h + db,  dh = s (e - h mean(h e));  pooled: relu(a) and da where a > 0
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, dz: Tensor, weight: Tensor, bias: Tensor, dweight: Tensor, dbias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        n, channels, height, width = z.shape
        h, e = (t.permute(0, 2, 3, 1).reshape(n, height * width, channels) for t in (z, dz))
        h = h - h.mean(1, keepdim=True)
        e = e - e.mean(1, keepdim=True)
        s = torch.rsqrt((h * h).mean(1, keepdim=True) + eps)
        h *= s
        q = (h * e).mean(1, keepdim=True)
        dh = torch.addcmul(e, h, q, value=-1).mul_(s)
        a = torch.addcmul(bias, h, weight)
        da = torch.addcmul(dbias, h, dweight).addcmul_(dh, weight)
        da *= a > 0
        a.relu_()
        ctx.save_for_backward(h, e, dh, s, q, a, weight, dweight)
        ctx.sizes = (height, width)
        wide = (t.view(n, height, width, channels).permute(0, 3, 1, 2) for t in (a, da))
        pooled, moved = (F.avg_pool2d(t, 2) for t in wide)
        return pooled, moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, e, dh, s, q, a, weight, dweight = ctx.saved_tensors
        n, positions, channels = h.shape
        maps = a.view(n, *ctx.sizes, channels).permute(0, 3, 1, 2)
        both = []
        for grad in grads:
            wide = grad.contiguous(memory_format=torch.channels_last)
            spread = torch.ops.aten.avg_pool2d_backward(wide, maps, [2, 2], [], [0, 0], False, True, None)
            spread = torch.ops.aten.threshold_backward(spread, maps, 0)
            both.append(spread.permute(0, 2, 3, 1).reshape(n, positions, channels))
        g, d = both  # of a and of da
        g_mean, d_mean = g.mean(1, keepdim=True), d.mean(1, keepdim=True)
        gh, dh_mean, ddh = ((x * y).mean(1, keepdim=True) for x, y in ((g, h), (d, h), (d, dh)))
        to_moved = torch.addcmul(d - d_mean, h, dh_mean, value=-1).mul_(s * weight)
        # Of h: w g + k d - r e, with what follows.
        k = dweight - s * q * weight
        r = s * weight * dh_mean
        mean = weight * g_mean + k * d_mean
        along = weight * gh + k * dh_mean - r * q + weight * ddh
        to_maps = torch.addcmul(-mean, g, weight).addcmul_(d, k).addcmul_(e, r, value=-1)
        to_maps = to_maps.addcmul_(h, along, value=-1).mul_(s)
        found = (t.view(n, *ctx.sizes, channels).permute(0, 3, 1, 2) for t in (to_maps, to_moved))
        return (*found, positions * (gh + ddh).sum((0, 1)), positions * g_mean.sum((0, 1)), None, None, None)
