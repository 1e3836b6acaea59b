"""Kernel ridge regression on features: prototypes predict the labels of real images in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.losses.precision import raised


def kernel_ridge_prediction(
    target_features: Tensor, prototype_features: Tensor, prototype_labels: Tensor, regularisation: float = 1e-6
) -> Tensor:
    """F_t F_pᵀ (K + r tr(K)/M I)⁻¹ Y_p with the linear kernel K = F_p F_pᵀ. (N, C).

    Computed in float64 inside, whatever comes in. The default r is at float32's rounding: with 1,000 prototypes of
    512 features a float32 factorisation fails, and a float32 solve errs by hundreds where labels are below one.

    Args:
        target_features: of real images, (N, D).
        prototype_features: of synthetic images, (M, D); for mirrored copies append theirs and repeat the labels.
        prototype_labels: (M, C), usually one-hot - 1/C, or learnt.
        regularisation: r > 0, relative to the kernel's mean diagonal.

    Features that are not finite predict NaN, as elsewhere; whoever steps on the loss looks at it.

    Raises:
        ValueError: the kernel of finite features cannot be inverted.

    Source: FRePo (Zhou et al. 2022), with r scaled as in its release; the predictor is KIP's (Nguyen et al. 2021).
    """
    features = prototype_features.double()
    kernel = features @ features.T
    ridge = regularisation * kernel.trace() / len(kernel)
    factor, failed = torch.linalg.cholesky_ex(kernel + ridge * torch.eye(len(kernel)).to(kernel))
    if failed.item():
        if bool(kernel.isfinite().all()):
            raise ValueError("the prototypes' kernel cannot be inverted: check that features are not all zero")
        factor = torch.full_like(kernel, torch.nan)
    weights = features.T @ torch.cholesky_solve(prototype_labels.double(), factor)
    return (target_features.double() @ weights).to(raised(target_features).dtype)


def kernel_ridge_regression(
    target_features: Tensor,
    target_labels: Tensor,
    prototype_features: Tensor,
    prototype_labels: Tensor,
    regularisation: float = 1e-6,
) -> Tensor:
    """Half the squared error of `kernel_ridge_prediction`, summed over classes, mean over targets. Scalar >= 0.

    Args:
        target_features: (N, D).
        target_labels: (N, C), as the prototypes' labels: usually one-hot - 1/C.
        prototype_features: (M, D).
        prototype_labels: (M, C).
        regularisation: see `kernel_ridge_prediction`.

    Source: FRePo (Zhou et al. 2022), as its release reduces it.
    """
    predicted = kernel_ridge_prediction(target_features, prototype_features, prototype_labels, regularisation)
    return (predicted - raised(target_labels)).square().sum(1).mean() / 2


def label_margin(labels: Tensor, classes: int) -> Tensor:
    """Mean over prototypes of -min(largest - second largest entry, 1/classes). Scalar in [-1/classes, 0].

    Keeps learnt labels decided; a margin above 1/classes gets no gradient.

    Args:
        labels: learnt, (M, C), C >= 2.
        classes: C.

    Source: FRePo (Zhou et al. 2022), release.
    """
    first, second = raised(labels).topk(2, dim=1).values.unbind(1)
    return -(first - second).clamp_max(1 / classes).mean()
