"""The clock, the schedules, one step against a plain loop, and the loop around steps."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree import training
from datafree.config import OptimisationConfig
from datafree.training import Clock, Seconds, TermError, Trainer, default_batch_size, learning_rate, make_clock, run


def config(**values: Any) -> OptimisationConfig:
    return OptimisationConfig(**{"lr": 0.1, "optimizer": "sgd", "weight_decay": 0.0, **values})


class Time:
    """A clock on the wall that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Time:
    held = Time()
    monkeypatch.setattr(training, "time", held)
    return held


def test_clock_of_steps() -> None:
    clock = Clock(steps=4)
    clock.start()
    fractions = []
    while not clock.finished():
        fractions.append(clock.fraction)
        clock.step += 1
    assert fractions == [0, 0.25, 0.5, 0.75]
    assert clock.fraction == 1.0


def test_clock_of_seconds_stops_within_half_a_step_of_the_budget(wall: Time) -> None:
    clock = Clock(seconds=10.0)
    clock.start()
    while not clock.finished():
        wall.now += 1.5
        clock.step += 1
    # After 6 steps 9 + 1.5 / 2 < 10, so a seventh is begun; it ends at 10.5 s.
    assert clock.elapsed == 10.5
    assert abs(clock.elapsed - 10.0) <= 0.75
    assert clock.seconds_left == 0.0


def test_schedules_of_a_budget_follow_the_last_reading(wall: Time) -> None:
    clock = Clock(seconds=10.0)
    clock.start()
    wall.now += 4.0
    assert clock.fraction == 0.0
    assert not clock.finished()
    assert clock.fraction == 0.4


@pytest.mark.parametrize("warm", [0.0, 6.0, 8.0, 9.5])
def test_what_comes_before_the_first_step_is_no_steps_time(wall: Time, warm: float) -> None:
    clock, progress = Clock(seconds=10.0), list[float]()
    clock.start()
    while not clock.finished():
        if clock.elapsed < warm - 1e-9:  # a warm-up of half a second a round
            wall.now += 0.5
            continue
        clock.begin_step()
        progress.append(clock.progress)
        wall.now += 0.25
        clock.step += 1
    assert clock.step == (10 - warm) / 0.25  # none is lost to the length of the warm-up
    assert progress == pytest.approx([i / clock.step for i in range(clock.step)])
    again = Clock(seconds=10.0)
    again.load_state_dict({**clock.state_dict(), "spent": warm + 0.25 * (10 - warm)})  # as if saved a quarter through
    again.finished()
    assert again.progress == pytest.approx(0.25)


def test_pauses_do_not_count(wall: Time) -> None:
    clock = Clock(seconds=10.0)
    clock.start()
    wall.now += 2
    clock.pause()
    wall.now += 100
    clock.start()
    wall.now += 3
    assert clock.elapsed == 5.0


def test_clock_goes_on_after_its_round_trip(wall: Time) -> None:
    clock, other = Clock(seconds=10.0), Clock(seconds=10.0)
    clock.start()
    wall.now += 6
    clock.step = 3
    other.load_state_dict(clock.state_dict())
    other.start()
    wall.now += 1
    assert (other.step, other.elapsed, other.fraction) == (3, 7.0, 0.6)


def test_time_left_of_a_run_of_steps(wall: Time) -> None:
    clock = Clock(steps=10)
    clock.start()
    assert clock.seconds_left is None
    wall.now += 8
    clock.step = 4
    assert clock.seconds_left == 12.0


def test_lengths() -> None:
    assert make_clock(config(steps=7), 400).steps == 7
    assert make_clock(config(epochs=2.5), 400).steps == 1000
    assert make_clock(config(epochs=0.0001), 400).steps == 1
    assert make_clock(config(budget="2m"), 400).seconds == 120


def test_default_batch_falls_with_the_pixels() -> None:
    assert [default_batch_size((3, n, n)) for n in (8, 28, 32, 64, 224, 1000)] == [256, 256, 256, 64, 8, 8]


