"""What a person's own data were taken for is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datafree.config import PretrainConfig
from datafree.jobs import dry_run_condense
from datafree.jobs.pretraining import dry_run_pretrain

CONDENSE: dict[str, Any] = {"method": "mean", "ipc": 1, "threads": 1}
PRETRAIN: dict[str, Any] = {"arch": "mlp", "steps": 1, "threads": 1}
CONSTANTS = "mean 0.485,0.456,0.406 / std 0.229,0.224,0.225"
Job = Callable[..., dict[str, Any]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five grey pictures of a class and five of another, one of them coloured, and three of a format that PIL lacks."""
    for label in ("ant", "bee"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(5):
            picture = Image.new("RGB" if (label, number) == ("bee", 3) else "L", (10, 8))
            picture.save(tmp_path / "photos" / label / f"{number}.png")
    for number in range(3):
        (tmp_path / "photos" / "ant" / f"{number}.heic").touch()
    (tmp_path / "photos" / "labels.csv").touch()
    (tmp_path / "photos" / ".hidden").touch()
    return tmp_path / "photos"


def said(plan: dict[str, Any]) -> list[str]:
    return [line for line in plan["choices"] if line.startswith("data: ")]


@pytest.mark.parametrize(
    ("job", "options", "held"),
    [(dry_run_condense, CONDENSE, "8 training"), (dry_run_pretrain, PRETRAIN, "8 training and 2 test")],
)
def test_a_folder_is_described_and_what_is_left_out_is_named(
    job: Job, options: dict[str, Any], held: str, photos: Path
) -> None:
    plan = job(data=f"imagefolder:{photos}", **options)
    assert said(plan) == [
        f"data: {held} images of 2 classes, 3x8x10; normalisation {CONSTANTS}; may be mirrored; every fifth of a class "
        "is for tests",
        "data: 4 other files are left out: ant/0.heic, ant/1.heic, ant/2.heic, ...",
    ]
    assert {name: plan["config"][name] for name in ("mean", "std", "flip")} == {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "flip": True,
    }
    given = job(data=f"imagefolder:{photos}", flip=False, mean=(0, 0, 0), std=(1, 1, 1), **options)
    assert "normalisation mean 0,0,0 / std 1,1,1; not mirrored; every" in said(given)[0]


@pytest.mark.parametrize(("job", "options"), [(dry_run_condense, CONDENSE), (dry_run_pretrain, PRETRAIN)])
def test_a_file_is_described_and_named_data_are_not(job: Job, options: dict[str, Any], tmp_path: Path) -> None:
    x, y = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y)
    assert said(job(data=f"npz:{tmp_path / 'own.npz'}", **options)) == [
        "data: 6 training images of 3 classes, 1x8x8; normalisation mean 0.449 / std 0.226; not mirrored"
    ]
    assert not said(job(data="digits", **options))


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_of_a_file_is_named(split: str, tmp_path: Path) -> None:
    x, y = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 3
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, f"x_{split}": x[:0], f"y_{split}": y[:0]}
    np.savez(tmp_path / "own.npz", **arrays)  # type: ignore[arg-type]
    for job, options in ((dry_run_condense, CONDENSE), (dry_run_pretrain, PRETRAIN)):
        with pytest.raises(
            ValueError, match=f"_{split} is empty: save at least one image and its label, or leave both"
        ):
            job(data=f"npz:{tmp_path / 'own.npz'}", **options)


def test_a_split_that_is_there_is_not_made(photos: Path) -> None:
    (photos.parent / "own").mkdir()
    photos.rename(photos.parent / "own" / "train")
    lines = said(dry_run_condense(data=f"imagefolder:{photos.parent / 'own'}", **CONDENSE))
    assert lines[0].endswith("; may be mirrored")
    assert lines[1].startswith("data: 4 other files are left out: train/ant/0.heic, ")


@pytest.mark.parametrize("augment", [True, False])
def test_what_run_json_holds_is_taken_again(augment: bool, photos: Path) -> None:
    held = dry_run_pretrain(data=f"imagefolder:{photos}", augment=augment, **PRETRAIN)["config"]
    assert held["flip"] is augment
    assert dry_run_pretrain(PretrainConfig(**held))["config"] == held
