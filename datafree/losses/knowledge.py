"""What a student learns from its teacher's response: divergences between logits."""

from __future__ import annotations

from collections.abc import Callable

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


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean of `kl_per_sample` over the batch (not over batch times classes). Scalar."""
    return kl_per_sample(student, teacher, temperature).mean()


def l1(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean |s - t| over all logits; the temperature has no part in it. Scalar.

    Source: DFAD (Fang et al. 2019), eq. 4.
    """
    return (raised(student) - raised(teacher)).abs().mean()


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean (s - t)² over all logits; the temperature has no part in it. Scalar. Source: Ba & Caruana 2014, eq. 2."""
    return (raised(student) - raised(teacher)).square().mean()


CRITERIA: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"kl": kl, "l1": l1, "mse": mse}
