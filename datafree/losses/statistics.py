"""What batch norm remembers of the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """One batch-norm layer's input in this batch beside what the layer remembers; all (C,)."""

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


def batch_norm_statistics(layers: Sequence[Statistics], first_multiplier: float = 1.0) -> Tensor:
    """Sum over layers of ||running_var - var|| + ||running_mean - mean||. Scalar >= 0, 0 iff all statistics agree.

    Norms over channels, not squared; biased variance; no division by the number of layers.

    Args:
        layers: statistics in the order of the forward pass, at least one.
        first_multiplier: weight of the first layer (DeepInversion's release takes 10 on ImageNet).

    Source: DeepInversion (Yin et al. 2020), eq. 4, as its release and all that followed compute it.
    """
    assert layers, "no batch-norm statistics to match"
    terms = [
        torch.linalg.vector_norm(layer.running_var - layer.var)
        + torch.linalg.vector_norm(layer.running_mean - layer.mean)
        for layer in layers
    ]
    return torch.stack([first_multiplier * terms[0], *terms[1:]]).sum()


def mix_statistics(
    layers: Sequence[Statistics], average: Sequence[tuple[Tensor, Tensor]], momentum: float
) -> list[Statistics]:
    """(1 - m) batch + m average, layer by layer: small batches need not carry all statistics by themselves.

    Gradients flow through the batch's part alone, so they shrink by 1 - m. An empty average changes nothing.

    Args:
        layers: this batch's statistics.
        average: running (mean, var) of earlier batches, one pair a layer; empty on the first call.
        momentum: m in [0, 1).

    Source: Fast data-free distillation (Fang et al. 2022), release.
    """
    if not average or momentum == 0:
        return list(layers)
    return [
        layer._replace(mean=torch.lerp(layer.mean, mean, momentum), var=torch.lerp(layer.var, var, momentum))
        for layer, (mean, var) in zip(layers, average, strict=True)
    ]


def update_average(
    average: Sequence[tuple[Tensor, Tensor]], layers: Sequence[Statistics], momentum: float
) -> list[tuple[Tensor, Tensor]]:
    """m average + (1 - m) batch, layer by layer; the batch's own on the first call."""
    if not average:
        return [(layer.mean.detach(), layer.var.detach()) for layer in layers]
    return [
        (torch.lerp(layer.mean.detach(), mean, momentum), torch.lerp(layer.var.detach(), var, momentum))
        for layer, (mean, var) in zip(layers, average, strict=True)
    ]
