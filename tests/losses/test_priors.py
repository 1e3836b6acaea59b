"""Priors on decisions, features and pixels: against published code, by hand, and by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.losses import Statistics
from datafree.parallel import channel_statistics

PARITY = np.load(Path(__file__).with_name("parity.npz"), allow_pickle=False)
CONDENSATION = np.load(Path(__file__).with_name("condensation.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[f"priors.{name}"])


def par(name: str) -> float:
    return float(PARITY[f"priors.par_{name}"])


@pytest.mark.parametrize(
    ("term", "given", "name"),
    [
        (losses.onehot, "teacher_logits", "onehot"),
        (losses.class_balance, "teacher_logits", "balance_ln"),
        (lambda t: losses.class_balance(t) / math.log(10), "teacher_logits", "balance_log10"),
        (losses.activation, "features", "activation"),
    ],
)
def test_terms_equal_published_code(term: Callable[[Tensor], Tensor], given: str, name: str) -> None:
    x = held(f"in_{given}").requires_grad_()
    loss = term(x)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, held(f"out_{name}"), **CLOSE)
    torch.testing.assert_close(x.grad, held(f"grad_{name}_{given}"), **CLOSE)


def test_dafls_objective_equals_its_release() -> None:
    """The whole generator step of DAFL's release, which adds the student's loss with the teacher detached."""
    teacher, student = held("in_teacher_logits").requires_grad_(), held("in_student_logits").requires_grad_()
    features = held("in_features").requires_grad_()
    distillation = losses.kl(student, teacher.detach())
    total = (
        par("dafl_oh") * losses.onehot(teacher)
        + par("dafl_ie") * losses.class_balance(teacher) / math.log(10)
        + par("dafl_a") * losses.activation(features)
        + distillation
    )
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(distillation, held("out_dafl_kd"), **CLOSE)
    torch.testing.assert_close(total, held("out_dafl_total"), **CLOSE)
    torch.testing.assert_close(teacher.grad, held("grad_dafl_total_teacher_logits"), **CLOSE)
    torch.testing.assert_close(student.grad, held("grad_dafl_total_student_logits"), **CLOSE)
    torch.testing.assert_close(features.grad, held("grad_dafl_total_features"), **CLOSE)


def test_dfqs_objective_equals_the_common_release() -> None:
    """The generator's terms as the common release sums them; its BN term is zero in these vectors."""
    teacher, student = held("in_teacher_logits").requires_grad_(), held("in_student_logits").requires_grad_()
    features = held("in_features").requires_grad_()
    total = (
        par("zju_oh") * losses.onehot(teacher)
        - par("zju_adv") * losses.disagreement(student, teacher)
        + par("zju_balance") * losses.class_balance(teacher)
        + par("zju_act") * losses.activation(features)
    )
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(total, held("out_zju_total"), **CLOSE)
    torch.testing.assert_close(teacher.grad, held("grad_zju_total_teacher_logits"), **CLOSE)
    torch.testing.assert_close(student.grad, held("grad_zju_total_student_logits"), **CLOSE)
    torch.testing.assert_close(features.grad, held("grad_zju_total_features"), **CLOSE)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_class_balance_is_lowest_for_a_uniform_mean(classes: int) -> None:
    uniform = torch.zeros(4, classes, dtype=torch.float64)
    assert losses.class_balance(uniform).item() == pytest.approx(-math.log(classes), rel=1e-14)
    each_once = torch.eye(classes, dtype=torch.float64) * 1e3  # certain, but every class comes up once
    assert losses.class_balance(each_once).item() == pytest.approx(-math.log(classes), rel=1e-14)


def test_class_balance_of_a_single_class_is_zero_and_finite() -> None:
    one = torch.tensor([[1e4, 0.0, 0.0]] * 3, requires_grad=True)
    loss = losses.class_balance(one)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert one.grad is not None
    assert one.grad.isfinite().all()


def test_class_balance_with_a_prior_is_a_relative_entropy() -> None:
    t = torch.randn(7, 5, dtype=torch.float64)
    prior = torch.tensor([0.4, 0.3, 0.1, 0.15, 0.05], dtype=torch.float64)
    p = softmax(t.numpy(), axis=1).mean(0)
    wanted = rel_entr(p, prior.numpy()).sum() - math.log(5)
    assert losses.class_balance(t, prior).item() == pytest.approx(wanted, rel=1e-12)
    even = torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(losses.class_balance(t, even), losses.class_balance(t))
    assert torch.autograd.gradcheck(lambda x: losses.class_balance(x, prior), t.requires_grad_())


def test_class_balance_is_lowest_for_the_prior_and_finite_for_a_class_left_out() -> None:
    prior = torch.tensor([0.5, 0.25, 0.25, 0.0])
    met = (1e3 * torch.eye(4)[[0, 0, 1, 2]]).requires_grad_()
    assert losses.class_balance(met, prior).item() == pytest.approx(-math.log(4), rel=1e-6)
    left_out = losses.class_balance(1e3 * torch.eye(4)[[0, 0, 1, 3]], prior)
    assert left_out.isfinite()
    assert left_out > losses.class_balance(met, prior) + 1


