"""The published schedules, pass by pass."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch import nn, optim

from datafree.condensation.rded import RDED, RDEDConfig
from datafree.data.augmentation import parse_augmentation
from datafree.domain import make_domain
from datafree.evaluation.protocols import PROTOCOLS, Protocol, arch_for, for_tiles, named_protocol, tiles_for


def test_restart_as_the_release_counts_it() -> None:
    # `for ep in range(Epoch + 1)`; after the pass ep == Epoch // 2 + 1 the rate is a tenth.
    for epochs in (3, 4, 300, 1000):
        protocol = Protocol(epochs=epochs, schedule="restart")
        rate, wanted = 1.0, []
        for epoch in range(epochs + 1):
            wanted.append(rate)
            if epoch == epochs // 2 + 1:
                rate *= 0.1
                assert protocol.restarts(10) == epoch
        assert [protocol.rate(epoch, 10) for epoch in range(protocol.passes(10))] == wanted


@pytest.mark.parametrize("epochs", [30, 300, 1000])
def test_steps_as_torch_makes_them(epochs: int) -> None:
    protocol = Protocol(epochs=epochs, schedule="steps", milestones=(2 / 3, 5 / 6), decay=0.2)
    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    schedule = optim.lr_scheduler.MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], gamma=0.2)
    for epoch in range(epochs):
        assert protocol.rate(epoch, 1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_cosines() -> None:
    whole, half = (Protocol(epochs=300, schedule=name) for name in ("cosine", "half-cosine"))
    assert whole.rate(0, 1) == half.rate(0, 1) == 1
    assert whole.rate(150, 1) == pytest.approx(0.5)
    assert half.rate(150, 1) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert half.rate(299, 1) == pytest.approx(0.5, abs=0.01)


def test_steps_of_the_optimiser_whatever_the_sets_size() -> None:
    protocol = Protocol(steps=1000, batch_size=128)
    assert protocol.passes(100) == 1000
    assert protocol.passes(129) == 500
    assert protocol.passes(500) == 250
    assert protocol.passes(1_000_000) == 1


def test_every_protocol_can_be_used() -> None:
    for name, protocol in PROTOCOLS.items():
        assert named_protocol(name) is protocol
        assert protocol.note
        assert parse_augmentation(protocol.augmentation, mode=protocol.mode)
        if name != "rded":
            assert protocol.networks >= 5


def test_protocols_have_the_releases_constants() -> None:
    """The defaults of the releases' command lines, which train by SGD of momentum 0.9 unless said.

    DatasetCondensation: `--epoch_eval_train` 300, 1000 with augmentation; `--lr_net` 0.01, `--batch_train` 256, weight
    decay 0.0005. IDC: 1000 epochs below 50 images a class, batches of 64, MultiStepLR at 2/3 and 5/6 by 0.2, CutMix by
    half. RDED: AdamW 0.001 with 0.01, 300 epochs, batches of 100, temperature 20. DD-Ranking: 300 epochs.
    """
    common = (0.01, 0.9, 5e-4)
    wanted = {
        "vico": (1000, 256, "sgd", *common, "restart", 0.1, 0.0, "own", 1.0),
        "vico-noaug": (300, 256, "sgd", *common, "restart", 0.1, 0.0, "own", 1.0),
        "mtt": (1000, 256, "sgd", *common, "restart", 0.1, 0.0, "own", 1.0),
        "idc": (1000, 64, "sgd", *common, "steps", 0.2, 0.5, "own", 1.0),
        "rded": (300, 100, "adamw", 0.001, 0.9, 0.01, "half-cosine", 0.1, 1.0, "teacher", 20.0),
        "ddranking": (300, 256, "sgd", *common, "steps", 0.1, 1.0, "own", 1.0),
    }
    names = ["epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule", "decay", "cutmix"]
    names += ["labels", "temperature"]
    own = {"default"}
    assert {n: tuple(getattr(p, f) for f in names) for n, p in PROTOCOLS.items() if n not in own} == wanted
    assert PROTOCOLS["idc"].milestones == pytest.approx((2 / 3, 5 / 6))
    assert PROTOCOLS["ddranking"].milestones == (0.5,)
    # Ours, by which all tables' figures were made unless they say another.
    ours = PROTOCOLS["default"]
    assert (ours.steps, ours.batch_size, ours.lr, ours.schedule) == (1000, 128, 0.02, "cosine")
    assert (ours.networks, ours.momentum, ours.weight_decay) == (5, 0.9, 5e-4)


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_rded_follows_the_tiles_of_the_images(tiles: int) -> None:
    """Release: `--factor` f shuffles f strips a side and crops with scale=(1 / f, 1); f = 1 leaves images whole."""
    protocol = for_tiles(PROTOCOLS["rded"], tiles)
    assert protocol.patches == tiles
    assert protocol.smallest_crop == pytest.approx(1 / tiles)
    assert replace(protocol, patches=1, smallest_crop=1.0) == PROTOCOLS["rded"]


def test_other_protocols_know_no_tiles() -> None:
    others = {name: protocol for name, protocol in PROTOCOLS.items() if name != "rded"}
    assert {name: for_tiles(protocol, 2) for name, protocol in others.items()} == others


def test_the_tiles_where_nothing_is_said_are_those_that_rded_makes() -> None:
    for side in (8, 32, 63, 64, 224):
        domain = make_domain(shape=(3, side, side), classes=2)
        made = RDED(SimpleNamespace(domain=domain), RDEDConfig())  # type: ignore[arg-type]
        assert tiles_for(domain) == made.tiles


def test_notes_name_what_differs_from_the_release() -> None:
    assert "batch norm" in PROTOCOLS["rded"].note
    for name in ("MNIST", "SVHN", "CIFAR-100"):
        assert name in PROTOCOLS["idc"].note


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^unknown protocol 'Vicco'; did you mean 'vico'\?$"):
        named_protocol("Vicco")
    with pytest.raises(ValueError, match="either epochs or steps"):
        Protocol()
    with pytest.raises(ValueError, match="the protocol's lr is 0"):
        Protocol(epochs=1, lr=0)
    for name, word in (("optimizer", "adam"), ("schedule", "Cosine"), ("labels", "soft"), ("mode", "each")):
        with pytest.raises(ValueError, match=f"^the protocol's {name} is '{word}': take .* or "):
            Protocol(epochs=1, **{name: word})  # type: ignore[arg-type]


def test_the_convnet_of_the_image_size() -> None:
    names = {side: arch_for(make_domain(shape=(3, side, side), classes=2)) for side in (8, 32, 64, 128, 224)}
    assert names == {8: "convnet3", 32: "convnet3", 64: "convnet4", 128: "convnet5", 224: "convnet5"}
