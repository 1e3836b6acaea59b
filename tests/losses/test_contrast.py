"""InfoNCE: against numpy and finite differences; against published code in tests/synthesis/test_cmi.py."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from datafree import losses


@pytest.mark.parametrize("first", [0, 2])
def test_info_nce_equals_numpy(first: int) -> None:
    rows, columns = torch.randn(4, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    a, b = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (rows, columns))
    wanted = -np.mean([log_softmax(a[i] @ b.T / 0.2)[first + i] for i in range(4)])
    assert losses.info_nce(rows, columns, 0.2, first).item() == pytest.approx(wanted, rel=1e-12)


def test_info_nce_by_hand() -> None:
    # Cosines 1 with the own column and 0 with the two others: -ln(e^(1/τ) / (e^(1/τ) + 2)).
    rows = torch.eye(3, dtype=torch.float64)
    wanted = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert losses.info_nce(3 * rows, 0.1 * rows, 0.5).item() == pytest.approx(wanted, rel=1e-12)


def test_all_candidates_alike_tell_nothing() -> None:
    rows = torch.ones(4, 3, dtype=torch.float64)
    assert losses.info_nce(rows, torch.ones(9, 3, dtype=torch.float64), 0.1).item() == pytest.approx(math.log(9))


def test_gradients_of_info_nce_by_finite_differences() -> None:
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    columns = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(losses.info_nce, temperature=0.3, first=1), (rows, columns))


def test_half_types_are_raised() -> None:
    rows = torch.randn(4, 8).bfloat16()
    value = losses.info_nce(rows, rows, 0.1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, losses.info_nce(rows.float(), rows.float(), 0.1))


def test_autocast_leaves_info_nce_in_float32() -> None:
    rows, columns = torch.randn(8, 64), torch.randn(32, 64)
    wanted = losses.info_nce(rows, columns, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.info_nce(rows, columns, 0.1), wanted)
