"""Herding and k-center against the published code, and selections against slow obvious ones.

`selections.npz`: herding by snu-mllab/Efficient-Dataset-Condensation ceac95a, k-center by PatrickZH/DeepCore 74ec709,
SRe²L's recovery by VILA-Lab/SRe2L 8d00cba; inputs, values and gradients in float64, computed with the authors' code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree.condensation.coresets import herding, k_center, k_means, most_central, nearest_rows

HELD = np.load(Path(__file__).with_name("selections.npz"))


def held(name: str) -> Tensor:
    return torch.from_numpy(HELD[f"coresets.{name}"])


def of_class(label: int) -> tuple[Tensor, Tensor]:
    rows = (held("in_labels") == label).nonzero().flatten()
    return rows, held("in_features")[rows]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_herding_equals_the_published_code(dtype: torch.dtype) -> None:
    n = int(held("par_ipc"))
    chosen = [rows[herding(features.to(dtype), n)] for rows, features in map(of_class, range(3))]
    assert torch.cat(chosen).tolist() == held("out_herding").tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_k_center_equals_the_published_code(dtype: torch.dtype) -> None:
    for label in range(3):
        rows, features = of_class(label)
        assert (
            rows[k_center(features.to(dtype), int(held("par_ipc")))].tolist()
            == held("out_kcenter_order")[label].tolist()
        )


def test_all_samples_are_taken_once_where_as_many_are_wanted() -> None:
    features = torch.randn(7, 3).repeat(2, 1)  # each sample twice
    for chosen in (herding(features, 14), k_center(features, 14), nearest_rows(features, features[:1].expand(14, -1))):
        assert sorted(chosen.tolist()) == list(range(14))


def test_the_first_of_herding_is_the_most_central() -> None:
    features = torch.randn(30, 4)
    assert herding(features, 1).tolist() == [most_central(features)]
    assert most_central(torch.tensor([[0.0], [4.0], [5.0]])) == 1  # the mean is 3


def test_k_center_radius_is_at_most_twice_the_best() -> None:
    # Pairs at 0, 10 and 20: the best three centres leave a radius of 1 (of 0.5 with centres that are no samples).
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0], [20.0], [21.0]])
    for first in range(6):
        chosen = features[k_center(features, 3, first)]
        assert float((features - chosen.T).abs().min(1).values.max()) <= 2.0


def test_k_means_finds_separate_clusters_and_one_centroid_is_the_mean() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    features = (centres[:, None] + torch.randn(3, 20, 2)).flatten(0, 1)
    found = k_means(features, 3, seed=1)
    wanted = features.view(3, 20, 2).mean(1)
    assert float(torch.cdist(wanted, found).min(1).values.max()) < 1e-4
    torch.testing.assert_close(k_means(features, 1, seed=1)[0], features.mean(0), rtol=1e-4, atol=1e-4)
    rows = nearest_rows(features, found)
    assert sorted((rows // 20).tolist()) == [0, 1, 2]


def test_fewer_different_samples_than_centroids_warn_of_nothing() -> None:
    assert k_means(torch.zeros(6, 2), 3, seed=0).shape == (3, 2)


def test_more_than_there_are_is_an_error() -> None:
    for select in (herding, k_center):
        with pytest.raises(ValueError, match="5 of 4 samples"):
            select(torch.zeros(4, 2), 5)
