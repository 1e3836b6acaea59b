"""Kernel ridge regression and the label margin: against published code, numpy, and by finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import losses

PARITY = np.load(Path(__file__).with_name("condensation.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
RIDGE = float(PARITY["krr.par_reg"])


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[f"krr.{name}"])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_objective_equals_published_code() -> None:
    target, prototypes, labels = (
        held(name).requires_grad_() for name in ("in_feat_target", "in_feat_proto", "in_label_proto")
    )
    predicted = losses.kernel_ridge_prediction(target, prototypes, labels, RIDGE)
    torch.testing.assert_close(predicted, held("out_pred"), **CLOSE)
    loss = losses.kernel_ridge_regression(target, held("in_label_target"), prototypes, labels, RIDGE)
    margin = losses.label_margin(labels, 10)
    torch.testing.assert_close(loss, held("out_krr_loss"), **CLOSE)
    torch.testing.assert_close(margin, held("out_label_margin_loss"), **CLOSE)
    total = loss + margin
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(total, held("out_total"), **CLOSE)
    torch.testing.assert_close(target.grad, held("grad_total_feat_target"), **CLOSE)
    torch.testing.assert_close(prototypes.grad, held("grad_total_feat_proto"), **CLOSE)
    torch.testing.assert_close(labels.grad, held("grad_total_label_proto"), **CLOSE)


def test_mirrored_prototypes_equal_published_code() -> None:
    prototypes = torch.cat([held("in_feat_proto"), held("in_feat_proto_flipped")])
    labels = held("in_label_proto").repeat(2, 1)
    loss = losses.kernel_ridge_regression(held("in_feat_target"), held("in_label_target"), prototypes, labels, RIDGE)
    torch.testing.assert_close(loss, held("out_krr_loss_with_flip"), **CLOSE)


def test_label_margin_of_each_prototype_equals_published_code() -> None:
    each = torch.stack([losses.label_margin(row[None], 10) for row in held("in_label_proto")])
    torch.testing.assert_close(each, held("out_label_margin_per_proto"), **CLOSE)


def test_prediction_equals_numpys_inverse() -> None:
    target, prototypes, labels = random(4, 6).detach(), random(3, 6).detach(), random(3, 2).detach()
    kernel = prototypes.numpy() @ prototypes.numpy().T
    inverse = np.linalg.inv(kernel + 0.1 * np.trace(kernel) / 3 * np.eye(3))
    wanted = target.numpy() @ prototypes.numpy().T @ inverse @ labels.numpy()
    found = losses.kernel_ridge_prediction(target, prototypes, labels, 0.1)
    torch.testing.assert_close(found, torch.from_numpy(wanted))


def test_prototypes_predict_their_own_labels_whatever_the_scale() -> None:
    prototypes, labels = random(3, 6).detach(), random(3, 2).detach()
    for scale in (1.0, 100.0):
        found = losses.kernel_ridge_prediction(scale * prototypes, scale * prototypes, labels, 1e-9)
        torch.testing.assert_close(found, labels, rtol=1e-6, atol=1e-6)


def test_regression_by_hand() -> None:
    # One prototype (1, 0) labelled 1, ridge 1: K = 1, weight 1 / 2; the target (2, 0) is predicted 1, wanted 4.
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    found = losses.kernel_ridge_regression(two, torch.tensor([[4.0]]), one, torch.tensor([[1.0]]), 1.0)
    assert found.item() == 4.5  # 3² / 2


def test_more_prototypes_than_features_do_not_break_float32() -> None:
    prototypes = (torch.rand(1, 32) + 0.3 * torch.randn(96, 32)).relu()
    target = (torch.rand(1, 32) + 0.3 * torch.randn(8, 32)).relu()
    labels = F.one_hot(torch.arange(96) % 10, 10) - 0.1
    found = losses.kernel_ridge_prediction(target, prototypes, labels)
    wanted = losses.kernel_ridge_prediction(target.double(), prototypes.double(), labels.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_label_margin_by_hand() -> None:
    # Margins 0.1 and 0.9 of 4 classes: -(0.1 + 1/4) / 2.
    labels = torch.tensor([[0.5, 0.4, 0.0, 0.1], [0.0, 1.0, 0.1, 0.0]], requires_grad=True)
    margin = losses.label_margin(labels, 4)
    margin.backward()  # type: ignore[no-untyped-call]
    assert margin.item() == pytest.approx(-0.175, rel=1e-6)
    assert labels.grad is not None
    assert labels.grad.tolist() == [[-0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert losses.label_margin(torch.zeros(3, 4), 4).item() == 0


def test_gradients_by_finite_differences() -> None:
    given = random(4, 6), random(4, 2), random(3, 6), random(3, 2)
    assert torch.autograd.gradcheck(lambda t, y, p, z: losses.kernel_ridge_regression(t, y, p, z, 0.1), given)
    assert torch.autograd.gradcheck(lambda y: losses.label_margin(y, 5), random(3, 5))


def test_half_types_are_raised() -> None:
    target, prototypes = torch.randn(2, 4, 6).bfloat16()
    found = losses.kernel_ridge_regression(target, target, prototypes, prototypes)
    assert found.dtype == torch.float32
    assert found == losses.kernel_ridge_regression(
        target.float(), target.float(), prototypes.float(), prototypes.float()
    )
    assert losses.label_margin(target, 6).dtype == torch.float32


def test_a_kernel_without_inverse_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be inverted: check that features are not all zero"):
        losses.kernel_ridge_prediction(torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_predict_nan(value: float) -> None:
    """So that it is a term that is not finite, and no matter of options."""
    features = torch.rand(2, 3)
    features[1, 2] = value
    assert bool(losses.kernel_ridge_prediction(torch.ones(4, 3), features, torch.ones(2, 2)).isnan().all())
