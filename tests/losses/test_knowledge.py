"""KL, JS, L1 and MSE between logits, attention between maps: against published code, numpy, finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from datafree import losses

PARITY = np.load(Path(__file__).with_name("parity.npz"), allow_pickle=False)
ZSKT = np.load(Path(__file__).with_name("zskt.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


def logits(n: int = 6, classes: int = 5) -> Tensor:
    return torch.randn(n, classes, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("row", range(3))
def test_kl_equals_published_code(row: int) -> None:
    student, teacher = held("kl.in_student_logits").requires_grad_(), held("kl.in_teacher_logits").requires_grad_()
    temperature = float(PARITY["kl.par_T"][row])
    loss = losses.kl(student, teacher, temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, held("kl.out_loss")[row], **CLOSE)
    per_sample = losses.kl_per_sample(student, teacher, temperature)
    torch.testing.assert_close(per_sample, held("kl.out_per_sample")[row], **CLOSE)
    torch.testing.assert_close(student.grad, held("kl.grad_student_logits")[row], **CLOSE)
    torch.testing.assert_close(teacher.grad, held("kl.grad_teacher_logits")[row], **CLOSE)


def test_kl_in_float32_stays_near_published_code() -> None:
    value = losses.kl(held("kl.in_student_logits").float(), held("kl.in_teacher_logits").float(), 1.0)
    wanted = PARITY["kl.out_loss"][PARITY["kl.par_T"].tolist().index(1.0)]
    assert value.item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kl_equals_scipys_relative_entropy(temperature: float) -> None:
    s, t = logits().detach(), logits().detach()
    p, q = (np.exp(log_softmax(x.numpy() / temperature, axis=1)) for x in (t, s))
    wanted = rel_entr(p, q).sum(1).mean() * temperature**2
    assert losses.kl(s, t, temperature).item() == pytest.approx(wanted, rel=1e-12)


def test_kl_by_hand() -> None:
    # p = (3/4, 1/4) from logits (ln 3, 0), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
    teacher = torch.tensor([[np.log(3.0), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    assert losses.kl(student, teacher).item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), abs=1e-15)


def test_kl_of_equal_logits_is_zero_with_zero_gradient() -> None:
    teacher = logits().detach()
    student = (teacher + 3.0).requires_grad_()  # softmax does not see a shift
    loss = losses.kl(student, teacher, 4.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert abs(loss.item()) < 1e-14
    assert student.grad.abs().max() < 1e-14


def test_kl_of_certain_teachers_is_finite() -> None:
    student = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = losses.kl(student, torch.tensor([[200.0, -200.0]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 400.0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_gradient_of_kl_hardly_depends_on_a_large_temperature() -> None:
    # Hinton et al. 2015, eq. 4: for T -> inf the gradient of T² KL is (s - t) / C of zero-mean logits, whatever T.
    student, teacher = logits(), logits().detach()
    (gradient,) = torch.autograd.grad(losses.kl_per_sample(student, teacher, 1e4).sum(), student)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(gradient, centred.detach() / 5, rtol=1e-3, atol=1e-5)


def test_l1_equals_published_code() -> None:
    student, teacher = held("l1.in_student_logits").requires_grad_(), held("l1.in_teacher_logits")
    loss = losses.l1(student, teacher)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, held("l1.out_student_l1"), **CLOSE)
    torch.testing.assert_close(student.grad, held("l1.grad_student_l1_student_logits"), **CLOSE)


def test_l1_and_mse_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 4.0], [0.0, -2.0]]), torch.tensor([[0.0, 2.0], [0.0, -5.0]])
    assert losses.l1(student, teacher).item() == 1.5  # (1 + 2 + 0 + 3) / 4
    assert losses.mse(student, teacher).item() == 3.5  # (1 + 4 + 0 + 9) / 4
    for criterion in (losses.l1, losses.mse):
        assert criterion(student, teacher, 20.0) == criterion(student, teacher, 1.0)
        assert criterion(student, student).item() == 0.0


@pytest.mark.parametrize("name", list(losses.CRITERIA))
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_gradients_by_finite_differences(name: str, temperature: float) -> None:
    criterion = losses.CRITERIA[name]
    assert torch.autograd.gradcheck(lambda s, t: criterion(s, t, temperature), (logits(), logits()))


@pytest.mark.parametrize("name", list(losses.CRITERIA))
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_types_are_raised(name: str, kind: torch.dtype) -> None:
    student, teacher = logits().detach().to(kind), logits().detach().to(kind)
    value = losses.CRITERIA[name](student, teacher, 4.0)
    assert value.dtype == torch.float32
    assert value == losses.CRITERIA[name](student.float(), teacher.float(), 4.0)


@pytest.mark.parametrize("name", list(losses.CRITERIA))
def test_criteria_are_means_over_samples(name: str) -> None:
    """What `average_gradients` relies on: the loss of a batch is the mean of its halves' losses."""
    s, t = logits(8).detach(), logits(8).detach()
    criterion = losses.CRITERIA[name]
    halves = (criterion(s[:4], t[:4], 2.0) + criterion(s[4:], t[4:], 2.0)) / 2
    torch.testing.assert_close(criterion(s, t, 2.0), halves)


