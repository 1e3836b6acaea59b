"""Random shapes, and the bank that serves them by the teacher's classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.domain import Domain
from datafree.synthesis import shapes
from datafree.synthesis.blend import Blend, BlendConfig
from datafree.synthesis.setting import Pace, Setting
from datafree.synthesis.shapes import CHUNK, ShapeBank, draw_shapes
from datafree.teacher import Teacher

Toy = Callable[..., Setting]
GREY = Domain(name="grey", shape=(1, 8, 8), classes=4, mean=(0.2,), std=(0.3,), flip=False)


class Brightness(nn.Module):
    """A teacher that tells images by their mean: its four classes are the mean's quarters of [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean((1, 2, 3)).clamp(0, 0.999) * 4
        return -(level[:, None] - 0.5 - torch.arange(4.0)).abs()


def bank_of(capacity: int = 400, **values: Any) -> ShapeBank:
    teacher = Teacher(Brightness(), (0.0,), (1.0,))
    setting = Setting(
        teacher=teacher, student=nn.Identity(), batch_size=64, rng=torch.Generator().manual_seed(3),
        device=torch.device("cpu"), **{"domain": GREY, "pace": Pace(steps=30), **values},
    )  # fmt: skip
    return ShapeBank(setting, capacity)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 9, 14), (4, 5, 7)])
