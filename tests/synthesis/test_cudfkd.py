"""CuDFKD: the ramp, the contrast in numpy, the queue, and dfq where both are off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from datafree import losses
from datafree.synthesis.cudfkd import CuDFKD, CuDFKDConfig
from datafree.synthesis.dfq import DFQ, DFQConfig
from datafree.synthesis.setting import Setting

Toy = Callable[..., Setting]
SMALL: dict[str, Any] = {"latent": 6, "generator_width": 4, "bank": 64, "generator_steps": 1}


@pytest.mark.parametrize(
    ("fraction", "weight"), [(0.0, -0.5), (0.2, -0.5), (0.3, 0.0), (0.4, 0.5), (0.7, 2.0), (0.9, 2.0), (1.0, 2.0)]
)
def test_difficulty_rises_in_a_straight_line(toy: Toy, fraction: float, weight: float) -> None:
    at = toy()
    method = CuDFKD(at, CuDFKDConfig(**SMALL, easy=-0.5, adv=2.0, begin=0.2, end=0.7))
    at.pace.fraction = fraction  # -0.5 + 2.5 (fraction - 0.2) / 0.5
    assert method.difficulty == pytest.approx(weight)
    at.pace.warming = True
    assert method.difficulty == 0


def test_the_weight_is_that_of_the_disagreement(toy: Toy) -> None:
    found = []
    for fraction in (0.0, 0.4):
        at = toy()
        at.pace.fraction = fraction
        config = CuDFKDConfig(**SMALL, easy=-0.5, adv=2.0, begin=0.2, end=0.7, masked=False)
        found.append(CuDFKD(at, config).update()["adv"])
    assert found[0] > 0 > found[1]
    assert found[1] / found[0] == pytest.approx(0.5 / -0.5, rel=1e-5)


@pytest.mark.parametrize("easy", [-0.5, 0.5])
def test_agreement_is_sought_where_there_is_none(toy: Toy, easy: float) -> None:
    """The mask leaves images alone that are fought over; below 0 those are the ones to be brought back."""
    at = toy()
    images = CuDFKD(at, CuDFKDConfig(**SMALL)).imaging.images().detach()
    student, teacher = at.student.eval()(images), at.teacher(images)
    alike = student.argmax(1) == teacher.argmax(1)
    assert alike.any()
    assert not alike.all()
    divergence = losses.kl_per_sample(student, teacher)
    counted = divergence if easy < 0 else divergence * alike
    found = CuDFKD(toy(), CuDFKDConfig(**SMALL, easy=easy)).update()
    assert found["adv"] == pytest.approx(-easy * counted.mean().item(), rel=1e-5)


def test_an_end_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--end is 0\.2: give a share of the run above --begin 0\.25, up to 1"):
        CuDFKDConfig(end=0.2)


def test_contrast_is_its_equation_in_numpy(toy: Toy) -> None:
    """Of the second round: against the batch's own crops and the queue of the first round's."""
    at = toy()
    method = CuDFKD(at, CuDFKDConfig(**SMALL, contrast=0.7, contrast_temperature=0.2))
    method.update()
    assert method.queue is not None
    queue, state = method.queue.clone().double().numpy(), at.rng.get_state()
    images = method.imaging.images().detach()  # what the next round will see
    views = [at.teacher.look(x, features=True).features for x in (images, at.view(images))]
    at.rng.set_state(state)
    found = method.update()["contrast"]

    assert views[0] is not None
    assert views[1] is not None
    q, k = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in views)  # type: ignore[union-attr]
    wanted = 0.0
    for i in range(8):
        others = np.exp(np.concatenate([k, queue]) @ q[i] / 0.2)
        wanted -= np.log(others[i] / others.sum()) / 8
    assert found == pytest.approx(0.7 * wanted, rel=1e-4)


def test_the_queue_holds_the_newest(toy: Toy) -> None:
    at = toy()
    method = CuDFKD(at, CuDFKDConfig(**SMALL, negatives=20))
    sizes, before = [], torch.empty(0, 96)
    for _ in range(4):
        method.update()
        assert method.queue is not None
        sizes.append(len(method.queue))
        assert torch.equal(method.queue[8:], before[: len(method.queue) - 8])
        before = method.queue.clone()
    assert sizes == [8, 16, 20, 20]
    torch.testing.assert_close(before.norm(dim=1), torch.ones(20))


@pytest.mark.parametrize("warming", [False, True])
def test_without_ramp_and_contrast_it_is_dfq(toy: Toy, warming: bool) -> None:
    ours = CuDFKD(toy(), CuDFKDConfig(**SMALL, easy=1.0, adv=1.0, contrast=0.0))
    dfq = DFQ(toy(), DFQConfig(**SMALL))
    ours.setting.pace.warming = dfq.setting.pace.warming = warming
    for _ in range(3):
        assert ours.update() == pytest.approx(dfq.update(), rel=1e-6)
        torch.testing.assert_close(ours.sample(8).images, dfq.sample(8).images)
    assert ours.queue is None
