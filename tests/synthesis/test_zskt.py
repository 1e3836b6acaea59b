"""ZSKT: one round by hand, the student's loss against published code, and what the presets say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.config import OptimisationConfig
from datafree.distillation import Alternation
from datafree.synthesis.setting import Setting
from datafree.synthesis.zskt import ZSKT, ZSKTConfig
from datafree.training import Clock, Trainer

# polo5/ZeroShotKnowledgeTransfer e24915d: logits of ten classes, activations of two blocks, in float64.
PARITY = np.load(Path(__file__).parents[1] / "losses" / "zskt.npz", allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
SMALL: dict[str, Any] = {"latent": 6, "generator_width": 4, "bank": 30}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


def test_the_official_presets_loss_is_the_releases_times_ten() -> None:
    """Adam and the two clips, which are ten times higher as well, do not see the factor."""
    preset = ZSKT.PRESETS["official"]
    student = held("in_student_logits").requires_grad_()
    maps = [held(f"in_student_act{i}").requires_grad_() for i in range(2)]
    attention = losses.attention_transfer(maps, [held(f"in_teacher_act{i}") for i in range(2)])
    total: Tensor = losses.kl(student, held("in_teacher_logits")) + preset["attention"] * attention
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(total / 10, held("out_student_total"), **CLOSE)
    torch.testing.assert_close(student.grad, 10 * held("grad_student_logits"), **CLOSE)
    for i, each in enumerate(maps):
        torch.testing.assert_close(each.grad, 10 * held(f"grad_student_act{i}"), **CLOSE)
    assert preset["attention"] == 10 * ZSKT.STUDENT["attention"] == 10 * PARITY["par_beta"]
    assert preset["gradient_clip"] == 10 * ZSKT.STUDENT["gradient_clip"]
    assert preset["generator_clip"] == 10 * ZSKTConfig().generator_clip


def test_the_generators_loss_is_the_releases_times_ten() -> None:
    student, teacher = held("in_student_logits").requires_grad_(), held("in_teacher_logits").requires_grad_()
    loss = -losses.disagreement(student, teacher)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss / 10, held("out_generator_total"), **CLOSE)
    torch.testing.assert_close(student.grad, 10 * held("grad_generator_student_logits"), **CLOSE)
    torch.testing.assert_close(teacher.grad, 10 * held("grad_generator_teacher_logits"), **CLOSE)


@pytest.mark.parametrize("clip", [0.0, 1e-7])
def test_a_round_by_hand(toy: Callable[..., Setting], clip: float) -> None:
    """One clipped Adam step on -KL, then the same latents through the updated generator."""
    # Adam hardly sees a common factor; a norm of 1e-7 is near enough to its eps of 1e-8 to show.
    at = toy()
    method = ZSKT(at, ZSKTConfig(**SMALL, generator_clip=clip, generator_lr=0.01))
    other = toy()
    generator = ZSKT(other, ZSKTConfig(**SMALL)).imaging.generator.train()
    latents = torch.randn(8, 6, generator=other.rng)
    images = generator(latents)
    teacher, student = other.teacher(images), other.student.train()(images)
    divergence = F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")
    gradients = torch.autograd.grad(-divergence, list(generator.parameters()))
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt().item()
    adam = torch.optim.Adam(generator.parameters(), 0.01, betas=(0.5, 0.999))
    for parameter, gradient in zip(generator.parameters(), gradients, strict=True):
        parameter.grad = gradient * (clip / norm if clip else 1.0)
    adam.step()

    terms = method.update()
    assert terms["adv"] == pytest.approx(-divergence.item(), rel=1e-5)
    for mine, wanted in zip(method.imaging.generator.parameters(), generator.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-5)
    assert method.store.last is not None
    torch.testing.assert_close(method.store.last, generator(latents).detach(), rtol=1e-3, atol=1e-3)
    assert (method.store.last - images.detach()).abs().max() > 0.05, "these are the images of before the step"


def test_the_student_has_the_last_images_at_each_of_its_steps(toy: Callable[..., Setting]) -> None:
    method = ZSKT(toy(), ZSKTConfig(**SMALL))
    method.update()
    for _ in range(3):
        assert torch.equal(method.sample(8).images, method.store.last)  # type: ignore[arg-type]
    assert method.made == 8


@pytest.mark.parametrize(("schedule", "factor"), [("cosine", 0.5), ("constant", 1.0)])
def test_the_generators_rate_follows_the_run(toy: Callable[..., Setting], schedule: str, factor: float) -> None:
    at = toy()
    method = ZSKT(at, ZSKTConfig(**SMALL, generator_schedule=schedule, generator_lr=0.02))  # type: ignore[arg-type]
    at.pace.fraction = 0.5
    method.update()
    assert method.imaging.optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * factor)


def test_the_student_copies_attention_beside_predictions(toy: Callable[..., Setting]) -> None:
    at = toy()
    method = ZSKT(at, ZSKTConfig(**SMALL))
    known = {name: ZSKT.STUDENT[name] for name in ("criterion", "temperature", "attention")}
    source = Alternation(method, at, augmented=ZSKT.STUDENT["augment"], **known)
    source.advance(Clock(steps=5))
    assert method.store.last is not None
    images, theirs = method.store.last, at.teacher.classifier
    assert isinstance(theirs.network, torch.nn.Sequential)
    terms = source.terms(Clock(steps=5))
    assert set(terms) == {"kl", "attention"}
    # The networks have one size of maps, 4 x 4, and the last of them come out of the ReLU.
    student = at.student.network
    assert isinstance(student, torch.nn.Sequential)
    maps = [net[:3]((images - 0.5) / 0.25) for net in (student.train(), theirs.network)]
    a, b = (F.normalize(x.square().mean(1).flatten(1), dim=1) for x in maps)
    torch.testing.assert_close(terms["attention"], 250 * (a - b).square().mean(), rtol=1e-4, atol=1e-6)
    trainer = Trainer(at.student, OptimisationConfig(lr=2e-3, optimizer="adam", weight_decay=0.0, gradient_clip=5.0))
    trainer.step(terms, 0.0)


def test_the_common_re_implementation_has_no_attention() -> None:
    preset = ZSKT.PRESETS["zju"]
    assert preset["attention"] == 0
    assert preset["generator_clip"] == 0
    assert (preset["feed"], preset["student_steps"], preset["student_mode"]) == ("fresh", 5, "eval")
