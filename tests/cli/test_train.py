"""`datafree train` and its neighbours, as a person runs them: what is printed, what is written, exit statuses."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datafree.runs import Run

Cli = Callable[..., Any]
Short = tuple[object, ...]
# Nothing that a teacher without batch norm would be warned of, and nothing in its place.
PLAIN = ("--bn", 0, "--shapes", 0, "--student-steps", 20)

RESULT_KEYS = {
    "teacher_accuracy", "student_accuracy", "agreement", "kl", "images", "synthesis_seconds", "distillation_seconds",
    "total_seconds", "peak_rss_mb", "precision", "threads", "seed", "method", "teacher", "student", "data",
    "teacher_latency_ms", "student_latency_ms", "latency_on",
}  # fmt: skip


def test_a_run_writes_what_it_promises(cli: Cli, teacher: Path, short: Short, tmp_path: Path) -> None:
    answer = cli("train", "--teacher", teacher, *short, "--seed", 3, "--out", "run")
    assert answer.status == 0
    run = tmp_path / "run"
    held = {p.name for p in run.iterdir()}
    assert held == {
        "run.json", "result.json", "metrics.jsonl", "tensorboard", "images", "student.safetensors",
        "generator.safetensors", "report.html", "checkpoint.pt",
    }  # fmt: skip

    result = json.loads((run / "result.json").read_text())
    assert set(result) >= RESULT_KEYS
    assert 0.3 < result["teacher_accuracy"] <= 1
    assert 0 <= result["student_accuracy"] <= 1
    assert 0 <= result["agreement"] <= 1
    assert result["kl"] >= 0
    assert result["images"] > 0
    named = {key: result[key] for key in ("method", "teacher", "student", "data", "seed", "precision", "threads")}
    assert named == {
        "method": "blend", "teacher": "lenet5", "student": "lenet5_half", "data": "digits", "seed": 3,
        "precision": "32", "threads": torch.get_num_threads(),
    }  # fmt: skip

    about = json.loads((run / "run.json").read_text())
    assert about["command"].startswith("datafree train --teacher ")
    assert about["command"].endswith("--out run")
    assert set(about["set_by_user"]) == {"teacher", "steps", "batch_size", "seed", "bank", "warmup"}
    assert about["seed"] == 3
    assert about["config"]["steps"] == 20
    assert about["method_options"]["bank"] == 64
    assert len(about["teacher"]["sha256"]) == 64
    assert about["versions"]["torch"]
    assert about["machine"]["cores"]
    assert about["config"]["teacher"] == str(teacher)
    assert Path(about["config"]["teacher"]).is_absolute()

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert all("step" in row for row in rows)
    assert any("test/accuracy" in row for row in rows)
    assert list((run / "images").glob("*.png"))
    assert list((run / "tensorboard").glob("events*"))
    page = (run / "report.html").read_text()
    assert "lenet5_half" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    # The table goes to stdout, everything else to stderr, in plain lines without control characters.
    assert [line.split()[0] for line in answer.out.splitlines()][:3] == ["teacher", "student", "agreement"]
    assert "student: lenet5_half (the next smaller network; --student names another)" in answer.err
    assert "architecture: lenet5 (from the checkpoint)" in answer.err
    assert "normalisation: mean" in answer.err
    assert "\x1b" not in answer.err + answer.out
    assert "\r" not in answer.err

    # A finished run is not resumed, and that is no error.
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    answer = cli("train", "--resume", "--out", "run")
    assert answer.status == 0
    assert "the run in run is finished" in answer.err
    assert "student" in answer.out
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before

    evaluated = json.loads(cli("evaluate", "run", "--data", "digits", "--json").out)
    for ours, theirs in (("accuracy", "student_accuracy"), ("agreement", "agreement"), ("kl", "kl")):
        assert evaluated[ours] == pytest.approx(result[theirs], rel=1e-5)
    alone = json.loads(cli("evaluate", "run/student.safetensors", "--json").out)
    assert alone["accuracy"] == evaluated["accuracy"]
    assert alone["agreement"] is None
    assert "agreement" in cli("evaluate", "run").out

    answer = cli("sample", "run", "--n", 20, "--out", "samples")
    assert answer.status == 0
    assert len(answer.out.splitlines()) == 1
    pictures = sorted((tmp_path / "samples" / "images").glob("*.png"))
    assert len(pictures) == 20
    with Image.open(pictures[0]) as picture:
        assert picture.size == (8, 8)
    labels = load_file(tmp_path / "samples" / "labels.safetensors")
    assert labels["logits"].shape == labels["probabilities"].shape == (20, 10)
    assert torch.allclose(labels["probabilities"].sum(1), torch.ones(20), atol=1e-5)
    assert cli("sample", "run", "--n", 20, "--out", "samples").status == 2
    assert cli("sample", "run", "--n", 3, "--out", "samples", "--device", "auto", "--force").status == 0
    assert len(list((tmp_path / "samples" / "images").iterdir())) == 3


def test_quiet_says_nothing(cli: Cli, teacher: Path, short: Short, tmp_path: Path) -> None:
    answer = cli("train", "--teacher", teacher, *short, *PLAIN, "-q")
    assert (answer.status, answer.out, answer.err) == (0, "", "")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["train-blend-1"]
    assert cli("pretrain", "--steps", 2, "--out", "net", "-q").out == ""


def test_a_dry_run_writes_nothing(cli: Cli, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    for given in ((), ("--teacher", str(teacher), "--out", "run")):
        answer = cli("train", *given, "--dry-run", "--batch-size", 16)
        assert answer.status == 0
        assert answer.err == ""
        rows = dict(line.split(None, 1) for line in answer.out.splitlines())
        assert rows["batch_size"] == "16"
        assert rows["device"] in ("cpu", "cuda")
        assert rows["method"] == "blend"
        assert "multiply-adds" in rows["student"]
        assert "parameters" in rows["teacher"]
        assert "about" in rows["memory"]
        assert "MB" in rows["memory"]
    assert [p.name for p in tmp_path.iterdir()] == ["temporary"]
    assert list(elsewhere.iterdir()) == []


def test_a_saved_run_is_run_again(
    cli: Cli, teacher: Path, short: Short, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", "--teacher", os.path.relpath(teacher, tmp_path), *short, "--out", "first", "-q").status == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert cli("train", "--config", "../first/run.json", "--out", "again", "-q").status == 0
    first = (tmp_path / "first" / "student.safetensors").read_bytes()
    assert (tmp_path / "other" / "again" / "student.safetensors").read_bytes() == first

    flags = ("--seed", 5, "--epochs", 0.001, "--student", "mlp")
    assert cli("train", "--config", "../first/run.json", *flags, "--out", "changed", "-q").status == 0
    config = json.loads((tmp_path / "other" / "changed" / "run.json").read_text())["config"]
    assert (config["seed"], config["student"], config["steps"], config["batch_size"]) == (5, "mlp", None, 32)


def test_images_that_are_not_square(cli: Cli, foreign: Path, tmp_path: Path) -> None:
    size = ("--shape", "3x24x40", "--classes", 7, "--batch-size", 4, "--synthesis-batch", 4, "--bank", 8)
    answer = cli("train", "--teacher", foreign / "wrn10_1.pt", *size, "--steps", 1, "--warmup", 0, "--out", "run")
    assert answer.status == 0
    assert "nothing is evaluated" in answer.err
    assert "not measured" in answer.out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [result[key] for key in ("teacher_accuracy", "student_accuracy", "agreement", "kl")] == [None] * 4
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["domain"]["shape"] == [3, 24, 40]
    assert about["domain"]["classes"] == 7
    assert cli("sample", "run", "--n", 1, "--out", "s").status == 0
    with Image.open(tmp_path / "s" / "images" / "000000.png") as picture:
        assert picture.size == (40, 24)


def test_a_foreign_file_is_evaluated_at_the_size_of_the_data(cli: Cli, foreign: Path) -> None:
    answer = cli("evaluate", foreign / "grey.pt", "--arch", "resnet20", "--data", "digits")
    assert answer.status == 0
    assert "355 images of digits" in answer.out
    assert "normalisation: mean 0.3052 / std 0.376" in answer.err  # not the network's own, which nobody said


def test_a_term_that_is_not_finite_ends_the_run_with_3(cli: Cli, teacher: Path, short: Short, tmp_path: Path) -> None:
    wild = ("--optimizer", "sgd", "--lr", 1e30, "--checkpoint-every", 1e-6)
    answer = cli("train", "--teacher", teacher, *short, *wild, "--out", "run", "-q")
    assert answer.status == 3
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    assert last.startswith("error: the term 'kl' became ")
    assert " at step " in last
    assert last.endswith("the last good checkpoint is kept")
    step = int(last.partition(" at step ")[2].partition(":")[0])
    state, warnings = Run(tmp_path / "run").load_checkpoint()
    assert state is not None
    assert warnings == []
    assert state["clock"]["step"] <= step
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "result.json").exists()


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full:
    """A log on a full disk."""

    write = add_scalar = flush = no_space

    def close(self) -> None:
        pass

    tell = close
    __enter__ = close

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("what", ["checkpoint", "metrics", "tensorboard"])
def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(
    cli: Cli, teacher: Path, short: Short, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    save, sync, start_log = Run.save_checkpoint, os.fsync, Run.start_log
    saved: list[int] = []

    def counted(run: Run, state: Any) -> None:
        save(run, state)
        saved.append(int(state["clock"]["step"]))

    def limited(file: int) -> None:
        if len(saved) == 3:
            no_space()
        sync(file)

    def start_full(run: Run, position: int, step: int) -> None:
        start_log(run, position, step)
        run.close()
        ours: Any = run
        if what == "metrics":
            ours._metrics = Full()
        else:
            ours._metrics, ours._events = open(run.path / "metrics.jsonl", "ab"), Full()  # noqa: SIM115

    if what == "checkpoint":
        monkeypatch.setattr(Run, "save_checkpoint", counted)
        monkeypatch.setattr(os, "fsync", limited)
    else:
        monkeypatch.setattr(Run, "start_log", start_full)
    wanted = (*PLAIN, "--checkpoint-every", 1e-6 if what == "checkpoint" else 60, "--out", "run", "-q")
    answer = cli("train", "--teacher", teacher, *short, *wanted)
    assert answer.status == 2
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1
    assert "No space left on device; free space or give another --out" in answer.err
    assert not list((tmp_path / "run").glob(".*"))
    if what == "checkpoint":
        state, warnings = Run(tmp_path / "run").load_checkpoint()
        assert state is not None
        assert state["clock"]["step"] == saved[-1]
        assert warnings == []
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert cli("train", "--resume", "--out", "run", "-q").status == 0


@pytest.mark.slow
def test_a_chain_of_commands_without_any_teacher_file(cli: Cli, tmp_path: Path) -> None:
    """`datafree train` with nothing given: teacher, student and report; then the other commands on what it wrote."""
    assert cli("train", "--steps", 40, "--out", "run").status == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["teacher_accuracy"] > 0.9
    assert result["data"] == "digits"
    assert cli("train", "--teacher", "run", "--steps", 20, "--student", "resnet8", "--out", "next", "-q").status == 0
    assert cli("evaluate", "next", "--teacher", "run/teacher.safetensors").status == 0
    # The embedded teacher is made again from the saved configuration, to the same bits.
    assert cli("train", "--config", "run/run.json", "--out", "twin", "-q").status == 0
    for name in ("teacher.safetensors", "student.safetensors"):
        assert (tmp_path / "twin" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