def test_shapes_are_images_and_follow_the_generator(shape):
    first, again, other = (draw_shapes(10, shape, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first.shape == (10, *shape)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.flatten(1).std(1).median() > 0.01  # something is on them


def test_grey_shapes_lie_on_black_and_their_negatives_on_white():
    dark = draw_shapes(400, (1, 28, 28), torch.Generator().manual_seed(0))
    bright = draw_shapes(400, (1, 28, 28), torch.Generator().manual_seed(0), bright=True)
    torch.testing.assert_close(bright, 1 - dark)
    assert (dark < 0.05).float().mean() > 0.5


def test_classes_come_alike_however_rare_they_are():
    bank = bank_of()
    bank.refill()
    counts = bank.added.float()
    assert counts.max() > 3 * counts.min()  # rare and frequent ones
    drawn = bank.draw(4000)
    seen = Brightness()(drawn.float() / 255).argmax(1).bincount(minlength=4)
    # A quarter each: 1000 ± 4 standard deviations of 27; rounding to bytes may move an image across a border.
    assert (seen - 1000).abs().max() < 130


def test_the_prior_leaves_classes_out():
    bank = bank_of(prior=torch.tensor([0.0, 1.0, 0.0, 0.0]))
    bank.refill()
    seen = Brightness()(bank.draw(500).float() / 255).argmax(1)
    assert (seen == 1).float().mean() > 0.97


def test_of_each_class_the_latest_stay():
    bank = bank_of(capacity=8)
    asked: list[Tensor] = []
    answer = bank.answer  # made once: it may be a copy of the teacher

    def watching(images: Tensor) -> Tensor:
        asked.append(images.clone())
        return answer(images)

    bank.answer = watching
    for _ in range(3):
        bank.refill()
    images = torch.cat(asked)
    classes = Brightness()(images).argmax(1)
    assert bank.added.tolist() == classes.bincount(minlength=4).tolist()
    for c in range(4):
        latest = (images[classes == c][-2:] * 255).round().to(torch.uint8)
        held = {bytes(i.flatten().tolist()) for i in bank.images[c]}
        assert {bytes(i.flatten().tolist()) for i in latest} <= held


class Written:
    """In the place of a bank's images: the places that each write names."""

    def __init__(self) -> None:
        self.places: list[list[tuple[int, int]]] = []

    def __setitem__(self, index: tuple[Tensor, Tensor], images: Tensor) -> None:
        self.places.append(list(zip(*(part.tolist() for part in index), strict=True)))


def test_no_place_is_written_twice_at_once():
    """Which of the writes stayed would change from run to run on several threads."""
    bank = bank_of(capacity=8)
    written = Written()
    bank.images = written  # type: ignore[assignment]
    bank.refill()
    assert bank.added.max() > 10 * bank.each
    assert all(len(places) == len(set(places)) for places in written.places)


def test_half_are_strokes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shapes, "strokes", lambda draw: torch.zeros(draw.n, 1, draw.height, draw.width))
    images = draw_shapes(7, (1, 8, 8), torch.Generator().manual_seed(0))
    assert images.flatten(1).any(1).tolist() == [True] * 3 + [False] * 4


def test_shapes_of_bright_data_are_the_negatives():
    held = []
    for mean in (0.2, 0.8):
        bank = bank_of(capacity=4000, pace=Pace(steps=1), domain=dataclasses.replace(GREY, mean=(mean,)))
        bank.refill()
        held.append(bank.images[(bank.images > 0).flatten(2).any(2)].float().mean().item())
    assert abs(held[0] - 127.5) > 2
    assert held[0] + held[1] == pytest.approx(255, abs=0.5)


def test_classes_fill_their_places_in_order():
    bank = bank_of(capacity=4000, pace=Pace(steps=1))
    bank.refill()
    for images, count in zip(bank.images, bank.added.tolist(), strict=True):
        filled = images.flatten(1).any(1)
        assert filled[:count].all(), "a place without a shape would be drawn, black"
        assert not filled[count:].any()


def test_the_first_round_keeps_to_the_runs_pace():
    bank = bank_of(pace=Pace(steps=3))
    bank.refill()
    assert bank.made == 3 * CHUNK
    bank.refill()
    assert bank.made == 4 * CHUNK


def test_a_bank_is_taken_up_again():
    first, second = bank_of(), bank_of()
    first.refill()
    second.load_state_dict(first.state_dict())
    second.setting.rng.set_state(first.setting.rng.get_state())
    for _ in range(2):
        assert torch.equal(first.draw(50), second.draw(50))
        first.refill()
        second.refill()


def test_blend_gives_the_student_the_share_that_was_asked_for(toy: Toy):
    method = Blend(toy(batch_size=16), BlendConfig(shapes=0.25, generator_steps=1, generator_width=8, latent=8))
    method.update()
    assert method.shapes is not None
    shapes = {bytes(i.flatten().tolist()) for i in method.shapes.images.flatten(0, 1)}
    images = (method.sample(16).images * 255).round().to(torch.uint8)
    assert images.shape == (16, 3, 8, 8)
    assert sum(bytes(i.flatten().tolist()) in shapes for i in images) == 4


def test_a_generator_that_nobody_would_see_is_refused():
    with pytest.raises(ValueError, match=r"^--shapes 1 .*: take --method noise --distribution shapes"):
        BlendConfig(shapes=1)


def test_without_shapes_blend_draws_from_its_bank_alone(toy: Toy):
    method = Blend(toy(batch_size=16), BlendConfig(shapes=0.0, generator_steps=1, generator_width=8, latent=8))
    method.update()
    assert method.shapes is None
    assert method.sample(16).images.shape == (16, 3, 8, 8)


@pytest.mark.parametrize(("batch", "share", "shown"), [(1, 0.5, 0), (2, 0.2, 0), (16, 0.02, 0), (2, 0.9, 2)])
def test_a_share_may_come_to_no_shape_or_to_shapes_alone(toy: Toy, batch: int, share: float, shown: int):
    method = Blend(toy(batch_size=batch), BlendConfig(shapes=share, generator_steps=1, generator_width=8, latent=8))
    method.update()
    assert method.shapes is not None
    shapes = {bytes(i.flatten().tolist()) for i in method.shapes.images.flatten(0, 1)}
    images = (method.sample(batch).images * 255).round().to(torch.uint8)
    assert sum(bytes(i.flatten().tolist()) in shapes for i in images) == shown
    assert len(images) == batch
