"""What the student is served: of a last batch its first images, and in several processes what one would be served."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.parallel import rank, shard
from datafree.synthesis.mad import MAD, MADConfig, spread
from datafree.synthesis.setting import Setting
from datafree.synthesis.store import Store

Toy = Callable[..., Setting]
InTwo = Callable[[Callable[[], Any]], list[Any]]
MADE = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def never(n: int) -> Tensor:
    raise AssertionError(f"{n} fresh images were asked for")


def white(n: int) -> Tensor:
    return shard(torch.ones(n, 3, 8, 8))


@pytest.mark.parametrize("n", [2, 4, 8])
def test_of_a_last_batch_the_first_are_served(toy: Toy, n: int) -> None:
    store = Store(toy(), "last", 1)
    store.keep(MADE)
    for _ in range(2):
        assert torch.equal(store.sample(n, never).images, MADE[:n])
    assert store.made == 8


def test_more_than_the_last_batch_holds_is_made_afresh(toy: Toy) -> None:
    store = Store(toy(), "last", 1)
    assert torch.equal(store.sample(2, white).images, torch.ones(2, 3, 8, 8))
    store.keep(MADE)
    assert torch.equal(store.sample(10, white).images, torch.ones(10, 3, 8, 8))
    assert store.made == 2 + 8 + 10


@pytest.mark.parametrize("n", [4, 8])
def test_two_processes_are_served_the_last_batch_of_one(toy: Toy, in_two: InTwo, n: int) -> None:
    at = toy()

    def work() -> Tensor:
        store = Store(at, "last", 1)
        store.keep(shard(MADE))
        assert store.made == 8, "each counts what all have made"
        return store.sample(n, never).images

    assert torch.equal(torch.cat(in_two(work)), MADE[:n])


def test_two_processes_that_go_on_are_served_what_they_were(toy: Toy, in_two: InTwo) -> None:
    """Rank 0 alone saves, and no other takes part in it; all load what it saved."""
    at = toy()

    def save() -> Any:
        store = Store(at, "last", 1)
        store.keep(shard(MADE))
        return copy.deepcopy(store.state_dict()) if rank() == 0 else None

    state = in_two(save)[0]

    def go_on() -> Tensor:
        store = Store(at, "last", 1)
        store.load_state_dict(state)
        return store.sample(8, never).images

    assert torch.equal(torch.cat(in_two(go_on)), MADE)
    assert torch.equal(go_on(), MADE), "one process goes on with what two saved"


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_two_processes_are_served_the_last_batches_of_mad(toy: Toy, in_two: InTwo, share: float) -> None:
    config, at = MADConfig(latent=6, generator_width=4, feed="last", copy_share=share), toy()

    def work() -> Tensor:
        with torch.random.fork_rng():
            method = MAD(at, config)
        method.store.keep(shard(MADE))
        method.past.keep(shard(1 - MADE))
        return method.sample(8).images

    wanted = work()
    old = round(8 * share)
    assert torch.equal(wanted, spread(MADE[: 8 - old], 1 - MADE[:old]))
    assert torch.equal(torch.cat(in_two(work)), wanted)


def test_the_bank_is_told_what_matters_and_evicts_as_it_was_asked(toy: Toy) -> None:
    store = Store(toy(), "bank", 2, "priority")
    store.keep(MADE[:2], torch.tensor([5.0, 1.0]))
    store.keep(MADE[2:3], torch.tensor([3.0]))
    assert store.bank is not None
    held = store.bank.images.float() / 255
    assert bool((held[0] - MADE[0]).abs().max() <= 0.5 / 255 + 1e-6), "the more important of the first two stays"
    assert bool((held[1] - MADE[2]).abs().max() <= 0.5 / 255 + 1e-6)


@pytest.mark.parametrize("feed", ["bank", "last", "fresh"])
def test_images_made_are_counted_on_and_kept_without_their_graph(toy: Toy, feed: str) -> None:
    store, other = Store(toy(), feed, 4), Store(toy(), feed, 4)
    store.keep(MADE.clone().requires_grad_() * 1)
    assert store.last is not None
    assert store.last.grad_fn is None
    other.load_state_dict(copy.deepcopy(store.state_dict()))
    other.keep(MADE[:3])
    assert other.made == 11
