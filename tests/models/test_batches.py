"""The parts of an epoch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.models.batches import in_batches


@pytest.mark.parametrize(
    ("count", "norm", "sizes"),
    [
        (9, True, [4, 5]),  # no batch norm can take the one image that is left
        (9, False, [4, 4, 1]),
        (10, True, [4, 4, 2]),
        (8, True, [4, 4]),
        (1, True, [1]),
    ],
)
def test_a_last_image_joins_those_before_where_they_meet_in_a_batch_norm(
    count: int, norm: bool, sizes: list[int]
) -> None:
    network, order = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2) if norm else nn.ReLU()), torch.randperm(count)
    parts = in_batches(order, 4, network)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), order)
    assert [len(part) for part in in_batches(order, 4, network.eval())] == [len(p) for p in torch.split(order, 4)]
