"""Latents that learn, and the best step of a call: by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.domain import Domain
from datafree.synthesis import load_method
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.inversion import Best, Latents
from datafree.synthesis.setting import Setting
from datafree.teacher import Teacher

DOMAIN = Domain(name="toy", shape=(1, 8, 8), classes=3, mean=(0.5,), std=(0.25,), flip=False)


def imaging() -> Imaging:
    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    at = Setting(
        teacher=Teacher(teacher, DOMAIN.mean, DOMAIN.std),
        student=nn.Identity(),
        domain=DOMAIN,
        batch_size=6,
        rng=torch.Generator().manual_seed(2),
        device=torch.device("cpu"),
    )
    return Imaging(at, load_method("dfq").Config(latent=4, generator_width=4, generator_lr=0.01))


def terms(images: Tensor) -> dict[str, Tensor]:
    return {"dark": images.mean(), "even": 0.5 * images.var()}


def test_without_a_rate_a_step_is_the_generators_plain_step() -> None:
    one, two = imaging(), imaging()
    latents = Latents(one, 0.0)
    drawn = latents.values.clone()
    for _ in range(3):
        latents.backward(terms(latents.images()))
        latents.step()
        two.step(terms(two.generator.train()(drawn)))
    assert torch.equal(latents.values, drawn)
    for mine, theirs in zip(one.generator.parameters(), two.generator.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_latents_take_adams_steps_with_their_rate() -> None:
    held = imaging()
    latents = Latents(held, 0.02)
    before = latents.values.detach().clone()
    loss = latents.backward(terms(latents.images()))
    assert loss.shape == ()
    assert not loss.requires_grad
    gradient = latents.values.grad
    assert gradient is not None
    wanted = before - 0.02 * gradient / (gradient.abs() + 1e-8)  # Adam's first step, bias-corrected
    latents.step()
    torch.testing.assert_close(latents.values.detach(), wanted, rtol=0, atol=1e-6)
    assert latents.values.grad is None
    assert all(p.grad is None for p in held.generator.parameters())


def test_the_best_step_is_the_one_of_least_loss() -> None:
    best = Best()
    for loss in (3.0, 1.0, 2.0, float("nan")):
        best.offer(torch.tensor(loss), torch.full((2, 2), loss), torch.tensor([loss]))
    assert best.loss is not None
    assert best.loss.item() == 1.0
    assert [held.mean().item() for held in best.held] == [1.0, 1.0]
