"""The exact gradient through N steps of SGD at the memory of one: steps are recomputed on the way back.

A student starts at θ_0 and goes θ_{k+1} = θ_k - a g_k, g_k the gradient of its loss on the k-th batch of a set. With
v_N = dL/dθ_N, on the way back from k = N - 1 to 0

    dL/dimages -= a d<v_{k+1}, g_k>/dimages     dL/dlabels alike     dL/da -= <v_{k+1}, g_k>
    v_k = v_{k+1} - a H_k v_{k+1}

and only one step's graph exists at a time. What is kept of each step is one copy of the parameters. With v held at v_N
this is TESLA (Cui et al. 2023), which leaves out how later steps depend on what earlier ones were trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from datafree import losses
from datafree.condensation.setting import Setting
from datafree.losses.precision import raised
from datafree.models.convnet import ConvNet
from datafree.models.fused import fused_logits
from datafree.models.tangent import tangent_logits
from datafree.parallel import forked

# (network, images) to logits, differentiated once.
Forward = Callable[[nn.Module, Tensor], Tensor]
# (network, images, labels, direction) to the loss's derivative along the direction in the network's parameters, a
# scalar that has gradients for parameters, images and labels.
Slope = Callable[[nn.Module, Tensor, Tensor, Sequence[Tensor]], Tensor]
# Images (B, C, H, W) and labels of a step, made anew at each call from the set's images and labels, with gradients.
Batch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Unrolled(NamedTuple):
    """A loss and its gradients.

    value: scalar, ||θ_N - target||² / ||θ_0 - target||².
    images, rate: gradients, of the shapes of what they are of.
    labels: the same; zeros for class numbers.
    """

    value: Tensor
    images: Tensor
    labels: Tensor
    rate: Tensor


class Passes(NamedTuple):
    """How a network's steps are computed."""

    forward: Forward
    slope: Slope


def plain_forward(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = network(images)
    return logits


def plain_slope(network: nn.Module, images: Tensor, labels: Tensor, direction: Sequence[Tensor]) -> Tensor:
    parameters = list(network.parameters())
    gradient = torch.autograd.grad(inner_loss(network(images), labels), parameters, create_graph=True)
    return torch.stack([(g * v).sum() for g, v in zip(gradient, direction, strict=True)]).sum()


PLAIN = Passes(plain_forward, plain_slope)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors end to end, (P,)."""
    return torch.cat([t.reshape(-1) for t in tensors])


@torch.no_grad()
def write(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """The inverse of `flat`, into the parameters."""
    for parameter, part in zip(parameters, pieces(vector, parameters), strict=True):
        parameter.copy_(part)


def pieces(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector (P,) cut into the shapes of `like`."""
    parts = torch.split(vector, [t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


def inner_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with class numbers (B,), or with the softmax of learned logits (B, classes)."""
    logits = raised(logits)
    return losses.soft_cross_entropy(logits, labels) if labels.is_floating_point() else F.cross_entropy(logits, labels)


def unroll(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    rate: Tensor,
    batches: Sequence[Batch],
    *,
    exact: bool = True,
    passes: Passes = PLAIN,
) -> Unrolled:
    """How far SGD on a set gets from `start` to `target`, with gradients.

    Args:
        network: whose steps these are, without batch norm. Its parameters are overwritten.
        start: parameters (P,) in the order of `network.parameters()`.
        target: the same; not equal to `start`.
        images: the set, (N, C, H, W).
        labels: class numbers (N,) or logits (N, classes).
        rate: a > 0, scalar.
        batches: one a step.
        exact: False for TESLA's gradient.
        passes: quicker ones, where there are.
    """
    parameters = [p.requires_grad_() for p in network.parameters()]
    leaves = [images.detach().requires_grad_()]
    soft = labels.is_floating_point()
    if soft:
        leaves.append(labels.detach().requires_grad_())
    images, labels, rate = leaves[0], leaves[1] if soft else labels, rate.detach()

    here, visited = start, []
    for batch in batches:
        visited.append(here)
        write(parameters, here)
        with torch.no_grad():
            seen, wanted = batch(images, labels)
        step = torch.autograd.grad(inner_loss(passes.forward(network, seen), wanted), parameters)
        here = here - rate * flat(step)
    value = losses.normalised_distance(here, target, start)

    adjoint = 2 * (here - target) / (start - target).square().sum()
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    along_rate = torch.zeros_like(rate)
    for batch, place in zip(reversed(batches), reversed(visited), strict=True):
        write(parameters, place)
        seen, wanted = batch(images, labels)
        along = passes.slope(network, seen, wanted, pieces(adjoint, parameters))
        inputs = [*leaves, *parameters] if exact else leaves
        found = torch.autograd.grad(along, inputs, materialize_grads=True)
        along_rate -= along.detach()
        for total, part in zip(gradients, found, strict=False):
            total.sub_(rate * part)
        if exact:
            adjoint = adjoint - rate * flat(found[len(leaves) :])
    label_gradient = gradients[1] if soft else torch.zeros_like(labels)
    return Unrolled(value, gradients[0], label_gradient, along_rate)


def attach(value: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """`value` as a function of the first tensor of each pair, whose gradient is the second."""
    tensors, gradients = zip(*pairs, strict=True)
    result: Tensor = _Given.apply(value.detach(), gradients, *tensors)
    return result


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(grad * gradient for gradient in ctx.saved_tensors))


def quick(setting: Setting) -> Passes:
    """The quickest passes, forward in the run's precision; second derivatives are always computed in float32.

    ConvNet's are fused on a CPU. CPU time on one busy core, ConvNet-3-128, 10 (100) Fashion-MNIST images, forward and
    second derivatives: plain 145 ms (1.98 s), forward fused 138 ms (1.81 s), `tangent_logits` as well 95 ms (1.25 s),
    with bf16 forward 86 ms (1.17 s). (A double backward pass is slower in bf16 than in float32 there.)
    """
    half = setting.precision == "bf16"
    with forked(setting.device):
        entry = setting.new_network()
    if setting.device.type == "cpu" and isinstance(getattr(entry, "network", None), ConvNet):
        entry.network = nn.Identity()
        return Passes(_fused_forward(entry, torch.bfloat16 if half else None), _tangent_slope(entry))

    def cast(network: nn.Module, images: Tensor) -> Tensor:
        with setting.cast():
            return plain_forward(network, images)

    return Passes(cast, plain_slope)


def _fused_forward(entry: nn.Module, dtype: torch.dtype | None) -> Forward:
    return lambda network, images: fused_logits(_convnet(network), entry(images), dtype=dtype)


def _tangent_slope(entry: nn.Module) -> Slope:
    def slope(network: nn.Module, images: Tensor, labels: Tensor, direction: Sequence[Tensor]) -> Tensor:
        logits, change = tangent_logits(_convnet(network), entry(images), direction)
        (gradient,) = torch.autograd.grad(inner_loss(logits, labels), logits, create_graph=True)
        return (gradient * change).sum()

    return slope


def _convnet(network: nn.Module) -> ConvNet:
    inner = network.network
    assert isinstance(inner, ConvNet)
    return inner
