"""Training on a small set: against a plain loop, alone and in company, and on real digits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.data import get_split, load_data
from datafree.data.augmentation import apply, draw, parse_augmentation
from datafree.data.mixing import Mixed, cutmix, random_resized_crop, shuffle_patches
from datafree.data.tensors import to_float
from datafree.domain import DOMAINS
from datafree.evaluation.accuracy import evaluate
from datafree.evaluation.networks import PART_PIXELS, forward_of, fusible, part_size, train_network, train_networks
from datafree.evaluation.protocols import DSA, Protocol
from datafree.models.convnet import convnet
from datafree.models.mlp import MLP
from datafree.teacher import Normalised
from datafree.training import TermError

DIGITS = DOMAINS["digits"]
SHORT = Protocol(epochs=4, batch_size=8, schedule="restart", lr=0.1, augmentation=DSA)


def make(dtype: torch.dtype = torch.float64) -> nn.Module:
    network = Normalised(convnet(shape=DIGITS.shape, classes=10, depth=2, width=8), DIGITS.mean, DIGITS.std)
    return network.to(dtype)


def make_mlp() -> nn.Module:
    return Normalised(MLP(inputs=64, classes=10, width=16), DIGITS.mean, DIGITS.std)


def a_set(images: int = 20) -> tuple[Tensor, Tensor]:
    return torch.rand(images, 1, 8, 8, dtype=torch.float64), torch.arange(images) % 10


def flat(network: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("build", [make, make_mlp], ids=["fused", "plain"])
def test_the_release_loop_step_by_step(build: type) -> None:
    """The field's loop written down plainly: batches of 8, 8 and 4, and a new optimiser after pass 4 // 2 + 1."""
    images, labels = a_set()
    if build is make_mlp:
        images = images.float()
    seed = int(torch.randint(2**62, (1,), generator=generator()))
    torch.manual_seed(seed)
    wanted, rng, lr = build(), generator(seed), 0.1
    augmentation = parse_augmentation(DSA, flip=False, mean=DIGITS.mean, std=DIGITS.std)
    optimizer = torch.optim.SGD(wanted.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(4 + 1):
        order = torch.randperm(20, generator=rng)
        for start in (0, 8, 16):
            rows = order[start : start + 8]
            batch = apply(images[rows], draw(augmentation, len(rows), rng), augmentation)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(wanted(batch), labels[rows]))
            optimizer.step()
        if epoch == 4 // 2 + 1:
            lr *= 0.1
            optimizer = torch.optim.SGD(wanted.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    (given,) = train_networks(build, images, labels, SHORT, DIGITS, generator(), count=1)
    assert not given.training
    tolerance = 1e-8 if build is make else 1e-5
    torch.testing.assert_close(flat(given), flat(wanted), rtol=tolerance, atol=tolerance / 10)


def test_in_company_and_alone() -> None:
    images, labels = a_set()
    before = torch.get_rng_state()
    three = train_networks(make, images, labels, SHORT, DIGITS, generator(), count=3)
    assert torch.equal(torch.get_rng_state(), before)
    rng = generator()
    for network in three:
        (alone,) = train_networks(make, images, labels, SHORT, DIGITS, rng, count=1)
        assert torch.equal(flat(alone), flat(network))
    assert not torch.equal(flat(three[0]), flat(three[1]))
    assert len(train_networks(make, images, labels, replace(SHORT, networks=2), DIGITS, generator())) == 2


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = a_set()
    protocol = replace(SHORT, batch_size=256, cutmix=1.0)
    train = partial(train_network, make, images, labels, protocol, DIGITS, seed=1)
    whole = train()
    assert part_size(images) == len(images) < PART_PIXELS // 64
    monkeypatch.setattr("datafree.evaluation.networks.PART_PIXELS", 3 * 64)
    assert part_size(images) == 3
    parted = train()
    torch.testing.assert_close(flat(parted), flat(whole), rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(forward_of(parted)(images), parted(images), rtol=1e-9, atol=1e-10)


def test_class_numbers_are_probabilities() -> None:
    images, labels = a_set()
    train = partial(train_network, make, images, domain=DIGITS, seed=1)
    numbers = train(labels, replace(SHORT, cutmix=0.5))
    soft = F.one_hot(labels, 10).double()
    torch.testing.assert_close(flat(train(soft, replace(SHORT, cutmix=0.5))), flat(numbers), rtol=1e-8, atol=1e-9)
    smooth = 0.6 * soft + 0.04
    assert torch.equal(flat(train(smooth, replace(SHORT, labels="hard"))), flat(train(labels, SHORT)))
    assert not torch.allclose(flat(train(smooth, SHORT)), flat(train(labels, SHORT)))


def test_a_teachers_labels() -> None:
    # A teacher that is certain of class 3 whatever it is shown; it sees the images as they are trained on.
    images, labels = a_set()
    seen: list[Tensor] = []

    def teacher(batch: Tensor) -> Tensor:
        seen.append(batch)
        return 1e4 * F.one_hot(torch.full((len(batch),), 3), 10).float()

    protocol = replace(SHORT, labels="teacher", temperature=20.0, cutmix=1.0, patches=2, smallest_crop=0.5)
    taught = train_network(make, images, labels, protocol, DIGITS, seed=1, teacher=teacher)
    assert bool((taught(images).argmax(1) == 3).all())
    assert [len(batch) for batch in seen] == [8, 8, 4] * 5
    with pytest.raises(ValueError, match="give a teacher"):
        train_networks(make, images, labels, protocol, DIGITS, generator())


@pytest.mark.parametrize("labels", ["own", "teacher"])
def test_a_step_on_mixed_images(labels: Literal["own", "teacher"]) -> None:
    """Written down plainly: shuffled strips, crops, augmentation, CutMix, and labels by area or at a temperature."""
    images, numbers = a_set()
    protocol = Protocol(
        epochs=1, batch_size=20, lr=0.1, momentum=0.0, weight_decay=0.0, cutmix=1.0, patches=2, smallest_crop=0.5,
        labels=labels, temperature=3.0 if labels == "teacher" else 1.0, augmentation="color_crop", mode="all",
    )  # fmt: skip
    teacher = make()
    given = train_network(make, images, numbers, protocol, DIGITS, seed=1, teacher=teacher)

    torch.manual_seed(1)
    wanted, rng = make(), generator(1)
    rows = torch.randperm(20, generator=rng)
    batch = random_resized_crop(shuffle_patches(images[rows], 2, rng), 0.5, rng)
    augmentation = parse_augmentation("color_crop", mode="all", mean=DIGITS.mean, std=DIGITS.std)
    batch = apply(batch, draw(augmentation, 20, rng), augmentation)
    torch.rand((), generator=rng)  # whether the batch is mixed
    batch, order, share = cutmix(batch, rng)
    own = F.one_hot(numbers[rows], 10).double()
    soft = share * own + (1 - share) * own[order] if labels == "own" else (teacher(batch) / 3).softmax(1)
    logits = wanted(batch) / (1 if labels == "own" else 3)
    torch.autograd.backward(-(soft.detach() * logits.log_softmax(1)).sum(1).mean())
    for after, before in zip(given.parameters(), wanted.parameters(), strict=True):
        assert before.grad is not None
        torch.testing.assert_close(after, before - 0.1 * before.grad, rtol=1e-5, atol=1e-7)


def test_a_part_of_the_batches_is_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed: list[int] = []

    def counted(images: Tensor, rng: torch.Generator) -> Mixed:
        mixed.append(len(images))
        return cutmix(images, rng)

    monkeypatch.setattr("datafree.evaluation.networks.cutmix", counted)
    images, labels = a_set()
    train_network(make_mlp, images.float(), labels, Protocol(epochs=60, cutmix=0.25), DIGITS, seed=1)
    assert 5 <= len(mixed) <= 25  # of 60 batches a quarter, 15, and three standard deviations of 3.4


def test_the_sets_own_rate_replaces_the_protocols() -> None:
    images, labels = a_set()
    train = partial(train_network, make, images, labels, domain=DIGITS, seed=1)
    assert torch.equal(flat(train(SHORT, lr=0.02)), flat(train(replace(SHORT, lr=0.02))))


def test_decoupled_decay_spares_vectors() -> None:
    # One step at a rate too small to matter: what moves is decay, rate x decay = 0.1 of a matrix and none of a vector.
    images, labels = a_set()
    protocol = Protocol(epochs=1, optimizer="adamw", lr=1e-6, weight_decay=1e5)
    after = train_network(make, images, labels, protocol, DIGITS, seed=1)
    torch.manual_seed(1)
    for old, new in zip(make().parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old * (0.9 if old.dim() > 1 else 1), rtol=0, atol=2e-6)


def test_which_networks_are_quick() -> None:
    assert fusible(make())
    assert fusible(convnet(shape=(3, 32, 32), classes=2))
    assert not fusible(make_mlp())
    assert not fusible(nn.Linear(2, 2))


def test_what_cannot_be_trained() -> None:
    images, labels = a_set()
    with pytest.raises(ValueError, match="20 images and 19 labels"):
        train_networks(make, images, labels[:19], SHORT, DIGITS, generator())
    with pytest.raises(TermError, match=r"the loss became (nan|inf) in epoch 0: give a lower rate"):
        train_networks(make, images, labels, SHORT, DIGITS, generator(), lr=1e200)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_digits_are_learned(precision: str) -> None:
    data = load_data("digits")
    (x, y), (x_test, y_test) = get_split(data, "train"), get_split(data, "test")
    rows = torch.cat([(y == label).nonzero().flatten()[:10] for label in range(10)])
    protocol = Protocol(epochs=40, batch_size=50, lr=0.05, schedule="cosine", augmentation=DSA)
    build = partial(make, torch.float32)
    (network,) = train_networks(build, x[rows], y[rows], protocol, DIGITS, generator(), count=1, precision=precision)
    accuracy = evaluate(forward_of(network, precision), x_test, y_test).accuracy
    assert accuracy > 0.7
    with torch.no_grad():
        images = to_float(x_test)
        torch.testing.assert_close(forward_of(network)(images), network(images), rtol=1e-4, atol=1e-4)
