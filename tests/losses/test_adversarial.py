"""The disagreement that a generator maximises: against published code, by hand, and by finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree import losses

PARITY = np.load(Path(__file__).with_name("parity.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


def test_masked_disagreement_equals_published_code() -> None:
    student = held("masked.in_student_logits").requires_grad_()
    teacher = held("masked.in_teacher_logits").requires_grad_()
    loss = -losses.disagreement(student, teacher, masked=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.decision_mask(student, teacher), held("masked.out_mask").double())
    torch.testing.assert_close(loss, held("masked.out_loss"), **CLOSE)
    torch.testing.assert_close(student.grad, held("masked.grad_student_logits"), **CLOSE)
    torch.testing.assert_close(teacher.grad, held("masked.grad_teacher_logits"), **CLOSE)


@pytest.mark.parametrize("distance", ["kl", "l1"])
def test_where_no_decision_agrees_value_and_gradient_are_exactly_zero(distance: str) -> None:
    student = held("masked.in_student_logits").requires_grad_()
    loss = losses.disagreement(student, held("masked.in_teacher_logits_no_agree"), distance, masked=True)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0 == float(PARITY["masked.out_loss_no_agree"])
    assert student.grad is not None
    assert not student.grad.any()
    assert not PARITY["masked.grad_student_logits_no_agree"].any()


def test_l1_disagreement_equals_published_code() -> None:
    student, teacher = held("l1.in_student_logits").requires_grad_(), held("l1.in_teacher_logits").requires_grad_()
    loss = -losses.disagreement(student, teacher, "l1")
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, held("l1.out_generator_l1"), **CLOSE)
    torch.testing.assert_close(student.grad, held("l1.grad_generator_l1_student_logits"), **CLOSE)
    torch.testing.assert_close(teacher.grad, held("l1.grad_generator_l1_teacher_logits"), **CLOSE)


def test_mean_is_over_all_samples_not_over_those_that_agree() -> None:
    # Sample 0 agrees with |s - t| = (1 + 0) / 2, sample 1 does not agree: (0.5 + 0) / 2, not 0.5.
    student = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    assert losses.decision_mask(student, teacher).tolist() == [1.0, 0.0]
    assert losses.disagreement(student, teacher, "l1", masked=True).item() == 0.25
    assert losses.disagreement(student, teacher, "l1").item() == 0.75  # (0.5 + 1) / 2


def test_unmasked_kl_is_the_students_loss_at_temperature_one() -> None:
    student, teacher = torch.randn(2, 6, 5)
    assert losses.disagreement(student, teacher) == losses.kl(student, teacher, 1.0)
    assert losses.disagreement(student, student, masked=True).item() == 0.0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distance", ["kl", "l1"])
def test_gradients_by_finite_differences(distance: str, masked: bool) -> None:
    student, teacher = (torch.randn(16, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert 0 < losses.decision_mask(student, teacher).sum() < 16
    assert torch.autograd.gradcheck(lambda s, t: losses.disagreement(s, t, distance, masked), (student, teacher))


@pytest.mark.parametrize("distance", ["kl", "l1"])
def test_half_types_are_raised(distance: str) -> None:
    student, teacher = torch.randn(2, 6, 5).bfloat16()
    value = losses.disagreement(student, teacher, distance, masked=True)
    assert value.dtype == torch.float32
    assert value == losses.disagreement(student.float(), teacher.float(), distance, masked=True)


def test_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown distance 'l2': take kl, l1 or js"):
        losses.disagreement(torch.zeros(1, 2), torch.zeros(1, 2), "l2")
