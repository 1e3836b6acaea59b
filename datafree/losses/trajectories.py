"""How far a student trained on synthetic images is from where an expert went on real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised

Parameters = Tensor | Sequence[Tensor]


def _tensors(parameters: Parameters) -> Sequence[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else parameters


def _squared_distance(a: Parameters, b: Parameters) -> Tensor:
    pairs = zip(_tensors(a), _tensors(b), strict=True)
    return torch.stack([(raised(x) - raised(y)).square().sum() for x, y in pairs]).sum()


def normalised_distance(reached: Parameters, target: Parameters, start: Parameters) -> Tensor:
    """||reached - target||² / ||start - target||². Scalar >= 0: 0 at the target, 1 at the start.

    Args:
        reached: the student's parameters after its steps on synthetic images, flat (P,) or a list of tensors.
        target: the expert's some epochs after the start, in the same form.
        start: the expert's where the student began; it must differ from the target, or the result is not finite.

    Source: MTT (Cazenavette et al. 2022), its weight matching loss.
    """
    return _squared_distance(reached, target) / _squared_distance(start, target)


@overload
def tesla_image_gradient_vector(
    start: Tensor, target: Tensor, gradient_sum: Tensor, learning_rate: Tensor | float
) -> Tensor: ...


@overload
def tesla_image_gradient_vector(
    start: Sequence[Tensor], target: Sequence[Tensor], gradient_sum: Sequence[Tensor], learning_rate: Tensor | float
) -> list[Tensor]: ...


def tesla_image_gradient_vector(
    start: Parameters, target: Parameters, gradient_sum: Parameters, learning_rate: Tensor | float
) -> Tensor | list[Tensor]:
    """v = 2 a (target - start + a G) / ||start - target||², without gradient: dL/dG of `normalised_distance`.

    A student of N plain SGD steps reaches start - a G, G the sum of its steps' gradients g_k. With the parameters
    of each step held fixed, the images of step k get the gradient of <v, g_k(images)>, one step's graph at a time:
    `torch.autograd.grad(g_k, images, grad_outputs=v)`. This drops how later steps depend on earlier ones' images, so
    it is exact for N = 1 alone. The learning rate gets its gradient from
    `normalised_distance(start - a G, target, start)` with G detached.

    Written for use in loops of one's own, and for tests: `--method tesla` gets the same through
    `datafree.condensation.unrolling`.

    The release delivers half of this: it doubles a tuple, not the tensor in it. Take v / 2 to repeat its runs.

    Args:
        start: flat (P,) or a list of tensors.
        target: in the same form.
        gradient_sum: G, in the same form.
        learning_rate: a, the student's.

    Returns:
        In the form of `start`.

    Source: TESLA (Cui et al. 2023).
    """
    with torch.no_grad():
        scale = 2 * learning_rate / _squared_distance(start, target)
        triples = zip(_tensors(start), _tensors(target), _tensors(gradient_sum), strict=True)
        vectors = [scale * (raised(b) - raised(a) + learning_rate * raised(g)) for a, b, g in triples]
    return vectors[0] if isinstance(start, Tensor) else vectors


def soft_cross_entropy(logits: Tensor, label_logits: Tensor) -> Tensor:
    """-sum of softmax(label_logits) log softmax(logits), mean over the batch. Scalar >= 0.

    Args:
        logits: (N, C).
        label_logits: learnt labels before their softmax, (N, C); gradients flow into them too.

    Source: DATM (Guo et al. 2024), as its release computes it.
    """
    return -(F.softmax(raised(label_logits), 1) * F.log_softmax(raised(logits), 1)).sum(1).mean()
