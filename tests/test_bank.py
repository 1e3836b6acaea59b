"""The replay bank against a plain list, and its round trip."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from datafree.bank import Bank

SHAPE = (1, 2, 2)


def numbered(first: int, count: int) -> torch.Tensor:
    """Images that are told apart by their value, 0 to 255 of 255."""
    values = (torch.arange(first, first + count) % 256).float() / 255
    return values.view(-1, 1, 1, 1).expand(count, *SHAPE)


@pytest.mark.parametrize("seed", range(30))
def test_ring_holds_what_a_list_of_the_latest_holds(seed: int) -> None:
    draw = random.Random(seed)
    capacity = draw.randint(1, 12)
    bank, model = Bank(capacity, SHAPE), list[int]()
    for _ in range(draw.randint(1, 15)):
        count, first = draw.randint(1, 2 * capacity), draw.randint(0, 255)
        bank.add(numbered(first, count))
        model = (model + [(first + i) % 256 for i in range(count)])[-capacity:]
        assert len(bank) == len(model) <= capacity
        assert sorted(bank.images[: len(bank), 0, 0, 0].tolist()) == sorted(model)


def test_the_oldest_go_first() -> None:
    bank = Bank(3, SHAPE)
    for value in range(5):
        bank.add(numbered(value, 1))
    assert sorted(bank.images[:, 0, 0, 0].tolist()) == [2, 3, 4]


def test_a_batch_larger_than_the_bank_leaves_its_last_images() -> None:
    bank = Bank(4, SHAPE)
    bank.add(numbered(0, 3))
    bank.add(numbered(10, 9))
    assert sorted(bank.images[:, 0, 0, 0].tolist()) == [15, 16, 17, 18]


def test_images_are_rounded_to_the_nearest_of_256_levels_and_cut() -> None:
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 100.4 / 255, 254.6 / 255, 1.0, 7.0])
    bank = Bank(8, SHAPE)
    bank.add(values.view(8, 1, 1, 1).expand(8, *SHAPE).requires_grad_())
    assert bank.images[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 100, 255, 255, 255]
    assert bank.images.dtype == torch.uint8


def test_images_survive_within_half_a_level() -> None:
    images = torch.rand(64, 3, 8, 8)
    bank = Bank(64, (3, 8, 8))
    bank.add(images)
    assert (bank.images.float() / 255 - images).abs().max() <= 0.5 / 255 + 1e-7


def test_half_types_are_taken() -> None:
    bank = Bank(4, SHAPE)
    bank.add(numbered(128, 4).bfloat16())
    assert len(bank) == 4


def test_samples_are_of_what_was_added_and_follow_the_generator() -> None:
    bank = Bank(10, SHAPE)
    bank.add(numbered(50, 4))  # six places are empty still and must never come up
    drawn = bank.sample(200, torch.Generator().manual_seed(1))
    assert drawn.shape == (200, *SHAPE)
    assert drawn.dtype == torch.uint8
    assert set(drawn[:, 0, 0, 0].tolist()) == {50, 51, 52, 53}
    assert torch.equal(drawn, bank.sample(200, torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, bank.sample(200, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("added", [2, 5, 8, 13])
def test_state_round_trip(added: int) -> None:
    bank, other = Bank(5, SHAPE), Bank(5, SHAPE)
    for i in range(added):
        bank.add(numbered(i, 1))
    other.load_state_dict(copy.deepcopy(bank.state_dict()))
    assert len(other) == len(bank)
    for each in (bank, other):
        each.add(numbered(200, 3))  # goes to the same places
    assert torch.equal(bank.images[: len(bank)], other.images[: len(other)])
    draws = [each.sample(7, torch.Generator().manual_seed(0)) for each in (bank, other)]
    assert torch.equal(*draws)


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image, not 0"):
        Bank(0, SHAPE)
