"""The distance from what norm layers remember, over the batches of a run, with numbers by hand."""

from __future__ import annotations

import pytest
import torch

from datafree.losses import Statistics
from datafree.synthesis.remembered import Remembered


def layer(mean: float, var: float, running_mean: float, running_var: float) -> Statistics:
    return Statistics(*(torch.tensor([float(value)]) for value in (mean, var, running_mean, running_var)))


def test_the_first_layer_counts_as_often_as_asked() -> None:
    seen = [layer(3, 1, 0, 1), layer(0, 5, 0, 1)]  # 3 away in the mean, 4 in the variance
    assert Remembered().term(seen).item() == 3 + 4
    assert Remembered(first=10.0).term(seen).item() == 10 * 3 + 4


def test_earlier_rounds_stand_in_for_part_of_a_batch() -> None:
    remembered = Remembered(momentum=0.75)
    assert remembered.term([layer(4, 1, 0, 1)]).item() == 4
    assert remembered.term([layer(8, 1, 0, 1)]).item() == 8  # the same round: nothing is remembered yet
    remembered.remember()
    assert remembered.seen == [], "the last batch's graph is held"
    assert remembered.term([layer(4, 1, 0, 1)]).item() == pytest.approx(0.25 * 4 + 0.75 * 8)
    remembered.remember()  # of the batch itself, not of the mixture: 0.25 * 4 + 0.75 * 8
    assert remembered.average[0][0].item() == pytest.approx(7)