def test_onehot_and_activation_by_hand() -> None:
    # Logits (ln 3, 0): p = (3/4, 1/4), so -ln 3/4; equal logits of 4 classes: ln 4.
    assert losses.onehot(torch.tensor([[math.log(3), 0.0]])).item() == pytest.approx(-math.log(0.75), rel=1e-6)
    assert losses.onehot(torch.zeros(3, 4)).item() == pytest.approx(math.log(4), rel=1e-6)
    assert losses.activation(torch.tensor([[1.0, -2.0], [0.0, 3.0]])).item() == -1.5


@pytest.mark.parametrize("term", [losses.onehot, losses.class_balance, losses.activation])
def test_gradients_by_finite_differences(term: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(term, torch.randn(6, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("term", [losses.onehot, losses.class_balance, losses.activation])
def test_half_types_are_raised(term: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(6, 5).bfloat16()
    assert term(x).dtype == torch.float32
    assert term(x) == term(x.float())


SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "tv_l1": lambda x: losses.total_variation(x, "l1"),
    "tv_l2": lambda x: losses.total_variation(x, "l2"),
    "l2_mean_per_image": lambda x: losses.image_norm(x, per_image=True),
    "l2_whole_batch": lambda x: losses.image_norm(x, per_image=False),
}


def smooth(name: str) -> Tensor:
    return torch.from_numpy(CONDENSATION[f"smooth.{name}"])


@pytest.mark.parametrize("name", list(SMOOTH))
def test_pixel_priors_equal_published_code(name: str) -> None:
    images = smooth("in_images").requires_grad_()
    loss = SMOOTH[name](images)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, smooth(f"out_{name}"), **CLOSE)
    assert images.grad is not None
    wanted = smooth(f"grad_{name}_images" if name.startswith("tv") else f"grad_{name}")
    torch.testing.assert_close(images.grad[:1], wanted, **CLOSE)


def test_sre2ls_objective_equals_its_release() -> None:
    """Cross-entropy, batch-norm term, total variation and norm of the ImageNet script, through its network."""
    w = {
        name.removeprefix("sre2l."): torch.from_numpy(CONDENSATION[name])
        for name in CONDENSATION
        if name.startswith("sre2l.")
    }
    images = w["in_images"].requires_grad_()
    x, layers = images, []
    for block in "01":
        x = F.conv2d(x, w[f"conv{block}.weight"], w[f"conv{block}.bias"], padding=1)
        remembered = w[f"bn{block}.running_mean"], w[f"bn{block}.running_var"]
        layers.append(Statistics(*channel_statistics(x), *remembered))
        x = F.batch_norm(x, *remembered, w[f"bn{block}.weight"], w[f"bn{block}.bias"]).relu()
    crossed = F.cross_entropy(F.linear(x.mean((2, 3)), w["linear.weight"], w["linear.bias"]), w["in_targets"])
    remembrance = losses.batch_norm_statistics(layers, float(w["par_first_bn_multiplier"]))
    cifar = crossed + w["par_r_bn"] * remembrance
    total = (
        cifar + w["par_tv_l2"] * losses.total_variation(images) + w["par_l2_scale"] * losses.image_norm(images, True)
    )
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(cifar, w["out_cifar_total"], **CLOSE)
    torch.testing.assert_close(total, w["out_imagenet_total"], **CLOSE)
    assert images.grad is not None
    torch.testing.assert_close(images.grad[:1], w["grad_imagenet_images"], **CLOSE)


def test_pixel_priors_by_hand() -> None:
    # Differences of (1, 2; 5, 9): right 1 and 4, down 4 and 7, lower right 8, lower left 3.
    image = torch.tensor([[1.0, 2.0], [5.0, 9.0]]).view(1, 1, 2, 2)
    assert losses.total_variation(image, "l1").item() == 2.5 + 5.5 + 8 + 3
    assert losses.total_variation(image, "l2").item() == pytest.approx(math.sqrt(17) + math.sqrt(65) + 11, rel=1e-6)
    batch = torch.tensor([3.0, 4.0]).view(2, 1, 1, 1)
    assert losses.image_norm(batch, per_image=True).item() == 3.5
    assert losses.image_norm(batch, per_image=False).item() == 5


@pytest.mark.parametrize("order", ["l1", "l2"])
def test_total_variation_of_constant_images_is_zero_with_zero_gradient(order: str) -> None:
    images = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    loss = losses.total_variation(images, order)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert images.grad is not None
    assert not images.grad.any()


@pytest.mark.parametrize("name", list(SMOOTH))
def test_pixel_priors_by_finite_differences_and_in_half_types(name: str) -> None:
    images = torch.rand(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SMOOTH[name], images)
    half = images.detach().bfloat16()
    assert SMOOTH[name](half).dtype == torch.float32
    assert SMOOTH[name](half) == SMOOTH[name](half.float())


def test_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown order 'tv': take l1 or l2"):
        losses.total_variation(torch.rand(1, 1, 2, 2), "tv")
