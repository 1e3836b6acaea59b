"""`pretrain`: it resumes to the last bit, refuses what it cannot go on with, and leaves a folder to one process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import datafree
from datafree.jobs import Interrupted, pretraining, resume_pretrain
from datafree.jobs.condensing import dry_run_condense
from datafree.runs import CHECKPOINT, Run
from datafree.training import TermError, Trainer

# 1442 training images in batches of 300 make 4 a round: the order is drawn anew within the run.
SHORT: dict[str, Any] = {"data": "digits", "arch": "resnet8", "steps": 10, "batch_size": 300, "threads": 1}


class PowerCutError(Exception):
    """Stands for what ends a process at once."""


def at_step(step: int, act: Callable[[], None] | None = None) -> Callable[[Mapping[str, Any]], None]:
    def show(row: Mapping[str, Any]) -> None:
        if row["step"] == step:
            if act is None:
                raise PowerCutError
            act()

    return show


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a step, so that a test can stop at any."""
    monkeypatch.setattr(pretraining, "LOG_SECONDS", 0.0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5, 9])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "optimizer": "adam", "lr": 0.01, "schedule": "constant"}])
def test_a_killed_training_resumes_to_the_last_bit(step: int, options: dict[str, Any], tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    whole = datafree.pretrain(out=straight, **SHORT, **options)
    with pytest.raises(PowerCutError):
        datafree.pretrain(out=killed, checkpoint_every=1e-9, show=at_step(step), **SHORT, **options)
    assert not (killed / "result.json").exists()
    said: list[str] = []
    result = resume_pretrain(killed, say=said.append)
    assert said == [f"going on from step {step - 1}" if step > 1 else "no checkpoint yet: starting from step 0"]
    assert same(straight, killed)
    assert (result["accuracy"], result["steps"]) == (whole["accuracy"], whole["steps"])
    assert (result["latency_on"], result["student_latency_ms"] > 0) == ("cpu, 1 thread", True)
    rows = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 11)), "steps that were run twice are logged twice"
    assert (killed / "report.html").is_file()


def test_no_checkpoint_before_it_is_due(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        datafree.pretrain(out=tmp_path / "run", show=at_step(9), **SHORT)
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_what_goes_wrong_after_the_last_step_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, out = tmp_path / "straight", tmp_path / "run"
    whole = datafree.pretrain(out=straight, **SHORT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretraining, "save_network", full)
    with pytest.raises(OSError, match="No space"):
        datafree.pretrain(out=out, **SHORT)
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "step", full)
    assert resume_pretrain(out)["accuracy"] == whole["accuracy"]
    assert same(straight, out)


def test_a_training_that_a_person_stops_is_saved(tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "run"
    datafree.pretrain(out=straight, **SHORT)
    stop = at_step(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=f"datafree pretrain --resume --out {out}"):
        datafree.pretrain(out=out, show=stop, **SHORT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (out / "report.html").is_file()
    said: list[str] = []
    resume_pretrain(out, say=said.append)
    assert said in (["going on from step 4"], ["going on from step 5"])
    assert same(straight, out)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"optimizer": "adam", "momentum": 0.5}, "nothing reads --momentum with --optimizer adam"),
        ({"milestones": (0.2,)}, "nothing reads --milestones with --schedule cosine"),
        (
            {"augment": False, "flip": True},
            "nothing reads --flip with --no-augment: leave it out, or give --augment",
        ),
    ],
)
def test_what_nothing_reads_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pretraining.dry_run_pretrain(**SHORT, **options)


def test_without_augmentation_nothing_is_mirrored_whoever_says_so() -> None:
    assert pretraining.dry_run_pretrain(**SHORT, augment=False, flip=False)["config"]["flip"] is False


def test_data_without_training_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x_test=np.zeros((20, 8, 8), np.uint8), y_test=np.arange(20) % 10)
    data = datafree.load_data(f"npz:{tmp_path / 'own.npz'}")
    with pytest.raises(ValueError, match=r"^npz:.*own.npz has no train split: add it"):
        pretraining.dry_run_pretrain(**{**SHORT, "data": data.domain.name})
    with pytest.raises(ValueError, match=r"^npz:.*own.npz has no train split: add it"):
        dry_run_condense(data=data)


def test_adam_takes_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretraining.dry_run_pretrain(**SHORT, optimizer="adam")["config"]["lr"] == 1e-3
    assert pretraining.dry_run_pretrain(**SHORT)["config"]["lr"] == 0.1
    monkeypatch.setitem(pretraining.DEFAULTS, "lr", 0.3)  # what results keep is what is read
    assert pretraining.dry_run_pretrain(**SHORT)["config"]["lr"] == 0.3


def test_a_training_goes_on_with_its_own_images(tmp_path: Path) -> None:
    images, labels = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), np.arange(40) % 10
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(PowerCutError):
        datafree.pretrain(
            out=tmp_path / "run", show=at_step(2), **{**SHORT, "data": f"npz:{tmp_path / 'own.npz'}", "batch_size": 20}
        )
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels[::-1], x_test=images, y_test=labels)
    with pytest.raises(ValueError, match=r"^the training images of npz:.* are not those that the run began with"):
        resume_pretrain(tmp_path / "run")


def test_a_finished_training_is_returned_as_it_is(tmp_path: Path) -> None:
    result = datafree.pretrain(out=tmp_path / "run", **SHORT)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    said: list[str] = []
    assert resume_pretrain(tmp_path / "run", say=said.append) == result
    assert said == [f"the run in {tmp_path / 'run'} is finished"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = Trainer.step, list[int]()

    def step(self: Trainer, *arguments: Any) -> None:
        plain(self, *arguments)
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                next(iter(self.network.parameters())).fill_(torch.inf)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(TermError, match=r"at step 4.*; the last good checkpoint is kept$"):
        datafree.pretrain(out=tmp_path / "run", checkpoint_every=1e-9, **SHORT)
    monkeypatch.undo()
    state, _ = Run(tmp_path / "run").load_checkpoint()
    assert state is not None
    assert state["clock"]["step"] == 3
    assert resume_pretrain(tmp_path / "run")["steps"] == 10


def test_a_folder_that_is_being_written_is_left_to_its_owner(tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "run"
    datafree.pretrain(out=straight, **SHORT)
    refused: list[str] = []

    def others() -> None:
        acts: tuple[Callable[[], Any], ...] = (
            partial(resume_pretrain, out),
            partial(datafree.pretrain, out=out, force=True, **SHORT),
        )
        for act in acts:
            with pytest.raises(ValueError, match="another run is being written in") as caught:
                act()
            refused.append(str(caught.value))

    datafree.pretrain(out=out, show=at_step(5, others), **SHORT)
    assert len(refused) == 2
    assert same(straight, out)
    assert not list(out.glob(".*"))
    datafree.pretrain(out=out, force=True, **{**SHORT, "steps": 1})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"job": "train"}, "holds a train run: resume it with its own command"),
        ({"job": "pretrain"}, "no run.json of datafree pretrain"),
        ({"job": "pretrain", "config": {"steps": "many"}}, "--steps is 'many': give a whole number"),
        ({"job": "pretrain", "config": {"stepz": 3}}, "unknown option 'stepz'"),
    ],
)
def test_resume_refuses_what_is_no_pretraining(content: dict[str, Any], text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=text) as caught:
        resume_pretrain(tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
