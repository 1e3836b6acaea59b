"""Mirror images: asked for or refused, and kept in what a condensed set says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import datafree
from datafree.config import TrainConfig
from datafree.data import draw_crops
from datafree.data.augmentation import parse_augmentation
from datafree.domain import Domain
from datafree.jobs import dry_run_condense, pretraining, real_images
from datafree.jobs.beginnings import student_source

FACING: dict[str, Any] = {"method": "random", "ipc": 1, "threads": 1}


@pytest.fixture
def colour(tmp_path: Path) -> str:
    """Three classes of colour images."""
    y = np.arange(24) % 3
    x = np.random.RandomState(0).randint(0, 256, (24, 9, 10, 3)).astype(np.uint8)
    np.savez(tmp_path / "colour.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return f"npz:{tmp_path / 'colour.npz'}"


@pytest.mark.parametrize(("flip", "kept"), [(None, True), (True, True), (False, False)])
def test_condense_keeps_it_in_the_sets_domain(flip: bool | None, kept: bool, colour: str, tmp_path: Path) -> None:
    plan = dry_run_condense(data=colour, flip=flip, **FACING)
    assert plan["domain"]["flip"] == plan["config"]["flip"] == kept
    datafree.condense(data=colour, flip=flip, out=tmp_path / "set", **FACING)
    assert datafree.load_condensed(tmp_path / "set").domain.flip is kept


@pytest.mark.slow
def test_evaluation_and_training_follow_the_set(colour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def parse(text: str, *, flip: bool = True, **rest: Any) -> Any:
        seen.append(flip)
        return parse_augmentation(text, flip=flip, **rest)

    monkeypatch.setattr("datafree.evaluation.networks.parse_augmentation", parse)
    sources = {}
    for flip in (True, False):
        out = tmp_path / str(flip)
        datafree.condense(data=colour, flip=flip, out=out, **FACING)
        seen.clear()
        datafree.evaluate_set(out, protocol="vico", networks=1, archs=["mlp"])
        assert set(seen) == {flip}, "of random images no figure is taken that mirrored ones have"
        config, _, _ = student_source(TrainConfig(source=f"condensed:{out}"), [])
        sources[flip] = config.flip
    assert sources == {True: None, False: False}


@pytest.mark.parametrize("job", [dry_run_condense, pretraining.dry_run_pretrain])
def test_labels_that_mirroring_changes_are_looked_after(job: Callable[..., Any], colour: str) -> None:
    own = FACING if job is dry_run_condense else {"arch": "mlp"}
    with pytest.raises(ValueError, match="--flip: mirror images of digits may have other labels; leave it out"):
        job(data="digits", flip=True, **own)
    assert not job(data="digits", **own)["domain"]["flip"]
    assert job(data=colour, **own)["domain"]["flip"]


def test_pretrain_mirrors_as_asked(colour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    plain = draw_crops

    def draw(*given: Any, flip: bool, **rest: Any) -> Any:
        seen.append(flip)
        return plain(*given, flip=flip, **rest)

    monkeypatch.setattr(pretraining, "draw_crops", draw)
    for flip in (None, True, False):
        datafree.pretrain(data=colour, arch="mlp", steps=1, flip=flip, out=tmp_path / str(flip), threads=1)
    assert seen == [True, True, False]


def test_figures_of_random_images_keep_their_key_where_nothing_was_asked() -> None:
    def key(flip: bool, channels: int, name: str = "mine") -> str:
        usual = (0.5,) * channels
        shape = (channels, 2, 2)
        domain = Domain(name=name, shape=shape, classes=2, mean=usual, std=usual, flip=flip)
        return real_images.fingerprint(datafree.Data(domain=domain, x_train=torch.zeros(1, *shape, dtype=torch.uint8)))

    assert key(True, 3) != key(False, 3)
    assert key(True, 3) == key(False, 3, "svhn"), "as without the rule: neither differs from its data's"
    assert key(True, 1, "fashion-mnist") != key(False, 1, "fashion-mnist")
    assert key(True, 1, "fashion-mnist") == key(False, 1), "nor do these"
