"""Distances between distributions of features: of real images and of synthetic ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean feature of each class, as a product with the one-hot matrix. (classes, D).

    A class without a row gets zeros, without gradient. The means are over this process's rows.

    Args:
        features: (N, D).
        labels: classes, (N,) integers in [0, classes).
        classes: their number.
    """
    features = raised(features)
    members = F.one_hot(labels.long(), classes).to(features.dtype)
    return members.T @ features / members.sum(0).clamp_min(1).unsqueeze(1)


def mean_embedding(real_means: Tensor, synthetic_means: Tensor) -> Tensor:
    """Sum over classes of the squared distance of the class means. Scalar >= 0, 0 iff all means agree.

    Args:
        real_means: mean features of real images, a row a class, (K, D).
        synthetic_means: (K, D).

    Source: DM (Zhao & Bilen 2023), summed over classes and features as in its release.
    """
    return (raised(real_means) - raised(synthetic_means)).square().sum()


def layer_alignment(
    real_means: Sequence[Tensor], synthetic_means: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """Weighted sum over layers of `mean_embedding`. Scalar >= 0.

    Args:
        real_means: each layer's class means of real images, (K, D_l).
        synthetic_means: the same of synthetic images.
        weights: one a layer; 1 where left out.

    Source: CAFE (Wang et al. 2022), layer-wise feature alignment, with the weights of its release.
    """
    terms = [mean_embedding(a, b) for a, b in zip(real_means, synthetic_means, strict=True)]
    assert terms, "no layers to align"
    return torch.stack([w * term for w, term in zip(weights or [1.0] * len(terms), terms, strict=True)]).sum()


def discrimination(real_features: Tensor, labels: Tensor, synthetic_means: Tensor) -> Tensor:
    """Cross-entropy of real features with the synthetic class means as classifier, summed over the batch. Scalar >= 0.

    Args:
        real_features: penultimate features of real images, (N, D).
        labels: their classes, (N,) integers in [0, K).
        synthetic_means: class means of the synthetic images' features, (K, D).

    Source: CAFE (Wang et al. 2022), discrimination loss; logits are inner products, and its release sums.
    """
    return F.cross_entropy(raised(real_features) @ raised(synthetic_means).T, labels, reduction="sum")


def attention_maps(activations: Tensor, power: float) -> Tensor:
    """Where a layer looks: sum over channels of |a|^power, each image's map scaled to unit length. (N, H W).

    Args:
        activations: (N, C, H, W).
        power: > 0. DataDAM's release takes 1.

    Source: DataDAM (Sajedi et al. 2023), spatial attention matching; the map is that of Zagoruyko & Komodakis 2017.
    """
    return F.normalize(raised(activations).abs().pow(power).sum(1).flatten(1), dim=1)


def attention_matching(
    real: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    real_labels: Tensor,
    synthetic_labels: Tensor,
    classes: int,
    power: float,
) -> Tensor:
    """Sum over layers and classes of the squared distance of mean attention maps. Scalar >= 0.

    Args:
        real: each layer's activations of real images, (N, C_l, H_l, W_l). The release leaves the last layer out
            and matches its features by `mean_embedding`.
        synthetic: the same of synthetic images, (M, C_l, H_l, W_l).
        real_labels: classes, (N,) integers.
        synthetic_labels: (M,).
        classes: their number.
        power: see `attention_maps`.

    For loops of one's own; `--method datadam` computes the same, and keeps each layer's means instead of its maps.

    Source: DataDAM (Sajedi et al. 2023), spatial attention matching, reduced as in its release.
    """
    return layer_alignment(
        [class_means(attention_maps(a, power), real_labels, classes) for a in real],
        [class_means(attention_maps(a, power), synthetic_labels, classes) for a in synthetic],
    )


def _characteristic_function(features: Tensor, frequencies: Tensor) -> Tensor:
    phases = features @ frequencies.T
    return torch.stack([phases.cos().mean(0), phases.sin().mean(0)])


def characteristic_function_distance(
    real: Tensor,
    synthetic: Tensor,
    frequencies: Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Tensor:
    """Mean over frequencies of sqrt(alpha (|P| - |Q|)² + beta 2 (|P||Q| - Re P Re Q - Im P Im Q)). Scalar > 0.

    P and Q are the empirical characteristic functions, the means of exp(i t x) over a batch. The second bracket is
    computed as |P - Q|² - (|P| - |Q|)², which is the same number: as written above float32 loses it to rounding
    where P and Q are close. It is clamped to 1e-12 from below, as in the release, so beta > 0 keeps the root
    differentiable. With alpha = beta the distance is sqrt(alpha) times the mean |P - Q|.

    Args:
        real: features of real images of one class, (N, D); NCFM scales each to unit length first.
        synthetic: (M, D).
        frequencies: t, (K, D); NCFM draws them from N(0, 1).
        alpha: weight of the amplitudes.
        beta: weight of the phases, > 0.

    Source: NCFM (Wang et al. 2025), as its release computes it.
    """
    frequencies = raised(frequencies)
    p, q = (_characteristic_function(raised(x), frequencies) for x in (real, synthetic))
    amplitudes = (torch.linalg.vector_norm(p, dim=0) - torch.linalg.vector_norm(q, dim=0)).square()
    phases = ((p - q).square().sum(0) - amplitudes).clamp_min(1e-12)
    distances: Tensor = (alpha * amplitudes + beta * phases).sqrt()
    return distances.mean()
