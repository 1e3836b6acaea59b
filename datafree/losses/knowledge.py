"""What a student learns from its teacher's response: divergences between logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised


def kl_per_sample(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(softmax(t/T) || softmax(s/T)) of each sample.

    Args:
        student: logits (N, C).
        teacher: logits (N, C); gradients flow into them too (a generator is trained through both networks).
        temperature: T > 0.

    Returns:
        (N,), in nats times T².

    Source: Hinton, Vinyals & Dean 2015, sec. 2 (the T² keeps the gradient's scale).
    """
    log_q = F.log_softmax(raised(student) / temperature, dim=1)
    log_p = F.log_softmax(raised(teacher) / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1) * temperature**2


def l1_per_sample(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |s - t| over the logits (N, C) of each sample, (N,).

    Source: DFAD (Fang et al. 2019), eq. 4.
    """
    return (raised(student) - raised(teacher)).abs().mean(1)


def js_per_sample(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Jensen-Shannon divergence of softmax(t/T) and softmax(s/T), sample by sample. (N,), in [0, ln 2] nats.

    Nothing is clamped: where a probability vanishes, its logarithm stays finite in log space.

    Source: Lin 1991; adaptive DeepInversion (Yin et al. 2020), eq. 8, with T = 3.
    """
    log_q = F.log_softmax(raised(student) / temperature, dim=1)
    log_p = F.log_softmax(raised(teacher) / temperature, dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * ((log_p.exp() * (log_p - log_m)).sum(1) + (log_q.exp() * (log_q - log_m)).sum(1))


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """Mean of `kl_per_sample` over the batch (not over batch times classes). Scalar.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0.
        weights: factors of the samples, (N,); None: 1.
    """
    return _mean(kl_per_sample(student, teacher, temperature), weights)


def l1(student: Tensor, teacher: Tensor, temperature: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """Mean of `l1_per_sample`; the temperature has no part in it. Scalar. For the arguments see `kl`."""
    return _mean(l1_per_sample(student, teacher), weights)


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """Mean (s - t)² over all logits; the temperature has no part in it. Scalar. For the arguments see `kl`.

    Source: Ba & Caruana 2014, eq. 2.
    """
    return _mean((raised(student) - raised(teacher)).square().mean(1), weights)


def _mean(per_sample: Tensor, weights: Tensor | None) -> Tensor:
    return per_sample.mean() if weights is None else (weights * per_sample).mean()


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over blocks of the mean squared distance of two attention maps. Scalar >= 0.

    A map is the channels' mean of the squared activations, flattened and scaled to unit length, image by image.

    Args:
        student: activations of each block, (N, C_l, H_l, W_l).
        teacher: of the same sizes, any channels.

    Source: Zagoruyko & Komodakis 2017, eq. 2, as ZSKT (Micaelli & Storkey 2019) reduces it (mean, weight 250).
    """
    terms = [(_attention(a) - _attention(b)).square().mean() for a, b in zip(student, teacher, strict=True)]
    return torch.stack(terms).sum()


def _attention(activations: Tensor) -> Tensor:
    return F.normalize(raised(activations).square().mean(1).flatten(1), dim=1)


CRITERIA: dict[str, Callable[..., Tensor]] = {"kl": kl, "l1": l1, "mse": mse}