def test_js_is_the_mean_of_two_relative_entropies() -> None:
    s, t = (3 * logits(40) for _ in range(2))
    for temperature in (1.0, 3.0):
        p, q = (np.exp(log_softmax(x.detach().numpy() / temperature, axis=1)) for x in (t, s))
        m = (p + q) / 2
        wanted = (rel_entr(p, m).sum(1) + rel_entr(q, m).sum(1)) / 2
        found = losses.js_per_sample(s, t, temperature)
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-10)
        torch.testing.assert_close(found, losses.js_per_sample(t, s, temperature), rtol=1e-12, atol=0)
        torch.testing.assert_close(losses.disagreement(s / temperature, t / temperature, "js"), found.mean())


def test_js_lies_between_zero_and_ln_two_and_stays_finite() -> None:
    student = torch.tensor([[-200.0, 200.0], [200.0, -200.0], [1.0, 1.0]], requires_grad=True)
    found = losses.js_per_sample(student, torch.tensor([[200.0, -200.0], [200.0, -200.0], [4.0, 4.0]]))
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert found.tolist() == pytest.approx([np.log(2), 0, 0], abs=1e-7)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_gradients_of_js_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda s, t: losses.js_per_sample(s, t, 3.0), (logits(), logits()))
    half = logits().detach().bfloat16()
    assert losses.js_per_sample(half, half.flip(0)).dtype == torch.float32


@pytest.mark.parametrize("name", list(losses.CRITERIA))
def test_weights_are_factors_of_the_samples(name: str) -> None:
    s, t = logits(3).detach(), logits(3).detach()
    criterion, weights = losses.CRITERIA[name], torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64)
    each = torch.stack([criterion(s[i : i + 1], t[i : i + 1], 2.0) for i in range(3)])
    torch.testing.assert_close(criterion(s, t, 2.0, weights), (2 * each[0] + 0.5 * each[2]) / 3)
    torch.testing.assert_close(criterion(s, t, 2.0, torch.ones(3)), criterion(s, t, 2.0))


def test_attention_transfer_equals_published_code() -> None:
    student = [torch.from_numpy(ZSKT[f"in_student_act{i}"]).requires_grad_() for i in range(2)]
    teacher = [torch.from_numpy(ZSKT[f"in_teacher_act{i}"]) for i in range(2)]
    layers = [losses.attention_transfer([a], [b]) for a, b in zip(student, teacher, strict=True)]
    torch.testing.assert_close(torch.stack(layers), torch.from_numpy(ZSKT["out_at_layers"]), **CLOSE)
    total = losses.attention_transfer(student, teacher)
    torch.testing.assert_close(total, layers[0] + layers[1])
    (float(ZSKT["par_beta"]) * total).backward()  # type: ignore[no-untyped-call]
    for i, each in enumerate(student):
        torch.testing.assert_close(each.grad, torch.from_numpy(ZSKT[f"grad_student_act{i}"]), **CLOSE)


def test_attention_does_not_see_scale_and_channels() -> None:
    maps = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert losses.attention_transfer([maps], [7 * maps]).item() < 1e-30
    assert losses.attention_transfer([maps], [maps.repeat(1, 2, 1, 1)]).item() < 1e-30
    dead = torch.zeros(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    loss = losses.attention_transfer([dead], [maps])  # a map of zeros stays one; the other has length 1
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(1 / 20)
    assert dead.grad is not None
    assert dead.grad.isfinite().all()


def test_gradients_of_attention_by_finite_differences() -> None:
    maps = [torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(2, 4, 3, 2, dtype=torch.float64) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *given: losses.attention_transfer(given, teacher), maps)
