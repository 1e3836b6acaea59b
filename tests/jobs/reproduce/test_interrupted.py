"""Cells that were interrupted are gone on with, or begun anew where they would no longer be the same."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from datafree import jobs
from datafree.jobs.cell import run_cell, trained_teacher
from datafree.runs import WriteError
from datafree.tables import defaults


@pytest.fixture
def interrupted(tiny, tmp_path, monkeypatch, cell_of):
    """A cell's folder of work as Ctrl-C leaves it, and the jobs that are called from then on."""
    train, resume = jobs.train, jobs.resume
    called: list[str] = []

    def stopped(**options: Any) -> Any:
        (train(**options).path / "result.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")

    def noted(name: str, job: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            return job(*arguments, **options)

        return run

    monkeypatch.setattr(jobs, "train", noted("train", train))
    monkeypatch.setattr(jobs, "resume", noted("resume", resume))
    (work,) = (path for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir())
    assert (work / "checkpoint.pt").is_file()
    return work, called


@pytest.mark.parametrize("known", [True, False])
def test_a_run_of_other_defaults_is_not_gone_on_with(tiny, tmp_path, interrupted, known, cell_of):
    work, called = interrupted
    about = json.loads((work / "defaults.json").read_text(encoding="utf-8"))
    assert about == defaults.cell_defaults(cell_of(tiny, "b/noise"))
    if known:
        (work / "defaults.json").write_text(json.dumps({**about, "momentum": 0.125}), encoding="utf-8")
    else:  # of a version that did not say
        (work / "defaults.json").unlink()
    path = run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert called == ["train"]
    assert json.loads(path.read_text(encoding="utf-8"))["defaults"] == about


def test_a_run_of_the_same_defaults_is_gone_on_with(tiny, tmp_path, interrupted, cell_of):
    _, called = interrupted
    path = run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert called == ["resume"]
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "done"


def test_a_network_with_data_is_gone_on_with_too(tiny, tmp_path, monkeypatch, cell_of):
    pretrain, resume = jobs.pretrain, jobs.resume_pretrain
    called: list[Path] = []

    def stopped(*arguments: Any, **options: Any) -> Any:
        pretrain(*arguments, **options)
        (options["out"] / "result.json").unlink()
        raise KeyboardInterrupt

    def noted(work: Path) -> Any:
        called.append(work)
        return resume(work)

    monkeypatch.setattr(jobs, "pretrain", stopped)
    monkeypatch.setattr(jobs, "resume_pretrain", noted)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out")
    path = run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out")
    assert called == [tmp_path / "out" / "runs" / path.stem]
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "done"


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["datafree.runs.os.fsync", "datafree.jobs.fresh.render_report"])
def test_a_full_disk_is_no_result_and_the_run_is_kept(tiny, tmp_path, monkeypatch, interrupted, place, cell_of):
    """The second: what is not written by `atomic_write`."""
    work, called = interrupted
    with monkeypatch.context() as during:
        during.setattr(place, full)
        with pytest.raises(WriteError, match="No space left"):
            run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert called == ["resume"]
    assert (work / "checkpoint.pt").is_file()
    assert not list((tmp_path / "out").glob("*.json"))
    path = run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert called == ["resume", "resume"]
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "done"
    assert not work.exists()


def test_a_full_disk_does_not_hide_why_the_cell_has_failed(tiny, tmp_path, monkeypatch, cell_of):
    def failed(*_: Any, **__: Any) -> None:
        monkeypatch.setattr("datafree.runs.os.fsync", full)
        raise ValueError("the network is no good")

    monkeypatch.setattr(jobs, "pretrain", failed)
    with pytest.raises(WriteError, match=r"No space left on device; .*; the cell has failed: the network is no good$"):
        run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_recipe_teacher_that_was_interrupted_is_gone_on_with(tmp_path, monkeypatch):
    pretrain, called = jobs.pretrain, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        called.append("pretrain")
        pretrain(*arguments, **options)
        (options["out"] / "result.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("datafree.jobs.cell.cache_folder", lambda: tmp_path)
    monkeypatch.setattr(jobs, "pretrain", stopped)
    recipe = {"data": "digits", "arch": "lenet5_half", "steps": 2}
    with pytest.raises(KeyboardInterrupt):
        trained_teacher(recipe)
    assert (trained_teacher(recipe) / "result.json").is_file()
    assert called == ["pretrain"]
