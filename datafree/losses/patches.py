"""What a vision transformer makes of a natural image: patches that resemble one another to very different degrees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised

LEAST = 1e-12  # of a density under a logarithm


def patch_similarity_entropy(tokens: Sequence[Tensor], bandwidth: float = 0.05) -> Tensor:
    """Differential entropy of the patches' cosine similarities: mean over images, sum over attention blocks. Scalar.

    Noise leaves patches that are all alike, a picture of something does not: a generator maximises the entropy. A
    block's is between ln(h sqrt(2πe)), where all pairs are equally similar, and ln(2 + 8h). The density is a Gaussian
    kernel estimate of width h over each image's pairs of different patches. It is integrated at points h apart, from
    -1 - 4h to 1 + 4h, which is right to some 1e-4. Memory: a number for every point and each of P (P - 1) / 2 pairs.

    Args:
        tokens: the patches that came out of each block, (N, P, D), P >= 2 (`Teacher.look(tokens=True)`).
        bandwidth: h > 0, in units of the similarity.

    Source: PSAQ-ViT (Li et al. 2022), eqs. 4-7. Its release takes h = 0.01, all ordered pairs, a patch with itself
    among them, and 10 points between the least and the greatest similarity of the batch.
    """
    assert tokens, "no patches to compare"
    return torch.stack([_entropy(_similarities(patches), bandwidth) for patches in tokens]).sum()


def _similarities(patches: Tensor) -> Tensor:
    """Cosine similarities of the pairs of different patches, (N, P (P - 1) / 2), in float32 under autocast too."""
    with torch.autocast(patches.device.type, enabled=False):
        directions = F.normalize(raised(patches), dim=2)
        whole = directions @ directions.transpose(1, 2)
    count = whole.shape[1]
    first, second = torch.triu_indices(count, count, 1, device=whole.device)
    return whole[:, first, second]


def _entropy(samples: Tensor, h: float) -> Tensor:
    """Mean over rows of -∫ f ln f, f the density of a row's samples (N, M) in [-1, 1]."""
    count = math.ceil(2 / h) + 8
    points = torch.arange(count + 1, dtype=samples.dtype, device=samples.device) * h - count * h / 2
    distances = (points[:, None] - samples[:, None, :]) / h
    density = distances.square().mul(-0.5).exp().mean(2) / (h * math.sqrt(2 * math.pi))
    return -h * (density * density.clamp_min(LEAST).log()).sum(1).mean()
