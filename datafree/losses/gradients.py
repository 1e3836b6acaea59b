"""Distances between two lists of parameter gradients: those of real images and those of synthetic ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datafree.losses.precision import raised


def _one_minus_cosine(real: Tensor, synthetic: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(real, dim=1) * torch.linalg.vector_norm(synthetic, dim=1)
    distances: Tensor = 1 - (real * synthetic).sum(1) / (norms + 1e-6)  # the release adds it to the product
    return distances.sum()


def _squares(real: Tensor, synthetic: Tensor) -> Tensor:
    return (real - synthetic).square().sum()


# Each takes one tensor's two gradients as rows (R, n), a row an output channel, and gives a scalar.
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": _one_minus_cosine,
    "mse": _squares,
    "cos": _one_minus_cosine,
    "idc_mse": _squares,
    "idc_l1": lambda real, synthetic: (real - synthetic).abs().sum(),
    "idc_l1_mean": lambda real, synthetic: (real - synthetic).abs().mean(1).sum(),
}


def _rows(gradient: Tensor) -> Tensor:
    return raised(gradient).flatten(1) if gradient.ndim > 1 else raised(gradient).reshape(1, -1)


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], metric: str = "ours") -> Tensor:
    """Distance of two gradients of one network, tensor by tensor. Scalar >= 0.

    A row is what belongs to one output: (out, in, h, w) gives out rows of in h w, (C, h, w) gives C rows.

    Args:
        real: gradients by parameter, usually detached.
        synthetic: gradients by parameter, of the same shapes in the same order, with their graph.
        metric: "ours" sums 1 - cosine over rows and tensors, without 1-D tensors (biases, norms' scales);
            "mse" sums (a - b)² and "cos" takes 1 - cosine over everything, 1-D tensors included. Over 4-D tensors
            (convolutions' weights) alone: "idc_mse" sums (a - b)², "idc_l1" sums |a - b|, "idc_l1_mean" sums
            each row's mean |a - b|.

    Raises:
        ValueError: unknown metric, or no tensor for the metric to match.

    Source: "ours": DC (Zhao et al. 2021), with 1e-6 added to the product of norms as in its release;
    "mse" and "cos": that release; idc_*: IDC (Kim et al. 2022), release.
    """
    if metric not in _DISTANCES:
        raise ValueError(f"unknown metric {metric!r}: take one of {', '.join(_DISTANCES)}")
    pairs = list(zip(real, synthetic, strict=True))
    assert all(a.shape == b.shape for a, b in pairs), "gradients of different networks"
    if metric.startswith("idc_"):
        pairs = [pair for pair in pairs if pair[0].ndim == 4]
    elif metric == "ours":
        pairs = [pair for pair in pairs if pair[0].ndim > 1]
    if not pairs:
        raise ValueError(f"the network has no parameters that {metric} matches: take mse")
    rows = [(_rows(a), _rows(b)) for a, b in pairs]
    if metric == "cos":
        rows = [(torch.cat([a.flatten() for a, _ in rows])[None], torch.cat([b.flatten() for _, b in rows])[None])]
    return torch.stack([_DISTANCES[metric](a, b) for a, b in rows]).sum()
