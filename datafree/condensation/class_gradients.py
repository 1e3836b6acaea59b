"""The gradients of each class's cross-entropy with respect to a network's weights, for gradient matching.

`class_gradients` gives what the usual loop over classes gives: a pass forward and one back on each class's images. For
a ConvNet it takes another way to the same numbers, since most of such a loop's time is not spent in convolutions:

* passes that are not differentiated again, over real images, are those of `datafree.models.fused`, piece by piece;
* in the others, classes with few images go through the network together. Only the last step, from a layer's inputs and
  the gradients of its outputs to the gradient of its weights, is taken class by class;
* weights are constants there, and biases and norms' scales are not asked for. Differentiating twice then leaves out
  what the usual loop computes on their account;
* second derivatives are written by hand: `datafree.condensation.second_order`.

Other networks, and distances that read biases, take the usual loop, `class_by_class`; it is also the tests' oracle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from datafree.condensation.second_order import constant_conv, first_block, norm_relu_pool
from datafree.evaluation.networks import add_gradients, forward_of, fusible, part_size
from datafree.losses.precision import raised
from datafree.models.convnet import ConvNet
from datafree.models.fused import FOLD_AT_MOST
from datafree.teacher import split_entry

# On a CPU, classes of up to so many images together take one pass that is to be differentiated again: with more, what
# passes between functions leaves the cache.
CPU_GROUP = 16


def matched(network: nn.Module, metric: str) -> list[nn.Parameter]:
    """The parameters whose gradients `losses.gradient_distance` reads under that metric, in order.

    Raises:
        ValueError: the metric is one of IDC's, and the network has no convolutions.
    """
    least = 4 if metric.startswith("idc_") else 2 if metric == "ours" else 0
    found = [p for p in network.parameters() if p.ndim >= least]
    if not found:
        name = type(split_entry(network)[1]).__name__
        raise ValueError(f"{name} has no convolutions whose gradients to match: take a convolutional --arch")
    return found


def class_gradients(
    network: nn.Module,
    batches: Sequence[Tensor],
    classes: Sequence[int],
    metric: str,
    *,
    soft: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> list[list[Tensor]]:
    """For each batch the gradients of its mean cross-entropy, one a parameter of `matched(network, metric)`.

    Under autocast the convolutions are computed in its type.

    Args:
        network: from images in [0, 1] to logits. Whether its weights have gradients switched on does not matter.
        batches: images (n, C, H, W), each batch of one class; sizes may differ.
        classes: the batches' class numbers.
        metric: of `losses.gradient_distance`.
        soft: logits (n, classes) of each batch's labels in the place of its class number, with `create_graph`.
        create_graph: whether the gradients are to be differentiated with respect to the images (and the soft labels).
    """
    assert soft is None or create_graph
    front, inner = split_entry(network)
    if not isinstance(inner, ConvNet) or metric in ("mse", "cos"):
        return class_by_class(network, batches, classes, metric, soft=soft, create_graph=create_graph)
    if not create_graph and fusible(network):
        return [_piece_by_piece(network, *pair, metric) for pair in zip(batches, classes, strict=True)]
    if not _halves(inner, batches[0].shape):
        return class_by_class(network, batches, classes, metric, soft=soft, create_graph=create_graph)
    found: list[list[Tensor]] = []
    for rows in _groups([len(images) for images in batches], batches[0].is_cuda):
        counts = [len(images) for images in batches[rows]]
        wanted = torch.cat(list(soft[rows])).softmax(1) if soft is not None else _numbers(classes[rows], counts)
        gradients = _together(inner, front(torch.cat(list(batches[rows]))), counts, wanted, create_graph)
        found += [g if metric == "ours" else g[:-1] for g in gradients]
    return found


def _numbers(classes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Each class as often as it has images."""
    return torch.repeat_interleave(torch.tensor(list(classes)), torch.tensor(list(counts)))


def class_by_class(
    network: nn.Module,
    batches: Sequence[Tensor],
    classes: Sequence[int],
    metric: str,
    *,
    soft: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> list[list[Tensor]]:
    """The same in the usual way, for any network. Arguments as for `class_gradients`."""
    parameters = matched(network, metric)
    found = []
    with _watched(parameters):
        for index, (images, label) in enumerate(zip(batches, classes, strict=True)):
            logits = raised(network(images.contiguous(memory_format=torch.channels_last)))
            wanted = torch.full((len(images),), label, device=logits.device) if soft is None else soft[index].softmax(1)
            loss = F.cross_entropy(logits, wanted)
            gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph, materialize_grads=True)
            found.append(list(gradients))
    return found


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor) -> None:
    """One step on the mean cross-entropy, a ConvNet's passes being those of `datafree.models.fused`.

    Args:
        network: from images in [0, 1] to logits, its weights with gradients.
        optimizer: of the network's parameters, without gradients held.
        images: (N, C, H, W), without gradients.
        targets: class numbers (N,), or logits (N, classes).
    """
    soft = targets.softmax(1) if targets.is_floating_point() else targets
    add_gradients(network, forward_of(network, _precision(images)), images, soft)
    optimizer.step()
    optimizer.zero_grad()


