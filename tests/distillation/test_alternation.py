"""Synthesis and student in turn: order, counts, losses, exact resumption of every method."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree import losses
from datafree.config import OptimisationConfig
from datafree.data import crop_and_flip, draw_crops
from datafree.distillation import Alternation, distill
from datafree.domain import Domain
from datafree.fields import fields_of
from datafree.synthesis import METHODS, load_method
from datafree.synthesis.setting import Batch, Setting
from datafree.teacher import Normalised, Teacher
from datafree.training import Clock, Seconds, TermError, Trainer

DOMAIN = Domain(name="toy", shape=(3, 8, 8), classes=4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=True)


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(9 * width, 4)
    )


def setting(batch_size: int = 6) -> Setting:
    torch.manual_seed(7)
    teacher = network(6)
    with torch.no_grad():
        for _ in range(5):
            teacher(torch.randn(32, *DOMAIN.shape))
    return Setting(
        teacher=Teacher(teacher, DOMAIN.mean, DOMAIN.std),
        student=Normalised(network(3), DOMAIN.mean, DOMAIN.std),
        domain=DOMAIN,
        batch_size=batch_size,
        rng=torch.Generator().manual_seed(11),
        device=torch.device("cpu"),
    )


class Counting:
    """A method that counts and shows grey images, lighter at each draw."""

    def __init__(self, at: Setting, student_steps: int = 3, warmup: float = 0.0) -> None:
        self.at, self.updates, self.draws = at, 0, 0
        self.config = type("Config", (), {"student_steps": student_steps, "warmup": warmup})
        self.bad: set[int] = set()
        self.trace: list[str] = []

    def update(self) -> dict[str, float]:
        self.updates += 1
        self.trace.append("update")
        return {"adv": float("nan") if self.updates in self.bad else -1.0}

    def sample(self, n: int) -> Batch:
        self.draws += 1
        self.trace.append("step")
        return Batch(torch.rand(n, *DOMAIN.shape, generator=self.at.rng))

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]


def alternation(method: Any, at: Setting, **values: Any) -> Alternation:
    return Alternation(method, at, **{"criterion": "kl", "temperature": 4.0, "augmented": False, **values})


def test_a_round_that_would_outlast_the_budget_is_not_begun() -> None:
    method = Counting(at := setting(), student_steps=1)
    source, clock = alternation(method, at), Clock(seconds=100.0)
    clock.step, source.round_seconds = 4, 30.0
    clock._read = 69.0
    assert source.advance(clock)
    assert method.updates == 1
    source.due, source.round_seconds, clock._read = True, 30.0, 71.0
    assert not source.advance(clock)
    assert method.updates == 1
    assert not source.due
    assert source.terms(clock)  # the student goes on with what there is
    first = alternation(method, at)
    first.round_seconds, clock.step, first.due = 30.0, 0, True
    assert first.advance(clock)  # before the first step there is nothing to go on with


def optimisation(**values: Any) -> OptimisationConfig:
    return OptimisationConfig(**{"lr": 0.1, "optimizer": "sgd", "weight_decay": 1e-4, **values})


def go(source: Alternation, trainer: Trainer, clock: Clock, stop_after: int | None = None) -> bool:
    return distill(
        source,
        trainer,
        clock,
        seconds=Seconds(),
        autocast=contextlib.nullcontext,
        after_step=lambda *_: stop_after is not None and clock.step >= stop_after,
    )


def test_one_round_then_its_student_steps() -> None:
    at = setting()
    method = Counting(at, student_steps=3)
    assert go(alternation(method, at), Trainer(at.student, optimisation()), Clock(steps=7))
    assert method.trace == ["update", *["step"] * 3, "update", *["step"] * 3, "update", "step"]


def test_warm_up_is_a_share_of_the_rounds_of_a_run_of_steps() -> None:
    at = setting()
    method = Counting(at, student_steps=2, warmup=0.2)
    go(alternation(method, at), Trainer(at.student, optimisation()), Clock(steps=16))
    # 16 steps are 8 rounds with the student; 2 more, a fifth of the 10 in all, come before.
    assert method.trace.count("step") == 16
    assert method.updates == 10
    assert method.trace[:4] == ["update", "update", "update", "step"]


def test_a_warm_up_goes_on_where_it_was() -> None:
    at, clock = setting(), Clock(steps=8)
    first, again = (alternation(Counting(at, student_steps=2, warmup=0.5), at) for _ in range(2))
    for _ in range(3):  # of four rounds: as many as the run's student steps need
        first.advance(clock)
        assert not first.terms(clock)
    again.load_state_dict(first.state_dict())
    assert again.warming_up(clock)
    again.advance(clock)
    assert not again.warming_up(clock)


def test_a_methods_schedules_follow_the_student_and_not_the_warm_up() -> None:
    source, clock = alternation(Counting(at := setting()), at), Clock(seconds=100.0)
    clock._read = 40.0
    clock.begin_step()
    clock.step, clock._read = 10, 70.0
    source.advance(clock)
    assert at.pace.fraction == 0.5


def test_a_method_may_look_at_what_the_student_made_of_its_batch() -> None:
    method, seen = Counting(at := setting()), list[tuple[Batch, Tensor, Tensor]]()
    method.observe = lambda *given: seen.append(given)  # type: ignore[attr-defined]
    alternation(method, at).terms(Clock(steps=5))
    ((batch, student, teacher),) = seen
    torch.testing.assert_close(teacher, at.teacher(batch.images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student, at.student(batch.images))
    assert not student.requires_grad


def test_a_run_shorter_than_a_round_has_a_round_that_is_no_warm_up() -> None:
    at = setting()
    method, warming = Counting(at, student_steps=20, warmup=0.1), list[bool]()
    update = method.update
    method.update = lambda: warming.append(at.pace.warming) or update()  # type: ignore[func-returns-value, method-assign]
    go(alternation(method, at), Trainer(at.student, optimisation()), Clock(steps=3))
    assert warming == [True, False]


def test_warm_up_is_a_share_of_the_budget() -> None:
    at, clock = setting(), Clock(seconds=10.0)
    source = alternation(Counting(at, warmup=0.3), at)
    for read, warming in [(0.0, True), (2.9, True), (3.1, False), (9.0, False)]:
        clock._read = read
        source.advance(clock)
        assert at.pace.warming == warming
        assert bool(source.terms(clock)) != warming
    clock.step, clock._read = 1, 0.1
    assert not source.warming_up(clock), "warm-up never comes back once the student has begun"


@pytest.mark.parametrize(("criterion", "temperature"), [("kl", 1.0), ("kl", 20.0), ("l1", 1.0), ("mse", 1.0)])
def test_the_students_loss_is_the_criterion_on_what_was_drawn(criterion: str, temperature: float) -> None:
    at = setting()
    images = torch.rand(6, *DOMAIN.shape, generator=torch.Generator().manual_seed(11))
    source = alternation(Counting(at), at, criterion=criterion, temperature=temperature)
    reference = copy.deepcopy(at.student).train()
    terms = source.terms(Clock(steps=5))
    wanted = losses.CRITERIA[criterion](reference(images), at.teacher(images), temperature)
    assert list(terms) == [criterion]
    torch.testing.assert_close(terms[criterion], wanted)
    agreement = (reference(images).argmax(1) == at.teacher(images).argmax(1)).float().mean()
    assert source.agreement.item() == agreement.item()


def test_teacher_and_student_see_the_same_crops() -> None:
    at = setting()
    rng = torch.Generator().manual_seed(11)
    images = torch.rand(6, *DOMAIN.shape, generator=rng)
    images = crop_and_flip(images, draw_crops(6, rng, pad=1, flip=True), pad=1)
    reference = copy.deepcopy(at.student).train()
    terms = alternation(Counting(at), at, augmented=True).terms(Clock(steps=5))
    torch.testing.assert_close(terms["kl"], losses.kl(reference(images), at.teacher(images), 4.0))


def test_a_student_that_was_evaluated_goes_on_in_training_mode() -> None:
    at = setting()
    at.student.eval()
    assert alternation(Counting(at), at).terms(Clock(steps=5))
    assert all(module.training for module in at.student.modules())


def test_no_gradient_reaches_the_teacher() -> None:
    at = setting()
    before = {k: v.clone() for k, v in at.teacher.network.state_dict().items()}
    go(alternation(Counting(at), at), Trainer(at.student, optimisation()), Clock(steps=4))
    assert all(torch.equal(v, before[k]) for k, v in at.teacher.network.state_dict().items())
    assert not any(p.grad is not None for p in at.teacher.network.parameters())


def test_a_generators_term_that_is_not_finite_names_term_and_step() -> None:
    at = setting()
    method = Counting(at, student_steps=2)
    method.bad = {3}
    with pytest.raises(TermError, match="the term 'adv' became nan at step 4"):
        go(alternation(method, at), Trainer(at.student, optimisation()), Clock(steps=9))


def test_a_students_term_that_is_not_finite_names_term_and_step() -> None:
    at = setting()
    with torch.no_grad():
        next(iter(at.student.parameters())).fill_(torch.inf)
    with pytest.raises(TermError, match="the term 'mse' became nan at step 0"):
        go(alternation(Counting(at), at, criterion="mse"), Trainer(at.student, optimisation()), Clock(steps=3))


def test_it_distils() -> None:
    """The divergence from the teacher on images never seen falls to a small part."""
    at = setting(batch_size=64)
    images = torch.rand(500, *DOMAIN.shape)

    def divergence() -> float:
        with torch.no_grad():
            return losses.kl(at.student.eval()(images), at.teacher(images)).item()

    before = divergence()
    source = alternation(Counting(at), at, temperature=1.0)
    go(source, Trainer(at.student, optimisation(lr=0.2)), Clock(steps=150))
    assert divergence() < 0.3 * before


def build(name: str, at: Setting, **values: Any) -> Any:
    method = load_method(name)
    narrow = {"latent": 6, "generator_width": 3, "bank": 30, "student_steps": 2, "generator_steps": 2, "reset": 2}
    known = {f.name for f in fields_of(method.Config)}
    return method(
        at, method.Config(**{k: v for k, v in {**narrow, "bn_momentum": 0.5, **values}.items() if k in known})
    )


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.mark.parametrize("stop", [1, 4, 5])
@pytest.mark.parametrize("name", list(METHODS))
def test_ten_steps_are_some_and_the_rest_bit_for_bit(name: str, stop: int) -> None:
    """Student, moving average, generator, bank, optimisers, random states: saved in the midst of a round too."""

    def begin() -> tuple[Setting, Alternation, Trainer, Clock]:
        at = setting()
        trainer = Trainer(at.student, optimisation(ema=0.9, optimizer="adam" if name == "noise" else "sgd"))
        return at, alternation(build(name, at, warmup=0.3), at, augmented=True), trainer, Clock(steps=10)

    def state(source: Alternation, trainer: Trainer, at: Setting) -> dict[str, Any]:
        held = {"source": source.state_dict(), "trainer": trainer.state_dict(), "rng": at.rng.get_state()}
        return copy.deepcopy({**held, "torch": torch.get_rng_state()})

    at, source, trainer, clock = begin()
    assert go(source, trainer, clock)
    wanted = state(source, trainer, at)

    at, source, trainer, clock = begin()
    assert not go(source, trainer, clock, stop_after=stop)
    held = state(source, trainer, at)
    step = copy.deepcopy(clock.state_dict())

    at, source, trainer, clock = begin()
    torch.manual_seed(1234)
    source.load_state_dict(held["source"])
    trainer.load_state_dict(held["trainer"])
    clock.load_state_dict(step)
    at.rng.set_state(held["rng"])
    torch.set_rng_state(held["torch"])
    assert go(source, trainer, clock)
    assert same(state(source, trainer, at), wanted)
