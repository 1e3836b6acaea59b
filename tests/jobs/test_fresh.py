"""A run that fails before its first step: the corrected command finds its folder as the failed one did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datafree
from datafree.condensation import load_method
from datafree.jobs import pretraining
from datafree.training import TermError

TINY: dict[str, Any] = {"data": "digits", "ipc": 2, "arch": "convnet3", "threads": 1, "steps": 2}
WRONG: dict[str, Any] = {**TINY, "method": "sre2l", "teacher": "mlp"}  # it has no batch norm
RIGHT: dict[str, Any] = {**TINY, "method": "dm", "real_batch": 4}
OTHERS = {"notes.txt": b"mine", "images/cat.png": b"mine", "tensorboard/old": b"mine"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_error_in_a_methods_constructor_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(ValueError, match="no batch norm"):
        datafree.condense(out=out, **WRONG)
    assert not out.exists()
    datafree.condense(out=out, **RIGHT)


def test_a_folder_that_was_there_stays_with_all_that_it_held(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no batch norm"):
        datafree.condense(out=tmp_path, **WRONG)
    assert list(tmp_path.iterdir()) == []
    for name, text in OTHERS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match="no batch norm"):
        datafree.condense(out=tmp_path, force=True, **WRONG)
    assert OTHERS.items() <= contents(tmp_path).items()
    assert not (tmp_path / "run.json").exists()


def test_folders_with_a_number_are_not_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="no batch norm"):
            datafree.condense(**WRONG)
    assert list((tmp_path / "runs").iterdir()) == []


def failing(step: int, error: BaseException) -> Callable[[Mapping[str, Any]], None]:
    def show(row: Mapping[str, Any]) -> None:
        if row["step"] >= step:
            raise error

    return show


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_what_was_measured_stays(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.jobs.condense_session.LOG_SECONDS", 0.0)
    with pytest.raises(type(error)):
        datafree.condense(out=tmp_path / "set", show=failing(1, error), **RIGHT)
    assert {"run.json", "metrics.jsonl"} <= {path.name for path in (tmp_path / "set").iterdir()}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TermError("a term became nan")])
def test_a_run_that_was_stopped_or_went_astray_stays(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terms(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(load_method("dm"), "terms", terms)
    with pytest.raises(type(error)):
        datafree.condense(out=tmp_path / "set", **RIGHT)
    assert (tmp_path / "set" / "run.json").exists()


def test_a_run_that_is_stopped_before_there_is_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: Any, path: Path, *__: Any) -> str:
        path.write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr("datafree.jobs.training.embedded_teacher", stopped)
    monkeypatch.chdir(tmp_path)
    for out in ("student", None):
        with pytest.raises(KeyboardInterrupt):
            datafree.train(method="noise", steps=1, out=out, threads=1)
    assert [str(path) for path in Path().rglob("*")] == ["runs"]


def test_a_run_that_resumes_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datafree.jobs import resume_condense

    def terms(*_: Any) -> Any:
        raise KeyboardInterrupt

    def wrong(*_: Any) -> Any:
        raise ValueError("no good")

    with monkeypatch.context() as patch:
        patch.setattr(load_method("dm"), "terms", terms)
        with pytest.raises(KeyboardInterrupt):
            datafree.condense(out=tmp_path / "set", **RIGHT)
        patch.setattr(load_method("dm"), "terms", wrong)
        with pytest.raises(ValueError, match="no good"):
            resume_condense(tmp_path / "set")
    assert (tmp_path / "set" / "run.json").exists()
    assert resume_condense(tmp_path / "set").metrics["steps"] == 2


def test_pretraining_and_training_do_likewise(
    plain_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any, **__: Any) -> Any:
        raise ValueError("no good")

    monkeypatch.setattr(pretraining.Labelled, "terms", step)
    with pytest.raises(ValueError, match="no good"):
        datafree.pretrain(out=tmp_path / "net", data="digits", arch="mlp", steps=2)
    monkeypatch.setattr("datafree.jobs.training.distill", step)
    with pytest.raises(ValueError, match="no good"):
        datafree.train(teacher=plain_teacher, student="mlp", steps=2, out=tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_a_selection_that_fails_at_its_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datafree.jobs.writing.grid", full)
    with pytest.raises(OSError, match="No space left"):
        datafree.condense(out=tmp_path / "set", **{**TINY, "method": "random", "steps": None})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("channels", [2, 4])
def test_images_that_no_png_can_hold_are_condensed_all_the_same(channels: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8, channels), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(20) % 2)
    data = f"npz:{tmp_path / 'd.npz'}"
    out = datafree.condense(data=data, ipc=1, method="random", threads=1, out=tmp_path / "set").path
    assert {p.name for p in (out / "images").iterdir()} == {"grid.png"}
