"""SSD: draws and weights by hand, priorities that follow the student, classes asked for, and dfq without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from datafree import losses
from datafree.distillation import Alternation
from datafree.synthesis.dfq import DFQ, DFQConfig
from datafree.synthesis.setting import Batch, Setting
from datafree.synthesis.ssd import LEAST, SSD, SSDConfig, gap, lacking
from datafree.training import Clock

Toy = Callable[..., Setting]
SMALL: dict[str, Any] = {"latent": 6, "generator_width": 4, "bank": 64, "generator_steps": 2}


@pytest.mark.parametrize("warming", [False, True])
def test_without_priorities_and_counts_it_is_dfq(toy: Toy, warming: bool) -> None:
    config = SSDConfig(**SMALL, priority=0.0, diversity=0.0, eviction="fifo")
    ours, dfq = SSD(toy(), config), DFQ(toy(), DFQConfig(**SMALL))
    ours.setting.pace.warming = dfq.setting.pace.warming = warming
    for _ in range(6):  # 96 images for 64 places
        assert ours.update() == pytest.approx(dfq.update(), rel=1e-6)
        batch = ours.sample(8)
        torch.testing.assert_close(batch.images, dfq.sample(8).images)
        assert batch.weights is None


def test_gap_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 4.0], [0.0, -2.0], [3.0, 3.0]]), torch.tensor([[0.0, 2.0], [0, -5], [3, 3]])
    assert gap(student, teacher).tolist() == pytest.approx([1.5, 1.5, LEAST])


@pytest.mark.parametrize(("warming", "adv"), [(False, 1.0), (True, 1.0), (False, 0.0)])
def test_new_images_have_the_gap_of_the_step_that_made_them(toy: Toy, warming: bool, adv: float) -> None:
    """Also where no term asks the student: an image that nobody measured would stand beside those that were."""
    at = toy()
    at.pace.warming = warming
    method = SSD(at, SSDConfig(**{**SMALL, "generator_steps": 1}, student_mode="eval", adv=adv))
    method.update()
    bank = method.store.bank
    assert bank is not None
    assert method.store.last is not None
    student = at.student.eval()(method.store.last)
    torch.testing.assert_close(bank.priorities[:8], (student - at.teacher(method.store.last)).abs().mean(1))


def filled(toy: Toy, fraction: float = 0.0, **values: Any) -> SSD:
    method = SSD(toy(), SSDConfig(**SMALL, **values))
    method.setting.pace.fraction = fraction
    method.update()
    assert method.store.bank is not None
    method.store.bank.priorities[:16] = torch.arange(1.0, 17.0)
    return method


@pytest.mark.parametrize(("fraction", "beta"), [(0.0, 0.25), (0.5, 0.625), (1.0, 1.0)])
def test_weights_by_hand(toy: Toy, fraction: float, beta: float) -> None:
    method = filled(toy, fraction, priority=0.5, correction=0.25)
    batch = method.sample(200)
    priorities = torch.arange(1.0, 17.0)
    chances = priorities.sqrt() / priorities.sqrt().sum()
    weights = (1 / (16 * chances[batch.extras["rows"]])) ** beta
    assert batch.weights is not None
    torch.testing.assert_close(batch.weights, weights / weights.mean())
    bank = method.store.bank
    assert bank is not None
    assert torch.equal(batch.images, bank.images[batch.extras["rows"]].float() / 255)


def test_at_the_end_the_loss_is_that_of_the_whole_bank(toy: Toy) -> None:
    """Importance weights with an exponent of 1: what is drawn more counts less."""
    method = filled(toy, 1.0, priority=1.0, correction=0.0)
    batch = method.sample(100_000)
    values = torch.linspace(-1, 1, 16) ** 3 + torch.arange(16.0) / 16
    shown = values[batch.extras["rows"]]
    assert batch.weights is not None
    assert (batch.weights * shown).mean().item() == pytest.approx(values.mean().item(), abs=0.01)
    assert abs(shown.mean() - values.mean()) > 0.2


def test_priorities_follow_the_student(toy: Toy) -> None:
    at = toy()
    method = SSD(at, SSDConfig(**SMALL, warmup=0.0))
    source = Alternation(method, at, criterion="kl", temperature=4.0, augmented=False)
    source.advance(Clock(steps=50))
    bank = method.store.bank
    assert bank is not None
    before, state = bank.priorities.clone(), at.rng.get_state()
    rows = bank.draw(8, at.rng, method.config.priority)
    at.rng.set_state(state)
    at.student.train()
    images = bank.images[rows].float() / 255
    student, teacher = at.student(images), at.teacher(images)
    terms = source.terms(Clock(steps=50))
    wanted = before.clone()
    for row, value in zip(rows.tolist(), (student - teacher).abs().mean(1).tolist(), strict=True):
        wanted[row] = value  # without augmentation a place that is drawn twice has one value
    torch.testing.assert_close(bank.priorities, wanted)
    assert not torch.equal(before, wanted)
    assert set(terms) == {"kl"}


def test_the_students_loss_is_weighted(toy: Toy) -> None:
    at = toy()
    method = SSD(at, SSDConfig(**SMALL, warmup=0.0))
    source = Alternation(method, at, criterion="kl", temperature=4.0, augmented=False)
    source.advance(Clock(steps=50))
    state = at.rng.get_state()
    batch = method.sample(8)
    at.rng.set_state(state)
    per_sample = losses.kl_per_sample(at.student.train()(batch.images), at.teacher(batch.images), 4.0)
    assert batch.weights is not None
    torch.testing.assert_close(source.terms(Clock(steps=50))["kl"], (batch.weights * per_sample).mean())


def test_lacking_by_hand() -> None:
    even = torch.full((4,), 0.25)
    torch.testing.assert_close(lacking(even, even), even)
    # 2π - b = (-0.1, 0.3, 0.4, 0.4); the first is raised to π / 10.
    wanted = torch.tensor([0.025, 0.3, 0.4, 0.4]) / 1.125
    torch.testing.assert_close(lacking(even, torch.tensor([0.6, 0.2, 0.1, 0.1])), wanted)
    prior = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert lacking(prior, torch.tensor([0.3, 0.6, 0.1, 0.0]))[2:].tolist() == [0, 0], "left out stays left out"


def test_classes_shown_are_counted_and_the_lacking_are_asked_for(toy: Toy) -> None:
    at = toy()
    method = SSD(at, SSDConfig(**{**SMALL, "generator_steps": 1}, diversity=0.75, balance=3.0))
    teacher = torch.eye(4)[[0, 0, 0, 1]]
    method.observe(Batch(torch.zeros(4, 3, 8, 8)), torch.zeros(4, 4), teacher)
    # 3/4 of (1/4, 1/4, 1/4, 1/4) and 1/4 of (3/4, 1/4, 0, 0).
    torch.testing.assert_close(method.shown, torch.tensor([0.375, 0.25, 0.1875, 0.1875]))
    state = at.rng.get_state()
    logits = at.teacher(method.imaging.images())
    at.rng.set_state(state)
    wanted = 3 * losses.class_balance(logits, torch.tensor([0.125, 0.25, 0.3125, 0.3125]))  # 2π - b
    assert method.update()["balance"] == pytest.approx(wanted.item(), rel=1e-5)


def test_a_batch_that_is_not_from_the_bank_leaves_priorities_alone(toy: Toy) -> None:
    method = filled(toy)
    bank = method.store.bank
    assert bank is not None
    before = bank.priorities.clone()
    method.observe(Batch(torch.zeros(4, 3, 8, 8)), torch.zeros(4, 4), torch.ones(4, 4))
    assert torch.equal(bank.priorities, before)


def test_a_correction_of_one_undoes_the_priorities_from_the_start(toy: Toy) -> None:
    method = filled(toy, 0.0, priority=1.0, correction=1.0)
    method.update()
    assert method.beta == 1.0
