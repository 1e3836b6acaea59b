"""The black box: no gradient is ever asked of the teacher, estimates against true gradients, queries counted."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.config import OptimisationConfig
from datafree.distillation import Alternation, distill
from datafree.domain import Domain
from datafree.synthesis.blackbox import BlackBox, BlackBoxConfig, forward_differences, unit
from datafree.synthesis.setting import Pace, Setting
from datafree.teacher import Normalised, Teacher
from datafree.training import Clock, Seconds, Trainer

DOMAIN = Domain(name="toy", shape=(1, 4, 4), classes=3, mean=(0.4,), std=(0.3,), flip=False)


class Service(nn.Module):
    """A classifier behind a counter: it answers, and refuses whoever wants a gradient."""

    def __init__(self, inner: nn.Module, probabilities: bool = False) -> None:
        super().__init__()
        self.inner, self.probabilities = inner, probabilities
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad or torch.is_grad_enabled():
            raise RuntimeError("this service answers questions, it is not differentiated")
        self.asked += len(images)
        assert (images * 0.3 + 0.4).min() >= 0
        assert (images * 0.3 + 0.4).max() <= 1 + 1e-6
        logits: Tensor = self.inner(images)
        return logits.softmax(1) if self.probabilities else logits


def smooth(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 3))


def setting(probabilities: bool = False, batch_size: int = 8) -> Setting:
    teacher = Teacher(Service(smooth(12, 1), probabilities), DOMAIN.mean, DOMAIN.std)
    return Setting(
        teacher=teacher,
        student=Normalised(smooth(6, 2), DOMAIN.mean, DOMAIN.std),
        domain=DOMAIN,
        batch_size=batch_size,
        rng=torch.Generator().manual_seed(5),
        device=torch.device("cpu"),
        pace=Pace(steps=20),
    )


def build(at: Setting, **values: Any) -> BlackBox:
    torch.manual_seed(9)
    return BlackBox(at, BlackBoxConfig(**{"latent": 6, "generator_width": 3, "bank": 60, **values}))


def basis(n: int, shape: tuple[int, ...]) -> list[Tensor]:
    d = torch.Size(shape).numel()
    return [row.view(1, *shape).expand(n, *shape) for row in torch.eye(d, dtype=torch.float64)]


def true_gradient(objective: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    gradient: Tensor = torch.autograd.grad(objective(x).sum(), x)[0]
    return gradient


def test_all_basis_directions_give_a_linear_objectives_whole_gradient() -> None:
    weights = torch.randn(4, 1, 3, 2, dtype=torch.float64)
    x = torch.randn(4, 1, 3, 2, dtype=torch.float64)
    value, gradient = forward_differences(lambda y: (weights * y).flatten(1).sum(1), x, basis(4, (1, 3, 2)), 0.1)
    torch.testing.assert_close(value, (weights * x).flatten(1).sum(1))
    torch.testing.assert_close(gradient, weights, rtol=0, atol=1e-12)


def test_any_directions_at_right_angles_do() -> None:
    weights, x = torch.randn(2, 5, 6, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    _, gradient = forward_differences(lambda y: (weights * y).sum(1), x, [row.expand(5, 6) for row in turned], 0.5)
    torch.testing.assert_close(gradient, weights, rtol=0, atol=1e-12)


def test_the_error_of_a_smooth_objective_shrinks_with_the_step() -> None:
    network, x = smooth(8, 4).double(), torch.randn(3, 1, 4, 4, dtype=torch.float64)

    def objective(y: Tensor) -> Tensor:
        first: Tensor = network(y)[:, 0]
        return first

    errors = [
        (forward_differences(objective, x, basis(3, (1, 4, 4)), step)[1] - true_gradient(objective, x)).abs().max()
        for step in (1e-1, 1e-2, 1e-3)
    ]
    # In proportion to it: ten times smaller each.
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([10, 10], rel=0.3)


def test_an_estimate_from_more_directions_points_closer_to_the_gradient() -> None:
    network, x = smooth(8, 4).double(), torch.randn(1, 1, 4, 4, dtype=torch.float64).expand(400, 1, 4, 4)

    def objective(y: Tensor) -> Tensor:
        square: Tensor = network(y).square().sum(1)
        return square

    gradient, rng = true_gradient(objective, x), torch.Generator().manual_seed(0)
    means = []
    for m in (1, 4, 16, 64):
        directions = [unit(torch.randn(x.shape, generator=rng, dtype=torch.float64)) for _ in range(m)]
        estimate = forward_differences(objective, x, directions, 1e-5)[1]
        means.append(F.cosine_similarity(estimate.flatten(1), gradient.flatten(1)).mean().item())
        # Right in the mean: 400 estimates of 16 values, each off by about |g| sqrt(d / m).
        error = (estimate.mean(0) - gradient[0]).norm() / gradient[0].norm()
        assert error < 2 * (16 / m / 400) ** 0.5
    # With d = 16 values: one direction's cosine is |u_1| of a point on the sphere, 0.2 in the mean; for m of them about
    # sqrt(m / (m + d - 1)), that is 0.46, 0.72 and 0.90.
    assert means == pytest.approx([0.2, 0.46, 0.72, 0.9], abs=0.04)


def test_directions_have_length_one_and_all_signs() -> None:
    method = build(setting(batch_size=64), directions=3)
    for direction in method.directions():
        assert direction.shape == (64, 1, 4, 4)
        torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.ones(64))
        assert 0.4 < (direction > 0).float().mean() < 0.6


def test_the_generator_gets_the_gradient_that_differentiation_would_give() -> None:
    """With all basis directions and a teacher that is differentiated after all."""
    at = setting()
    method = build(at)
    at.student.double(), at.teacher.classifier.double(), method.generator.double()
    inner = Normalised(at.teacher.network.inner, DOMAIN.mean, DOMAIN.std).double()  # type: ignore[arg-type]
    latents = torch.randn(8, 6, dtype=torch.float64)
    method.imaging.latents = lambda n: latents  # type: ignore[method-assign]
    method.directions = lambda: basis(8, (1, 4, 4))  # type: ignore[method-assign]
    object.__setattr__(method.config, "epsilon", 1e-6)
    method.disagreement = lambda raw: _disagreement(at.student, inner, raw.double())  # type: ignore[method-assign]
    parameters = list(method.generator.parameters())
    images = method.generator.train()(latents)
    loss = -(at.student(images) - losses.centred_logits(inner(images))).abs().mean(1).mean()
    wanted = torch.autograd.grad(loss, parameters)
    held: list[Tensor] = []
    method.imaging.optimizer.step = lambda: held.extend(p.grad.clone() for p in parameters if p.grad is not None)  # type: ignore[method-assign,assignment,misc] # fmt: skip
    terms = method.update()
    assert terms["adv"] == pytest.approx(loss.item(), rel=1e-6)
    for mine, theirs in zip(held, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def _disagreement(student: nn.Module, teacher: nn.Module, raw: Tensor) -> Tensor:
    images = raw.sigmoid()
    difference: Tensor = student(images) - losses.centred_logits(teacher(images))
    return difference.abs().mean(1)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("distance", ["kl", "js"])
def test_the_disagreement_may_be_a_divergence(distance: Any, probabilities: bool) -> None:
    at = setting(probabilities)
    method, raw = build(at, distance=distance, probabilities=probabilities), torch.randn(8, 1, 4, 4)
    with torch.no_grad():
        found = method.disagreement(raw)
        images = raw.sigmoid()
        p = at.teacher.network.inner((images - 0.4) / 0.3).softmax(1).numpy()  # type: ignore[operator]
        q = at.student(images).softmax(1).numpy()
    m = (p + q) / 2
    wanted = rel_entr(p, q) if distance == "kl" else (rel_entr(p, m) + rel_entr(q, m)) / 2
    assert found.numpy() == pytest.approx(wanted.sum(1), rel=1e-3)


def test_the_disagreement_is_the_equation() -> None:
    at = setting()
    method, raw = build(at), torch.randn(8, 1, 4, 4)
    with torch.no_grad():
        images = 1 / (1 + (-raw).exp())
        t = at.teacher.network.inner((images - 0.4) / 0.3)  # type: ignore[operator]
        s = at.student(images)
        found = method.disagreement(raw)
    log_p = t - t.exp().sum(1, keepdim=True).log()
    torch.testing.assert_close(found, (s - (log_p - log_p.mean(1, keepdim=True))).abs().mean(1))


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_teacher_that_refuses_gradients_is_enough(probabilities: bool) -> None:
    at = setting(probabilities)
    source = Alternation(
        build(at, probabilities=probabilities, directions=2, student_steps=2),
        at,
        criterion="l1",
        temperature=1.0,
        augmented=True,
    )
    trainer = Trainer(at.student, OptimisationConfig(lr=0.05, optimizer="sgd", weight_decay=0.0))
    nothing = contextlib.nullcontext
    before = {name: t.clone() for name, t in at.student.state_dict().items()}
    assert distill(source, trainer, Clock(steps=6), seconds=Seconds(), autocast=nothing, after_step=lambda *_: False)
    assert any(not torch.equal(before[name], t) for name, t in at.student.state_dict().items())


def test_every_query_is_counted() -> None:
    at = setting()
    method = build(at, directions=4, generator_steps=2, student_steps=3)
    source = Alternation(method, at, criterion="l1", temperature=1.0, augmented=False)
    trainer = Trainer(at.student, OptimisationConfig(lr=0.05, optimizer="sgd", weight_decay=0.0))
    nothing = contextlib.nullcontext
    distill(source, trainer, Clock(steps=6), seconds=Seconds(), autocast=nothing, after_step=lambda *_: False)
    # 2 rounds of 2 steps, each at 1 + 4 points of 8 images; 6 student steps of 8 images.
    assert method.queries == 2 * 2 * 5 * 8 + 6 * 8 == at.teacher.network.asked
    assert source.state_dict()["method"]["queries"] == method.queries


def test_logits_and_probabilities_lead_to_the_same_generator() -> None:
    weights = []
    for probabilities in (False, True):
        method = build(setting(probabilities), probabilities=probabilities, epsilon=0.1)
        method.update()
        weights.append(method.generator.to_image.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


def test_bf16_does_not_reach_the_differences() -> None:
    """Of a step of 2e-3, half types would leave noise."""
    found = []
    for half in (False, True):
        method = build(setting())
        raw = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        method.generator.raw = lambda z: (raw + 0 * z.sum()).requires_grad_()  # type: ignore[method-assign] # noqa: B023
        method.imaging.step = lambda terms: found.append(terms["adv"].detach())  # type: ignore[method-assign]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            method.update()
    assert torch.equal(found[0], found[1])


def test_the_student_disagrees_more_on_images_of_a_trained_generator() -> None:
    method = build(setting(batch_size=32), directions=8, generator_lr=1e-2, reset=0)
    first = [method.update()["adv"] for _ in range(40)]
    assert sum(first[-5:]) < sum(first[:5])


def test_the_teacher_sees_images_and_the_student_mode_is_put_back() -> None:
    at = setting()
    at.student.train()
    build(at).update()
    assert at.student.training
