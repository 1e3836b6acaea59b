"""What a method is given: how long an inner loop is, and which classes it is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import pytest
import torch
from torch.nn import functional as F

from datafree.synthesis import setting
from datafree.synthesis.setting import Pace, Setting, student_mode

Toy = Callable[..., Setting]


class Time:
    """A clock on the wall that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Time:
    held = Time()
    monkeypatch.setattr(setting, "time", held)
    return held


def walk(loop: Iterable[float], wall: Time, seconds: float) -> list[float]:
    """The shares of a loop whose steps take that long."""
    fractions = []
    for fraction in loop:
        fractions.append(fraction)
        wall.now += seconds
    return fractions


@pytest.mark.parametrize(
    ("steps", "wanted", "fractions"), [(None, 4, [0, 0.25, 0.5, 0.75]), (2, 4, [0, 0.5]), (9, 2, [0, 0.5])]
)
def test_inner_loops_are_no_longer_than_the_run(steps: int | None, wanted: int, fractions: list[float]) -> None:
    assert list(Pace(steps=steps).inner(wanted)) == fractions


def test_an_inner_loop_takes_its_share_of_a_budget(wall: Time) -> None:
    # A tenth of 50 s is 5 s: five steps of 1 s, and the sixth would not fit. The loop's schedule ends with the time.
    assert walk(Pace(seconds=50.0).inner(100), wall, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_quick_steps_are_all_taken(wall: Time) -> None:
    assert walk(Pace(seconds=50.0).inner(4), wall, 0.5) == [0, 0.25, 0.5, 0.75]


def test_the_first_step_always_runs(wall: Time) -> None:
    assert walk(Pace(seconds=1.0).inner(100), wall, 60.0) == [0]


def test_shares_rise_and_stay_below_one(wall: Time) -> None:
    for seconds in (0.3, 0.7, 1.9):
        fractions = walk(Pace(seconds=73.0).inner(17), wall, seconds)
        assert fractions == sorted(set(fractions))
        assert fractions[0] == 0
        assert fractions[-1] < 1


def test_classes_are_drawn_alike_or_from_the_prior(toy: Toy) -> None:
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2])
    for prior, wanted in ((None, torch.full((4,), 0.25)), (shares, shares)):
        targets = toy(prior=prior).targets(40_000)
        assert targets.dtype == torch.int64
        counts = torch.bincount(targets, minlength=4) / 40_000
        torch.testing.assert_close(counts, wanted, atol=0.01, rtol=0)  # four deviations of at most 0.0025
        assert torch.equal(toy(prior=prior).targets(40_000), targets)
        assert (counts[1] == 0) == (prior is not None)


@pytest.mark.parametrize("was", [True, False])
def test_the_students_mode_is_put_back_after_an_error_too(toy: Toy, was: bool) -> None:
    student = toy().student.train(was)

    def fail(mode: str) -> None:
        with student_mode(student, mode):
            assert all(m.training == (mode == "train") for m in student.modules())
            raise KeyError

    for mode in ("train", "eval"):
        with pytest.raises(KeyError):
            fail(mode)
        assert student.training == was


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_cropped_by_an_eighth_each_way_and_mirrored_by_the_domain(toy: Toy, flip: bool) -> None:
    at = toy(domain=dataclasses.replace(toy().domain, shape=(3, 8, 16), flip=flip))
    views = at.view(torch.linspace(0.1, 1, 16).expand(300, 3, 8, 16))[:, 0]  # brighter to the right
    assert (views > 0).any(2).sum(1).min() == 8 - 1
    assert (views > 0).any(1).sum(1).min() == 16 - 2
    assert (views[:, 4, 5] > views[:, 4, 10]).any() == flip


@pytest.mark.parametrize("flip", [False, True])
def test_every_image_has_its_own_view_and_digits_are_not_mirrored(toy: Toy, flip: bool) -> None:
    at, image = toy(domain=dataclasses.replace(toy().domain, flip=flip)), torch.rand(3, 8, 8)
    views = at.view(image.expand(400, -1, -1, -1))
    # Shifts by up to one pixel (W / 8) either way, filled with black, of the image and perhaps of its mirror image.
    padded = [F.pad(each, (1, 1, 1, 1)) for each in ([image, image.flip(2)] if flip else [image])]
    wanted = torch.stack([each[:, y : y + 8, x : x + 8] for each in padded for y in range(3) for x in range(3)])
    found = (views.unsqueeze(1) == wanted).flatten(2).all(2)
    assert found.sum(1).tolist() == [1] * 400
    assert found.any(0).all(), "some view never comes up"
