"""MAD: the slow copy by hand, whose images the student is shown, and dfq where there is no copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.synthesis.dfq import DFQ, DFQConfig
from datafree.synthesis.mad import MAD, MADConfig, spread
from datafree.synthesis.setting import Setting

Toy = Callable[..., Setting]
SMALL: dict[str, Any] = {"latent": 6, "generator_width": 4, "bank": 64, "generator_steps": 2}


def weights(method: MAD) -> list[Tensor]:
    return [p.detach().clone() for p in method.imaging.generator.parameters()]


def copies(method: MAD) -> list[Tensor]:
    return [method.copy[name].clone() for name, _ in method.imaging.generator.named_parameters()]


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_copy_by_hand(toy: Toy, momentum: float) -> None:
    method = MAD(toy(), MADConfig(**{**SMALL, "generator_steps": 1}, reset=0, copy_momentum=momentum))
    wanted = weights(method)
    assert equal(copies(method), wanted)
    for _ in range(3):
        method.update()
        wanted = [momentum * a + (1 - momentum) * b for a, b in zip(wanted, weights(method), strict=True)]
        for mine, want in zip(copies(method), wanted, strict=True):
            torch.testing.assert_close(mine, want)


def test_the_copys_images_are_those_of_a_generator_with_its_weights(toy: Toy) -> None:
    method = MAD(toy(), MADConfig(**SMALL, reset=0, copy_momentum=0.5))
    for _ in range(3):
        method.update()
    other = MAD(toy(), MADConfig(**SMALL)).imaging.generator.train()
    other.load_state_dict(method.copy)
    before = {name: t.clone() for name, t in method.imaging.generator.state_dict().items()}
    state = method.setting.rng.get_state()
    made = method._remade(8)
    method.setting.rng.set_state(state)
    with torch.no_grad():
        assert torch.equal(made, other(method.imaging.latents(8)))
    after = method.imaging.generator.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in before.items()), "the generator itself was changed"


def held_in(image: Tensor, bank: Any) -> bool:
    return bool(((bank.images[: len(bank)].float() / 255 - image).abs().amax((1, 2, 3)) < 1e-6).any())


@pytest.mark.parametrize(("share", "old"), [(0.5, [1, 3, 5, 7]), (0.25, [3, 7]), (0.2, [7])])
def test_the_student_is_shown_images_of_both(toy: Toy, share: float, old: list[int]) -> None:
    method = MAD(toy(), MADConfig(**SMALL, copy_share=share))
    for _ in range(2):
        method.update()
    images = method.sample(8).images
    assert [i for i, image in enumerate(images) if held_in(image, method.past.bank)] == old
    assert [i for i, image in enumerate(images) if not held_in(image, method.store.bank)] == old
    assert (method.store.made, method.past.made, method.made) == (32, 32, 64)


@pytest.mark.parametrize(("new", "old", "size"), [(6, 6, 2), (6, 6, 3), (9, 3, 3), (4, 8, 4)])
def test_slices_of_a_batch_are_batches_of_slices(new: int, old: int, size: int) -> None:
    whole = spread(torch.arange(new), -1 - torch.arange(old))
    assert (whole[whole >= 0] == torch.arange(new)).all(), "each in its order"
    parts = zip(torch.arange(new).chunk(size), (-1 - torch.arange(old)).chunk(size), strict=True)
    assert torch.equal(torch.cat([spread(a, b) for a, b in parts]), whole)


def test_last_hands_over_the_last_of_both(toy: Toy) -> None:
    method = MAD(toy(), MADConfig(**SMALL, feed="last"))
    method.update()
    assert method.store.last is not None
    assert method.past.last is not None
    images = method.sample(8).images
    assert torch.equal(images[::2], method.store.last[:4])
    assert torch.equal(images[1::2], method.past.last[:4])
    assert method.made == 32


@pytest.mark.parametrize("warming", [False, True])
def test_without_a_share_for_the_copy_it_is_dfq(toy: Toy, warming: bool) -> None:
    mad, dfq = MAD(toy(), MADConfig(**SMALL, copy_share=0.0)), DFQ(toy(), DFQConfig(**SMALL))
    mad.setting.pace.warming = dfq.setting.pace.warming = warming
    for _ in range(2):
        assert mad.update() == pytest.approx(dfq.update(), rel=1e-6)
        torch.testing.assert_close(mad.sample(8).images, dfq.sample(8).images)
    assert mad.past.bank is None


def test_a_copy_outlives_its_generator_until_the_next_has_grown(toy: Toy) -> None:
    method = MAD(toy(), MADConfig(**{**SMALL, "generator_steps": 1}, reset=4, copy_momentum=0.9))
    seen = []
    for _ in range(8):
        method.update()
        seen.append(copies(method))
    # Rounds 5 and 6 are the youth of the second generator; round 7 starts from its weights.
    assert not equal(seen[2], seen[3])
    assert equal(seen[3], seen[4])
    assert equal(seen[3], seen[5])
    near = [(a - b).abs().max().item() for a, b in zip(seen[6], weights(method), strict=True)]
    far = [(a - b).abs().max().item() for a, b in zip(seen[5], weights(method), strict=True)]
    assert max(near) < 0.2 * max(far)


def test_before_the_student_begins_nothing_is_fought_over(toy: Toy) -> None:
    at = toy()
    at.pace.warming = True
    assert "adv" not in MAD(at, MADConfig(**SMALL)).update()


def test_what_the_copy_is_and_has_made_is_kept_with_the_run(toy: Toy) -> None:
    method, other = MAD(toy(), MADConfig(**SMALL)), MAD(toy(), MADConfig(**SMALL))
    method.update()
    assert not equal(copies(method), copies(other))
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert equal(copies(method), copies(other))
    assert other.past.made == method.past.made == 16
    assert other.past.bank is not None
    assert method.past.bank is not None
    assert len(other.past.bank) == 16
    assert torch.equal(other.past.bank.images[:16], method.past.bank.images[:16])


@pytest.mark.parametrize("feed", ["bank", "fresh", "last"])
def test_the_copy_may_make_all_of_the_students_images(toy: Toy, feed: str) -> None:
    values: dict[str, Any] = {**SMALL, "copy_share": 1.0, "feed": feed, "synthesis_batch": 8}
    method = MAD(toy(batch_size=8), MADConfig(**values))
    for _ in range(2):
        method.update()
    made = method.store.made
    images = method.sample(8).images
    assert images.shape == (8, *method.setting.domain.shape)
    assert method.store.made == made, "the generator itself makes none"
    if feed == "last":
        assert method.past.last is not None
        assert torch.equal(images, method.past.last)
