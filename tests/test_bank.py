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


def values(bank: Bank) -> list[int]:
    return sorted(bank.images[: len(bank), 0, 0, 0].tolist())


@pytest.mark.parametrize("seed", range(30))
def test_the_least_important_leave_as_in_a_sorted_list(seed: int) -> None:
    draw = random.Random(seed)
    capacity = draw.randint(1, 12)
    bank, model, age = Bank(capacity, SHAPE, eviction="priority"), list[tuple[float, int, int]](), 0
    for _ in range(draw.randint(1, 15)):
        count = draw.randint(1, 2 * capacity)
        priorities = [float(draw.randint(0, 3)) for _ in range(count)]  # few values, so that many are equal
        bank.add(numbered(age, count), torch.tensor(priorities))
        new = [(priority, age + i, (age + i) % 256) for i, priority in enumerate(priorities)][-capacity:]
        model = sorted(model)[max(0, len(model) + len(new) - capacity) :] + new
        age += count
        assert values(bank) == sorted(value for *_, value in model)
        held = dict(zip(bank.images[: len(bank), 0, 0, 0].tolist(), bank.priorities.tolist(), strict=False))
        assert held == {value: priority for priority, _, value in model}


@pytest.mark.parametrize("seed", range(10))
def test_of_equal_priority_the_oldest_leave(seed: int) -> None:
    """Without priorities both evictions hold the same images."""
    draw = random.Random(seed)
    capacity = draw.randint(1, 12)
    banks = [Bank(capacity, SHAPE, eviction=eviction) for eviction in ("fifo", "priority")]
    for _ in range(10):
        count, first = draw.randint(1, 2 * capacity), draw.randint(0, 255)
        for bank in banks:
            bank.add(numbered(first, count))
        assert values(banks[0]) == values(banks[1])


def test_new_images_fill_empty_places_before_any_leaves() -> None:
    bank = Bank(4, SHAPE, eviction="priority")
    bank.add(numbered(0, 3), torch.tensor([9.0, 1.0, 5.0]))
    bank.add(numbered(10, 2))  # one place is empty; for the other the image of priority 1 goes
    assert values(bank) == [0, 2, 10, 11]


def test_images_without_a_priority_take_the_highest() -> None:
    bank = Bank(4, SHAPE)
    bank.add(numbered(0, 1))
    bank.add(numbered(1, 1), torch.tensor([3.0]))
    bank.add(numbered(2, 2))
    assert bank.priorities.tolist() == [1, 3, 3, 3]


def test_the_highest_is_that_of_an_image_and_not_of_an_empty_place() -> None:
    bank = Bank(4, SHAPE)
    bank.add(numbered(0, 2), torch.tensor([0.1, 0.25]))
    bank.add(numbered(2, 1))
    assert bank.priorities[2] == 0.25


def test_chances_by_hand() -> None:
    bank = Bank(5, SHAPE)
    bank.add(numbered(0, 3), torch.tensor([0.0, 1.0, 9.0]))
    assert bank.chances(1.0).tolist() == pytest.approx([0, 0.1, 0.9])
    assert bank.chances(0.5).tolist() == pytest.approx([0, 0.25, 0.75])
    bank.add(numbered(3, 1), torch.tensor([0.0]))
    bank.prioritise(torch.tensor([1, 2]), torch.zeros(2))
    assert bank.chances(0.5).tolist() == [0.25] * 4, "where none has a priority, all are drawn alike"


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_draws_follow_the_chances(exponent: float) -> None:
    bank = Bank(8, SHAPE)
    bank.add(numbered(0, 5), torch.tensor([2.0, 0.0, 1.0, 4.0, 0.0]))
    drawn = bank.draw(40_000, torch.Generator().manual_seed(0), exponent)
    assert drawn.dtype == torch.int64
    weights = torch.tensor([2.0, 0.0, 1.0, 4.0, 0.0]) ** exponent * torch.tensor([1.0, 0, 1, 1, 0])
    counts = torch.bincount(drawn, minlength=5) / len(drawn)
    # Standard deviation of a share: at most sqrt(1/4 / 40,000) = 0.0025.
    torch.testing.assert_close(counts, weights / weights.sum(), atol=0.01, rtol=0)
    assert counts[1] == counts[4] == 0


def test_draws_without_an_exponent_do_not_see_priorities() -> None:
    plain, other = Bank(6, SHAPE), Bank(6, SHAPE)
    plain.add(numbered(0, 6))
    other.add(numbered(0, 6), torch.arange(6.0))
    draws = [bank.draw(50, torch.Generator().manual_seed(3)) for bank in (plain, other)]
    assert torch.equal(*draws)


def test_a_place_drawn_twice_takes_the_highest_priority() -> None:
    bank = Bank(4, SHAPE)
    bank.add(numbered(0, 4), torch.full((4,), 5.0))
    bank.prioritise(torch.tensor([2, 0, 2, 2]), torch.tensor([1.0, 3.0, 4.0, 2.0]))
    assert bank.priorities.tolist() == [3, 5, 4, 5]


@pytest.mark.parametrize("eviction", ["fifo", "priority"])
@pytest.mark.parametrize("added", [2, 5, 8, 13])
def test_state_round_trip_with_priorities(added: int, eviction: str) -> None:
    bank, other = Bank(5, SHAPE, eviction=eviction), Bank(5, SHAPE, eviction=eviction)
    priority = torch.Generator().manual_seed(added)
    for i in range(added):
        bank.add(numbered(i, 1), torch.rand(1, generator=priority))
    other.load_state_dict(copy.deepcopy(bank.state_dict()))
    for each in (bank, other):
        each.add(numbered(200, 3), torch.tensor([0.1, 0.9, 0.5]))
        each.add(numbered(210, 2), torch.tensor([0.2, 0.2]))
    assert torch.equal(bank.images[: len(bank)], other.images[: len(other)])
    assert torch.equal(bank.priorities[: len(bank)], other.priorities[: len(other)])
    draws = [each.draw(50, torch.Generator().manual_seed(0), 0.7) for each in (bank, other)]
    assert torch.equal(*draws)


def test_a_resumed_bank_knows_whose_turn_it_is_to_leave() -> None:
    bank, other = Bank(3, SHAPE, eviction="priority"), Bank(3, SHAPE, eviction="priority")
    bank.add(numbered(0, 3), torch.tensor([0.0, 1.0, 1.0]))
    bank.add(numbered(3, 1), torch.tensor([1.0]))  # in the place of image 0, and younger than 1 and 2
    other.load_state_dict(copy.deepcopy(bank.state_dict()))
    other.add(numbered(4, 1), torch.tensor([2.0]))
    assert values(other) == [2, 3, 4]


def test_a_pick_on_a_bound_is_the_next_images(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(3, SHAPE)
    bank.add(numbered(0, 3), torch.tensor([0.0, 1.0, 1.0]))
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.zeros(n))  # the least that can be drawn
    assert bank.draw(2, torch.Generator(), 1.0).tolist() == [1, 1], "an image without a chance was drawn"
