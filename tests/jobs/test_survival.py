"""Slow: a process that is really killed, again and again, and a student that really learns."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import datafree
from datafree.runs import CHECKPOINT, PREVIOUS

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "datafree", "train", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def stamp(folder: Path) -> float:
    file = folder / CHECKPOINT
    return file.stat().st_mtime if file.exists() else 0.0


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_no_weight(teacher: str, tmp_path: Path) -> None:
    short = ["--steps", "500", "--batch-size", "32", "--student", "resnet8", "--threads", "1", "--generator-width", "8"]
    common = ["--teacher", teacher, *short, "--student-steps", "5", "--generator-steps", "1", "--reset", "10", "-q"]
    finish(start(*common, "--out", str(tmp_path / "straight")))
    out, draw, kills = tmp_path / "killed", random.Random(0), 0
    process = start(*common, "--out", str(out), "--checkpoint-every", "0.05")
    while kills < 3:
        before = stamp(out)
        while process.poll() is None and stamp(out) == before:  # it has come further than the last one
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        assert (out / CHECKPOINT).exists() or (out / PREVIOUS).exists()
        process = start("--resume", "--out", str(out), "-q")
    finish(process)
    assert kills >= 2, "the run was over before it could be killed"
    for name in ("student", "generator"):
        one, two = (load_file(folder / f"{name}.safetensors") for folder in (tmp_path / "straight", out))
        assert all(torch.equal(one[key], two[key]) for key in one), f"{name} differs after {kills} kills"


@pytest.mark.slow
def test_a_student_learns_the_digits_that_it_never_saw(tmp_path: Path) -> None:
    """The embedded job with its default settings, at two thirds of its length."""
    result = datafree.train(out=tmp_path / "run", steps=1300, threads=1)
    assert result.metrics["teacher_accuracy"] > 0.95
    assert result.metrics["student_accuracy"] > 0.80
