"""Codes of a variational autoencoder."""

from __future__ import annotations

from torch import Tensor

from datafree.losses.precision import raised


def normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) summed over the code's entries, mean over the batch. Scalar >= 0, in nats.

    Args:
        mean: (N, D).
        log_variance: (N, D).

    Source: Kingma & Welling 2014, appendix B.
    """
    mean, log_variance = raised(mean), raised(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
