"""Trajectory terms: against published code through a tiny unrolled student, by autograd, and by finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional as F

from datafree import losses

PARITY = np.load(Path(__file__).with_name("condensation.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}
PARAMETERS = ["conv0.weight", "conv0.bias", "gn0.weight", "gn0.bias", "linear.weight", "linear.bias"]


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


def expert(place: str) -> list[Tensor]:
    return [held(f"mtt.{place}.{name}") for name in PARAMETERS]


def student(parameters: list[Tensor], images: Tensor) -> Tensor:
    """Logits of the vectors' ConvNet of one block."""
    weight, bias, scale, shift, last, last_bias = parameters
    x = F.group_norm(F.conv2d(images, weight, bias, padding=1), len(weight), scale, shift)
    return F.linear(F.avg_pool2d(x.relu(), 2).flatten(1), last, last_bias)


def batches() -> list[Tensor]:
    return list(held("mtt.in_batch_index"))


def unrolled(images: Tensor, label_logits: Tensor | None, rate: Tensor) -> list[Tensor]:
    """Parameters after SGD steps with their graph: hard labels, or soft ones where given."""
    reached = [p.requires_grad_() for p in expert("start")]
    for index in batches():
        logits = student(reached, images[index])
        if label_logits is None:
            loss = F.cross_entropy(logits, held("mtt.in_labels")[index])
        else:
            loss = losses.soft_cross_entropy(logits, label_logits[index])
        steps = torch.autograd.grad(loss, reached, create_graph=True)
        reached = [p - rate * g for p, g in zip(reached, steps, strict=True)]
    return reached


def test_trajectory_loss_equals_published_code() -> None:
    images, rate = held("mtt.in_syn").requires_grad_(), held("mtt.par_lr").requires_grad_()
    reached = unrolled(images, None, rate)
    loss = losses.normalised_distance(reached, expert("target"), expert("start"))
    to_images, to_rate = torch.autograd.grad(loss, (images, rate))
    torch.testing.assert_close(loss, held("mtt.out_loss"), **CLOSE)
    torch.testing.assert_close(to_images[:1], held("mtt.grad_images"), **CLOSE)
    torch.testing.assert_close(to_rate, held("mtt.grad_lr"), **CLOSE)


def test_trajectory_loss_with_learnt_labels_equals_published_code() -> None:
    given = [held(name).requires_grad_() for name in ("mtt.in_syn", "datm.in_syn_label_logits", "mtt.par_lr")]
    loss = losses.normalised_distance(unrolled(*given), expert("target"), expert("start"))
    to_images, to_labels, to_rate = torch.autograd.grad(loss, given)
    torch.testing.assert_close(loss, held("datm.out_traj_loss"), **CLOSE)
    torch.testing.assert_close(to_images[:1], held("datm.grad_traj_images"), **CLOSE)
    torch.testing.assert_close(to_labels, held("datm.grad_traj_label_logits"), **CLOSE)
    torch.testing.assert_close(to_rate, held("datm.grad_traj_lr"), **CLOSE)


