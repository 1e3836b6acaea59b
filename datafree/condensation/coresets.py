"""Which of a class's images to keep, by their features: pure functions of one class at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def herding(features: Tensor, n: int) -> Tensor:
    """Rows of the n samples whose running mean stays nearest to the mean of all, in the order of selection. int64 (n,).

    The k-th choice (from 0) is, of those not chosen yet, the sample nearest to (k + 1) μ - Σ chosen.

    Args:
        features: (N, D), N >= n. Half types lose too much in the sum: give float32 or float64.
        n: how many.

    Source: Welling 2009, "Herding dynamical weights to learn"; as Rebuffi et al. 2017 (iCaRL), alg. 4, select.
    """
    _check(features, n)
    centred = features - features.mean(0)
    # || x - ((k + 1) μ - Σ chosen) || with x, μ and Σ shifted by μ: the wanted point is minus the sum of the chosen.
    lengths, total = centred.square().sum(1), torch.zeros_like(centred[0])
    chosen: list[int] = []
    for _ in range(n):
        distances = lengths + 2 * (centred @ total)
        if chosen:
            distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total = total + centred[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.int64, device=features.device)


def k_center(features: Tensor, n: int, first: int = 0) -> Tensor:
    """Rows of n samples, each the farthest from those before it, in the order of selection. int64 (n,).

    Greedy for the n centres whose farthest sample is nearest; at most twice the best radius (Gonzalez 1985).

    Args:
        features: (N, D), N >= n.
        n: how many.
        first: row to start from.
    """
    _check(features, n)
    chosen, nearest = [first], _distances(features, first)
    while len(chosen) < n:
        nearest[chosen] = -1  # so that no sample is taken twice, even where several are the same
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, _distances(features, chosen[-1]))
    return torch.tensor(chosen, dtype=torch.int64, device=features.device)


def most_central(features: Tensor) -> int:
    """The row nearest to the mean."""
    return int((features - features.mean(0)).square().sum(1).argmin())


def k_means(features: Tensor, n: int, seed: int) -> Tensor:
    """Centroids (n, D) of Lloyd's algorithm from one k-means++ start (Arthur & Vassilvitskii 2007); scikit-learn's.

    Args:
        features: (N, D), N >= n.
        n: how many.
        seed: of the start.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    _check(features, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different samples than centroids: some repeat
        found = KMeans(n, n_init=1, max_iter=100, random_state=seed % 2**32).fit(features.cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(features)


def nearest_rows(features: Tensor, centroids: Tensor) -> Tensor:
    """For each centroid (n, D) in turn, the row of the nearest sample (N, D) that is not taken yet. int64 (n,)."""
    _check(features, len(centroids))
    rows: list[int] = []
    for centroid in centroids:
        distances = (features - centroid).square().sum(1)
        distances[rows] = torch.inf
        rows.append(int(distances.argmin()))
    return torch.tensor(rows, dtype=torch.int64, device=features.device)


def _distances(features: Tensor, row: int) -> Tensor:
    return (features - features[row]).square().sum(1)


def _check(features: Tensor, n: int) -> None:
    if not 1 <= n <= len(features):
        raise ValueError(f"{n} of {len(features)} samples: give a number from 1 to that of the samples")
