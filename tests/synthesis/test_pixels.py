"""The optimisation of pixels: its rate, what it keeps, its views, and its batch cut among processes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datafree import losses
from datafree.domain import Domain
from datafree.synthesis.pixels import (
    Descent,
    Space,
    descend,
    halved,
    moved,
    noise,
    patches_weight,
    pixel_space,
    takes_half,
    whole_batch,
)
from datafree.synthesis.setting import Setting
from datafree.teacher import Normalised, Teacher

DOMAIN = Domain(name="any", shape=(2, 6, 8), classes=3, mean=(0.4, 0.5), std=(0.2, 0.25), flip=True)
UNIT = Space(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1))


def setting() -> Setting:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return Setting(
        teacher=Teacher(network, DOMAIN.mean, DOMAIN.std),
        student=Normalised(network, DOMAIN.mean, DOMAIN.std),
        domain=DOMAIN,
        batch_size=4,
        rng=torch.Generator().manual_seed(5),
        device=torch.device("cpu"),
    )


def shares(steps: int) -> list[float]:
    return [step / steps for step in range(steps)]


@pytest.mark.parametrize(
    ("parts", "warm", "rise"),
    [([2000], 100, 0.05), ([50], 0, 0.0), ([2000, 1000], 100, 0.05), ([40, 20], 30, 0.75), ([100, 50], 0, 0.0)],
)
def test_rate_is_the_releases(parts: list[int], warm: int, rise: float) -> None:
    """Step k of a part: linear over its first `warm` steps, then half a cosine; at two sizes a part for each.

    Where a part ends before the rate has risen (20 of 30 steps), it ends there.
    """
    wanted = []
    for part in parts:
        for k in range(part):
            cosine = 0.5 * (1 + math.cos(math.pi * (k - warm) / (part - warm)))
            wanted.append(0.2 * ((k + 1) / warm if k < warm else cosine))
    descent = Descent(0.2, (0.5, 0.9), sum(parts), rise, 2 / 3 if len(parts) > 1 else 0.0)
    assert [descent.rate(f) for f in shares(sum(parts))] == pytest.approx(wanted, abs=1e-6)


def test_the_batch_of_the_lowest_loss_is_kept_and_is_no_alias() -> None:
    """Adam overshoots a minimum; what is kept is the best of the batches that the loss was taken of."""
    seen: list[tuple[float, Tensor]] = []

    def objective(pixels: Tensor, small: bool) -> dict[str, Tensor]:
        assert not small
        terms = {"a": (pixels - 0.3).square().sum(), "b": 0.5 * (pixels - 0.3).abs().sum()}
        seen.append((sum(term.item() for term in terms.values()), pixels.detach().clone()))
        return terms

    start = torch.full((1, 2, 3, 3), 0.5)
    kept, terms = descend(start, objective, Descent(0.3, (0.9, 0.999), 12), UNIT, shares(12))
    values = [loss for loss, _ in seen]
    best = values.index(min(values))
    assert 0 < best < 11, "the test is of a best that is neither the first nor the last"
    assert torch.equal(kept, seen[best][1])
    assert sum(terms.values()) == pytest.approx(values[best], rel=1e-5)
    assert torch.equal(start, torch.full((1, 2, 3, 3), 0.5))
    assert not kept.requires_grad


def test_where_the_first_is_the_best_it_is_kept() -> None:
    start = torch.rand(1, 2, 3, 3)
    kept, _ = descend(
        start, lambda x, _: {"up": (x - start).square().sum() + 0 * x.sum() - 1e-9 * x.sum()},
        Descent(0.5, (0.9, 0.999), 3), UNIT, [0.0],
    )  # fmt: skip
    assert torch.equal(kept, start)


def test_losses_of_two_sizes_are_not_compared() -> None:
    sizes: list[bool] = []

    def objective(pixels: Tensor, small: bool) -> dict[str, Tensor]:
        sizes.append(small)
        return {"x": pixels.square().sum() + (0 if small else 100)}

    _, terms = descend(torch.rand(1, 2, 4, 4), objective, Descent(0.1, (0.5, 0.9), 6, 0.0, 2 / 3), UNIT, shares(6))
    assert sizes == [True] * 4 + [False] * 2
    assert terms["x"] > 100


def test_pixels_stay_images_and_those_on_the_edge_can_leave_it() -> None:
    at = setting()
    space = pixel_space(at)
    low, high = space.clip(torch.full((1, 2, 1, 1), -99.0)), space.clip(torch.full((1, 2, 1, 1), 99.0))
    np.testing.assert_allclose(low.flatten(), [-0.4 / 0.2, -0.5 / 0.25], rtol=1e-6)
    np.testing.assert_allclose(high.flatten(), [0.6 / 0.2, 0.5 / 0.25], rtol=1e-6)
    ranges: list[tuple[float, float]] = []

    def objective(pixels: Tensor, _: bool) -> dict[str, Tensor]:
        images = space.shown(pixels)
        ranges.append((images.min().item(), images.max().item()))
        return {"x": (images - 0.5).square().sum()}

    start = torch.where(torch.rand(2, 2, 6, 8) < 0.5, low, high)
    kept, _ = descend(start, objective, Descent(0.1, (0.9, 0.999), 5), space, shares(5))
    assert all(least >= -1e-6 and most <= 1 + 1e-6 for least, most in ranges)
    assert ((kept - start).abs() > 1e-3).all()
    assert space.images(start).min() == 0
    assert space.images(start).max() == 1


def test_noise_is_normal_in_normalised_space() -> None:
    at = setting()
    pixels = noise(at, 500, pixel_space(at))
    assert pixels.shape == (500, 2, 6, 8)
    # N(0, 1) cut at -2, and at 3 and 2: mean and deviation of the first channel -.0081 .. .0084, of the second 0, .96.
    assert pixels.mean().item() == pytest.approx(0.004, abs=0.01)
    assert pixels.std().item() == pytest.approx(0.97, abs=0.01)


def test_a_batch_is_moved_as_one_by_at_most_so_much() -> None:
    pixels = torch.arange(2 * 2 * 6 * 8.0).view(2, 2, 6, 8)
    rng = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(200):
        view = moved(pixels, rng, 1, flip=True)
        for mirrored in (False, True):
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    other = np.roll(pixels.numpy(), (down, right), (2, 3))
                    if np.array_equal(view, other[..., ::-1] if mirrored else other):
                        found.add((mirrored, down, right))
    assert len(found) == 18
    assert all(torch.equal(moved(pixels, rng, 0, flip=False), pixels) for _ in range(20))


def test_half_the_size_is_means_of_squares() -> None:
    image = torch.tensor([[1.0, 2, 3], [5, 9, 7], [4, 6, 8]]).view(1, 1, 3, 3)
    assert torch.equal(halved(image), torch.tensor([[17 / 4, 5], [5, 8]]).view(1, 1, 2, 2))


def test_networks_that_take_half_the_size_are_told_from_others() -> None:
    free = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    assert takes_half([free, free], DOMAIN.shape)
    assert not takes_half([free, fixed], DOMAIN.shape)


class Attention(nn.Module):
    num_heads = 2

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> Any:
        return self.make(images)


class Attentive(nn.Module):
    """A teacher with an attention block that returns what `make` makes of the images."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.attention = Attention(make)

    def forward(self, images: Tensor) -> Tensor:
        self.attention(images)
        return images.mean((2, 3))


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda x: x.reshape(len(x), 16, 6), True),
        (lambda x: x.reshape(len(x), 2, 8, 6), False),  # blocks of tokens, as timm's NesT
        (lambda x: {"maps": x}, False),
        (None, False),
    ],
)
def test_patches_weigh_only_where_attention_shows_some(make: Callable[[Tensor], Any] | None, seen: bool) -> None:
    at = setting()
    if make is not None:
        at = dataclasses.replace(at, teacher=Teacher(Attentive(make), DOMAIN.mean, DOMAIN.std))
    assert [patches_weight(w, at) for w in (None, 0.0)] == [seen, 0]
    if seen:
        assert patches_weight(2.0, at) == 2
        return
    with pytest.raises(ValueError, match="--patches 2: the teacher has no attention blocks that show patches"):
        patches_weight(2.0, at)


def test_two_processes_optimise_the_batch_of_one(in_two: Callable[[Any], list[Any]]) -> None:
    """A term that is a mean over images, and one that is a norm over the whole batch."""

    def work() -> tuple[Tensor, dict[str, float]]:
        at = setting()
        space = pixel_space(at)

        def objective(pixels: Tensor, _: bool) -> dict[str, Tensor]:
            view = moved(pixels, at.rng, 1, flip=True)
            return {
                "mean": view.mul(3).sin().flatten(1).sum(1).mean(),
                "whole": 0.5 * losses.total_variation(whole_batch(view), "l2"),
            }

        return descend(noise(at, 4, space), objective, Descent(0.2, (0.5, 0.9), 8), space, shares(8))

    wanted, terms = work()
    (first, one), (second, two) = in_two(work)
    torch.testing.assert_close(torch.cat([first, second]), wanted, rtol=1e-3, atol=1e-4)
    assert one == two == pytest.approx(terms, rel=1e-4)
