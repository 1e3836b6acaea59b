"""What natural images are like: smooth and bounded, and to a trained teacher decided, balanced and strongly felt."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised
from datafree.parallel import batch_mean

LEAST = 1e-12  # of a probability under a logarithm


def onehot(logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's own decision: CE(t, argmax t). Scalar >= 0.

    Args:
        logits: the teacher's, (N, C).

    Source: DAFL (Chen et al. 2019), eq. 3.
    """
    return F.cross_entropy(raised(logits), logits.argmax(1))


def class_balance(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    """Negative entropy of the batch's mean prediction: sum of p log p, p = mean of softmax(t). Scalar in [-log C, 0].

    With a prior π it is KL(p || π) - log C instead, which is the same for equal shares.

    The mean is over the global batch of all processes. p is clamped from below, since 0 log 0 would be NaN.

    Args:
        logits: the teacher's, (N, C).
        prior: wanted share of each class, (C,), sums to 1; None: equal shares.

    Source: DAFL (Chen et al. 2019), eq. 6, with the sign that a loss has; the release's logarithm is to base 10.
    """
    p = batch_mean(F.softmax(raised(logits), dim=1))
    value = (p * torch.log(p.clamp_min(LEAST))).sum()
    if prior is not None:
        value = value - (p * torch.log(prior.clamp_min(LEAST))).sum() - math.log(len(prior))
    return value


def activation(features: Tensor) -> Tensor:
    """Minus the mean absolute feature. Scalar <= 0. Source: DAFL (Chen et al. 2019), eq. 4, as its release reduces it.

    Args:
        features: the teacher's penultimate features, (N, D).
    """
    return -raised(features).abs().mean()


def total_variation(images: Tensor, order: str = "l2") -> Tensor:
    """Roughness: differences to the right, lower, lower right and lower left neighbour. Scalar >= 0, 0 iff constant.

    Args:
        images: (N, C, H, W); one pixel high or wide, it has no such neighbours, whose differences count 0. The releases
            take it of normalised images, where it is larger: divided by the data's standard deviation.
        order: "l1" adds the four mean absolute differences, "l2" the four norms over the whole batch, not squared.

    Raises:
        ValueError: unknown order.

    Source: DeepInversion (Yin et al. 2020), R_TV, as its release computes both.
    """
    if order not in ("l1", "l2"):
        raise ValueError(f"unknown order {order!r}: take l1 or l2")
    x = raised(images)
    upper, lower = x[..., :-1, :], x[..., 1:, :]
    differences = (
        x[..., 1:] - x[..., :-1],
        lower - upper,
        lower[..., 1:] - upper[..., :-1],
        lower[..., :-1] - upper[..., 1:],
    )
    if order == "l1":
        return torch.stack([d.abs().mean() if d.numel() else d.sum() for d in differences]).sum()
    return torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()


def image_norm(images: Tensor, per_image: bool) -> Tensor:
    """Euclidean norm of the images, not squared. Scalar >= 0.

    Args:
        images: (N, C, H, W).
        per_image: the mean of the images' norms (DeepInversion's release on ImageNet), or the norm of the whole batch
            (its release on CIFAR-10).

    Source: DeepInversion (Yin et al. 2020), R_l2.
    """
    norms: Tensor = torch.linalg.vector_norm(raised(images).flatten(1 if per_image else 0), dim=-1)
    return norms.mean()
