"""What natural images do to a trained teacher: confident, balanced decisions and strong features."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised
from datafree.parallel import batch_mean


def onehot(logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's own decision: CE(t, argmax t). Scalar >= 0.

    Args:
        logits: the teacher's, (N, C).

    Source: DAFL (Chen et al. 2019), eq. 3.
    """
    return F.cross_entropy(raised(logits), logits.argmax(1))


def class_balance(logits: Tensor, base: float = math.e) -> Tensor:
    """Negative entropy of the batch's mean prediction: sum of p log p, p = mean of softmax(t). Scalar in [-log C, 0].

    The mean is over the global batch of all processes. p is clamped from below, since 0 log 0 would be NaN.

    Args:
        logits: the teacher's, (N, C).
        base: of the logarithm. DAFL's release takes 10, its re-implementations e.

    Source: DAFL (Chen et al. 2019), eq. 6, with the sign that a loss has.
    """
    p = batch_mean(F.softmax(raised(logits), dim=1))
    return (p * torch.log(p.clamp_min(1e-12))).sum() / math.log(base)


def activation(features: Tensor) -> Tensor:
    """Minus the mean absolute feature. Scalar <= 0. Source: DAFL (Chen et al. 2019), eq. 4, as its release reduces it.

    Args:
        features: the teacher's penultimate features, (N, D).
    """
    return -raised(features).abs().mean()