def step_gradients(images: Tensor, indices: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """The gradient of each SGD step with a graph to the images, at parameters that are held fixed."""
    parameters, rate, found = expert("start"), held("mtt.par_lr"), []
    for index in indices:
        parameters = [p.detach().requires_grad_() for p in parameters]
        loss = F.cross_entropy(student(parameters, images[index]), held("mtt.in_labels")[index])
        found.append(torch.autograd.grad(loss, parameters, create_graph=True))
        parameters = [p - rate * g for p, g in zip(parameters, found[-1], strict=True)]
    return found


def test_teslas_gradients_equal_published_code() -> None:
    images, rate = held("mtt.in_syn").requires_grad_(), held("mtt.par_lr").requires_grad_()
    start, target = expert("start"), expert("target")
    steps = step_gradients(images, batches())
    total = [torch.stack(parts).sum(0).detach() for parts in zip(*steps, strict=True)]
    vector = losses.tesla_image_gradient_vector(start, target, total, rate)
    assert not any(v.requires_grad for v in vector)
    parts = [torch.autograd.grad(g, images, vector)[0] for g in steps]
    to_images = torch.stack(parts).sum(0)
    torch.testing.assert_close(to_images[:1], held("tesla.grad_images_formula"), **CLOSE)
    torch.testing.assert_close(to_images[:1] / 2, held("tesla.grad_images_reference"), **CLOSE)
    reached = [p - rate * g for p, g in zip(start, total, strict=True)]
    loss = losses.normalised_distance(reached, target, start)
    torch.testing.assert_close(loss, held("tesla.out_loss"), **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(loss, rate)[0], held("tesla.grad_lr_reference"), **CLOSE)


def test_teslas_vector_is_exact_for_one_step() -> None:
    images, rate = held("mtt.in_syn").requires_grad_(), held("mtt.par_lr")
    start, target = expert("start"), expert("target")
    (step,) = step_gradients(images, batches()[:1])
    reached = [p - rate * g for p, g in zip(start, step, strict=True)]
    loss = losses.normalised_distance(reached, target, start)
    (wanted,) = torch.autograd.grad(loss, images, retain_graph=True)
    vector = losses.tesla_image_gradient_vector(start, target, step, rate)
    torch.testing.assert_close(torch.autograd.grad(step, images, vector)[0], wanted, **CLOSE)


def test_teslas_vector_is_the_losss_gradient_for_the_sum_of_steps() -> None:
    start, target, total = torch.randn(3, 7, dtype=torch.float64)
    total.requires_grad_()
    loss = losses.normalised_distance(start - 0.3 * total, target, start)
    (wanted,) = torch.autograd.grad(loss, total)
    torch.testing.assert_close(losses.tesla_image_gradient_vector(start, target, total, 0.3), wanted)


def test_flat_vectors_and_lists_give_the_same() -> None:
    start, target, reached = (expert("start"), expert("target"), [2 * p for p in expert("start")])
    flat = [torch.cat([p.flatten() for p in parts]) for parts in (reached, target, start)]
    listed = losses.normalised_distance(reached, target, start)
    torch.testing.assert_close(losses.normalised_distance(*flat), listed)
    vector = losses.tesla_image_gradient_vector(start, target, reached, 0.1)
    joined = torch.cat([v.flatten() for v in vector])
    torch.testing.assert_close(losses.tesla_image_gradient_vector(flat[2], flat[1], flat[0], 0.1), joined)


def test_normalised_distance_by_hand() -> None:
    start, target = torch.tensor([0.0, 0.0]), torch.tensor([4.0, 0.0])
    assert losses.normalised_distance(start, target, start).item() == 1
    assert losses.normalised_distance(target, target, start).item() == 0
    assert losses.normalised_distance(torch.tensor([2.0, 0.0]), target, start).item() == 0.25
    torch.testing.assert_close(losses.normalised_distance(9 * start, 9 * target, 9 * start), torch.tensor(1.0))


def test_soft_cross_entropy_equals_published_code() -> None:
    logits, labels = held("datm.in_logits").requires_grad_(), held("datm.in_label_logits").requires_grad_()
    loss = losses.soft_cross_entropy(logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, held("datm.out_soft_ce"), **CLOSE)
    torch.testing.assert_close(logits.grad, held("datm.grad_soft_ce_logits"), **CLOSE)
    torch.testing.assert_close(labels.grad, held("datm.grad_soft_ce_label_logits"), **CLOSE)


def test_soft_cross_entropy_of_certain_labels_is_the_hard_one() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    certain = 1e4 * F.one_hot(labels, 4).float()
    torch.testing.assert_close(losses.soft_cross_entropy(logits, certain), F.cross_entropy(logits, labels))


def test_soft_cross_entropy_with_itself_is_the_entropy() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    wanted = entropy(logits.softmax(1).numpy(), axis=1).mean()
    assert losses.soft_cross_entropy(logits, logits).item() == pytest.approx(wanted, rel=1e-12)


def test_gradients_by_finite_differences() -> None:
    a, b, c = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(losses.normalised_distance, (a, b, c))
    assert torch.autograd.gradcheck(losses.soft_cross_entropy, (a, b))


def test_half_types_are_raised() -> None:
    a, b, c = torch.randn(3, 4, 3).bfloat16()
    x, y, z = a.float(), b.float(), c.float()
    assert losses.normalised_distance(a, b, c) == losses.normalised_distance(x, y, z)
    assert losses.soft_cross_entropy(a, b) == losses.soft_cross_entropy(x, y)
    vector = losses.tesla_image_gradient_vector(a, b, c, 0.1)
    assert vector.dtype == torch.float32
    assert torch.equal(vector, losses.tesla_image_gradient_vector(x, y, z, 0.1))