def test_schedules() -> None:
    cosine = [learning_rate(config(), x) for x in (0, 1 / 3, 0.5, 1)]
    assert cosine == pytest.approx([1, 0.75, 0.5, 0])  # (1 + cos(pi x)) / 2; cos(pi / 3) = 1/2
    steps = [learning_rate(config(schedule="multistep"), x) for x in (0, 0.49, 0.5, 0.74, 0.75, 1)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(config(schedule="constant"), 0.9) == 1.0


def test_sgd_step_by_hand() -> None:
    """Nesterov: v = m v + g, w -= lr (g + m v), with g = gradient + decay w, at the cosine's rate."""
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    network = nn.Module()
    network.weight = weight
    trainer = Trainer(network, config(lr=0.5, weight_decay=0.1, momentum=0.9))
    w, v = 2.0, 0.0
    for fraction in (0.0, 0.25, 0.5):
        trainer.step({"square": weight.square().sum(), "line": 3 * weight.sum()}, fraction)
        g = 2 * w + 3 + 0.1 * w
        v = 0.9 * v + g
        w -= 0.5 * 0.5 * (1 + math.cos(math.pi * fraction)) * (g + 0.9 * v)
        assert weight.item() == pytest.approx(w, rel=1e-14)
    assert trainer.rate == 0.25


@pytest.mark.parametrize(("clip", "factor"), [(None, 1.0), (2.6, 0.2), (13.0, 1.0), (50.0, 1.0)])
def test_the_gradient_is_clipped_to_a_norm(clip: float | None, factor: float) -> None:
    """The gradient is (3, 4, 12), of norm 13, over all parameters together; 2.6 is a fifth of it."""
    network = nn.Module()
    network.one, network.two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    trainer = Trainer(network, config(lr=0.5, momentum=0.0, schedule="constant", gradient_clip=clip))
    for step in (1, 2):
        trainer.step({"line": 3 * network.one[0] + 4 * network.one[1], "other": 12 * network.two.sum()}, 0.0)
        moved = torch.cat([network.one, network.two]).detach()
        torch.testing.assert_close(moved, -0.5 * step * factor * torch.tensor([3.0, 4.0, 12.0]))


def test_adam_is_torchs() -> None:
    network = nn.Linear(3, 2)
    other = copy.deepcopy(network)
    trainer = Trainer(network, config(optimizer="adam", lr=0.01, schedule="constant", weight_decay=0.1))
    reference = torch.optim.Adam(other.parameters(), 0.01, weight_decay=0.1)
    x = torch.randn(5, 3)
    for _ in range(3):
        trainer.step({"loss": network(x).square().mean()}, 0.3)
        reference.zero_grad()
        other(x).square().mean().backward()
        reference.step()
    torch.testing.assert_close(network.weight, other.weight)


def test_moving_average_by_hand() -> None:
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    network = nn.Sequential(linear, norm)
    trainer = Trainer(network, config(ema=0.75))
    average = linear.weight.detach().clone()
    for _ in range(4):
        trainer.step({"loss": network(torch.randn(4, 2)).square().sum() * 0.1 + linear.weight.sum()}, 0.0)
        average = 0.75 * average + 0.25 * linear.weight.detach()
    result = trainer.result
    assert isinstance(result, nn.Sequential)
    assert result is not network
    torch.testing.assert_close(result[0].weight, average)
    assert torch.equal(result[1].running_mean, norm.running_mean)  # type: ignore[arg-type]
    assert not result.training
    assert not any(p.requires_grad for p in result.parameters())
    assert Trainer(network, config()).result is network


class Regression:
    """A source that fits a line; every third step it has nothing to train on."""

    def __init__(self, network: nn.Module, warmup: int = 0, bad: Mapping[int, str] | None = None) -> None:
        self.network, self.warmup, self.bad = network, warmup, bad or {}
        self.rng = torch.Generator().manual_seed(5)
        self.rounds = 0

    def advance(self, clock: Clock) -> Mapping[str, float]:
        self.rounds += 1
        return {"round": math.nan if self.bad.get(clock.step) == "round" else 1.0}

    def terms(self, clock: Clock) -> Mapping[str, Tensor]:
        if self.rounds <= self.warmup:
            return {}
        x = torch.randn(8, 3, generator=self.rng)
        loss = (self.network(x) - x.sum(1, keepdim=True)).square().mean()
        return {"fit": loss, "extra": loss * (math.inf if self.bad.get(clock.step) == "extra" else 0.0)}


def fit(source: Regression, trainer: Trainer, clock: Clock, stop_after: int | None = None) -> bool:
    def after_step(terms: Mapping[str, Tensor], round_terms: Mapping[str, float]) -> bool:
        assert round_terms == {"round": 1.0}
        return stop_after is not None and clock.step >= stop_after

    return run(trainer, source, clock, seconds=Seconds(), autocast=contextlib.nullcontext, after_step=after_step)


def test_loop_counts_training_steps_alone() -> None:
    network, clock = nn.Linear(3, 1), Clock(steps=5)
    source = Regression(network, warmup=3)
    assert fit(source, Trainer(network, config()), clock)
    assert (clock.step, source.rounds) == (5, 8)


def test_loop_trains() -> None:
    network = nn.Linear(3, 1)
    assert fit(Regression(network), Trainer(network, config(weight_decay=0.0)), Clock(steps=100))
    torch.testing.assert_close(network.weight, torch.ones(1, 3), atol=1e-3, rtol=0)


def test_loop_stops_when_asked_and_the_clock_with_it() -> None:
    network, clock = nn.Linear(3, 1), Clock(steps=5)
    assert not fit(Regression(network), Trainer(network, config()), clock, stop_after=2)
    assert clock.step == 2
    spent = clock.elapsed
    time.sleep(0.01)
    assert clock.elapsed == spent


@pytest.mark.parametrize(("name", "value"), [("round", "nan"), ("extra", "inf")])
def test_a_term_that_is_not_finite_stops_the_run(name: str, value: str) -> None:
    network, clock = nn.Linear(3, 1), Clock(steps=5)
    weights = []
    source = Regression(network, bad={2: name})

    def after_step(*_: Any) -> bool:
        weights.append(network.weight.detach().clone())
        return False

    with pytest.raises(TermError, match=f"the term '{name}' became {value} at step 2"):
        run(
            Trainer(network, config()),
            source,
            clock,
            seconds=Seconds(),
            autocast=contextlib.nullcontext,
            after_step=after_step,
        )
    assert torch.equal(network.weight, weights[-1]), "the network was stepped on a term that is not finite"


@pytest.mark.parametrize("values", [{}, {"optimizer": "adam", "lr": 0.01}, {"ema": 0.9}, {"schedule": "multistep"}])
def test_ten_steps_are_five_and_five_bit_for_bit(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    straight = Trainer(copy.deepcopy(start), config(**values))
    source = Regression(straight.network)
    fit(source, straight, Clock(steps=10))

    first = Trainer(copy.deepcopy(start), config(**values))
    source, clock = Regression(first.network), Clock(steps=10)
    fit(source, first, clock, stop_after=5)
    state: dict[str, Any] = copy.deepcopy(
        {"trainer": first.state_dict(), "clock": clock.state_dict(), "rng": source.rng.get_state()}
    )

    again = Trainer(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), config(**values))
    source, clock = Regression(again.network), Clock(steps=10)
    again.load_state_dict(state["trainer"])
    clock.load_state_dict(state["clock"])
    source.rng.set_state(state["rng"])
    fit(source, again, clock)
    assert clock.step == 10
    for one, two in zip(straight.result.state_dict().values(), again.result.state_dict().values(), strict=True):
        assert torch.equal(one, two)
