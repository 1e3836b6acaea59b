"""What a flag of `condense` says reaches the loop, and the last iterate is what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import datafree
from datafree.domain import make_domain

SHORT: dict[str, Any] = {
    "method": "dm", "ipc": 1, "steps": 4, "arch": "convnet3", "nets": "trained", "net_pool": 2, "net_steps": 2,
    "real_batch": 4, "augmentation": "color_crop_flip", "threads": 1,
}  # fmt: skip

ONE: dict[str, Any] = {"net_pool": None, "net_steps": None}  # where each network is new


@pytest.fixture(scope="module")
def colour() -> datafree.Data:
    """Two classes of coloured images that may be mirrored."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (40, 3, 8, 8), generator=rng, dtype=torch.uint8)
    domain = make_domain(shape=(3, 8, 8), classes=2, flip=True)
    return datafree.Data(
        domain=domain, x_train=x, y_train=torch.arange(40) % 2, x_test=x[:8], y_test=torch.arange(8) % 2
    )


def made(data: datafree.Data, folder: Path, **options: Any) -> tuple[Tensor, Tensor]:
    """The set's images as they are seen, and its labels."""
    return datafree.condense(data=data, out=folder, **{**SHORT, **options}).set.decoded()


@pytest.fixture(scope="module")
def usual(colour: datafree.Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    return made(colour, tmp_path_factory.mktemp("wiring") / "usual")


def test_nothing_else_changes_a_set(usual: tuple[Tensor, Tensor], colour: datafree.Data, tmp_path: Path) -> None:
    """How often a run is saved does not."""
    again = made(colour, tmp_path / "run", checkpoint_every=1e-9)
    assert all(torch.equal(one, two) for one, two in zip(usual, again, strict=True))


@pytest.mark.parametrize(
    "option",
    [
        {"factor": 2}, {"init": "noise"}, {"init": "herding"}, {"augmentation": "none"}, {"augmentation": "color"},
        {"augmentation_mode": "all"}, {"flip": False}, {"nets": "fresh", **ONE}, {"nets": "reused", "net_pool": None},
        {"net_pool": 1},
        {"net_steps": 1}, {"zca": True}, {"optimizer": "adam"}, {"optimizer": "adamw"}, {"image_lr": 0.2},
        {"image_momentum": 0.1}, {"schedule": "cosine"}, {"image_ema": 0.9}, {"steps": 5}, {"real_batch": 8},
        {"arch": "resnet8"}, {"precision": "bf16"}, {"seed": 1}, {"mean": (0.1, 0.2, 0.3)}, {"std": (0.1, 0.2, 0.3)},
        {"validation": True}, {"ipc": 2}, {"clip": "step", "image_lr": 1000.0},
    ],
    ids=lambda option: "-".join(map(str, next(iter(option.items())))),
)  # fmt: skip
def test_a_flag_changes_the_set(
    option: dict[str, Any], usual: tuple[Tensor, Tensor], colour: datafree.Data, tmp_path: Path
) -> None:
    """And two runs without it make the same: `test_nothing_else_changes_a_set`."""
    before, after = usual[0], made(colour, tmp_path / "run", **option)[0]
    assert before.shape != after.shape or not torch.equal(before, after)


def test_labels_are_learned_where_that_is_asked_for(colour: datafree.Data, tmp_path: Path) -> None:
    """With their own rate; by a method whose terms depend on them."""
    options = {"method": "dc", "nets": "fresh", **ONE, "labels": "learned"}
    sets = [made(colour, tmp_path / str(rate), **options, label_lr=rate) for rate in (0.0, 1.0)]
    assert not torch.equal(sets[0][1], sets[1][1])