def settle_norms(network: nn.Module, images: Tensor) -> None:
    """Gives batch norms the statistics of these images, and freezes them, so that images do not meet in them.

    As DC's release does, on a few real images of each class; there the statistics move a tenth of the way alone.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all passes: of the one that follows
    with torch.no_grad():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _precision(images: Tensor) -> str:
    return "bf16" if torch.is_autocast_enabled(images.device.type) else "32"


def _piece_by_piece(network: nn.Module, images: Tensor, label: int, metric: str) -> list[Tensor]:
    """The gradients for one batch of a class, without graph, from passes of few images."""
    parameters = matched(network, metric)
    forward = forward_of(network, _precision(images))
    total: list[Tensor] = []
    with _watched(parameters):
        for part in torch.split(images, part_size(images)):
            labels = torch.full((len(part),), label, device=images.device)
            loss = F.cross_entropy(forward(part), labels, reduction="sum") / len(images)
            gradients = torch.autograd.grad(loss, parameters)
            total = [a.add_(b) for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
    return total


@contextmanager
def _watched(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Switches gradients on for these parameters, and then back."""
    before = [p.requires_grad for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)


def _halves(network: ConvNet, shape: Sequence[int]) -> bool:
    """Whether every block halves an even height and width: the hand-written pooling drops no margin."""
    height, width = shape[2:]
    for conv in network.features[::4]:
        assert isinstance(conv, nn.Conv2d) and isinstance(conv.padding, tuple)
        height, width = height + 2 * conv.padding[0] - 2, width + 2 * conv.padding[0] - 2
        if height % 2 or width % 2:
            return False
        height, width = height // 2, width // 2
    return True


def _groups(sizes: Sequence[int], cuda: bool) -> Iterator[slice]:
    """Consecutive batches that go together."""
    start = count = 0
    for index, size in enumerate(sizes):
        if index > start and not cuda and count + size > CPU_GROUP:
            yield slice(start, index)
            start, count = index, 0
        count += size
    yield slice(start, len(sizes))


class _Step(NamedTuple):
    """A convolution or the classifier: what went in and what came out."""

    layer: nn.Conv2d | nn.Linear
    given: Tensor
    made: Tensor


def _together(
    network: ConvNet, images: Tensor, counts: Sequence[int], wanted: Tensor, create_graph: bool
) -> list[list[Tensor]]:
    """The weights' gradients for consecutive runs of `counts` images, from one pass forward and one back.

    `wanted` are their class numbers (N,) or probabilities (N, classes).
    """
    kind = images.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
    runs = torch.repeat_interleave(torch.tensor(list(counts)), output_size=len(images)).to(images.device)
    first: list[Tensor] = []
    steps: list[_Step] = []
    with torch.autocast(kind, enabled=False), torch.enable_grad():
        maps = images
        for index in range(0, len(network.features), 4):
            conv, norm = network.features[index], network.features[index + 1]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.GroupNorm) and isinstance(conv.padding, tuple)
            scale, shift = norm.weight.detach(), norm.bias.detach()
            if index == 0 and 9 * conv.in_channels <= FOLD_AT_MOST:
                kernels = conv.weight.detach().expand(len(counts), -1, -1, -1, -1).clone().requires_grad_()
                first.append(kernels)
                maps = first_block(kernels[runs], scale, shift, maps, conv.padding[0], norm.eps, dtype)
                continue
            given = maps.to(dtype, memory_format=torch.channels_last)
            kernel = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
            made = constant_conv(given, kernel, conv.padding)  # a bias would not outlive the norm
            made = made if made.requires_grad else made.requires_grad_()
            steps.append(_Step(conv, given, made))
            maps = norm_relu_pool(made, scale, shift, norm.eps)
        head = network.classifier
        flat = raised(maps).flatten(1)
        logits = F.linear(flat, head.weight.detach(), head.bias.detach())
        steps.append(_Step(head, flat, logits))
        weights = torch.tensor([1 / n for n in counts], device=images.device, dtype=logits.dtype)[runs]
        loss = (F.cross_entropy(logits, wanted.to(logits.device), reduction="none") * weights).sum()
        deltas = torch.autograd.grad(loss, first + [step.made for step in steps], create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            by_layer = [list(delta.unbind()) for delta in deltas[: len(first)]]
            for step, delta in zip(steps, deltas[len(first) :], strict=True):
                parts = zip(torch.split(step.given, list(counts)), torch.split(delta, list(counts)), strict=True)
                by_layer.append([_weight_gradient(step.layer, given, part) for given, part in parts])
    return [list(gradients) for gradients in zip(*by_layer, strict=True)]


def _weight_gradient(layer: nn.Conv2d | nn.Linear, given: Tensor, delta: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return delta.T @ given
    gradient: Tensor = conv2d_weight(given, layer.weight.shape, delta, padding=layer.padding)  # type: ignore[no-untyped-call]
    return gradient
