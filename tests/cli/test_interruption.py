"""Ctrl-C and SIGTERM in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, *args: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "datafree", *map(str, args)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def interrupt(process: subprocess.Popen[str], number: signal.Signals, when: Callable[[], bool]) -> tuple[int, str, str]:
    """Sends the signal once `when` holds; exit status, stdout, stderr."""
    end = time.monotonic() + 100
    while not when() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def rows(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_resume_and_the_run_goes_on(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    flags = ("--batch-size", 32, "--bank", 64, "--warmup", 0, "--steps", 4000, "--out", "my run")
    process = start(tmp_path, "train", "--teacher", teacher, *flags)
    status, _, err = interrupt(process, signal.SIGINT, lambda: rows(out) > 0)
    assert status == 130, err
    assert err.splitlines()[-1] == "interrupted; go on with: datafree train --resume --out 'my run'"
    assert "Traceback" not in err
    assert (out / "checkpoint.pt").exists()
    assert (out / "report.html").exists()
    assert not (out / "result.json").exists()

    seen = rows(out)
    process = start(tmp_path, "train", "--resume", "--out", "my run")
    status, _, err = interrupt(process, signal.SIGTERM, lambda: rows(out) > seen)
    assert status == 130
    assert "going on from step " in err
    assert "Traceback" not in err

    # The rest would take a while: what counts is that the checkpoint is taken up once more.
    about = json.loads((out / "run.json").read_text())
    about["config"]["steps"] = 1
    (out / "run.json").write_text(json.dumps(about))
    process = start(tmp_path, "train", "--resume", "--out", "my run", "-q")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert (out / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_while_the_embedded_teacher_is_trained(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """Nothing is there to be saved yet: SIGTERM ends the process as usual (a shell says 143)."""
    out = tmp_path / "run"
    got, _, err = interrupt(start(tmp_path, "train", "--steps", 20, "--out", "run"), number, out.is_dir)
    assert got == status
    assert "Traceback" not in err
    assert not (out / "run.json").exists()
    assert out.exists() is (number is signal.SIGTERM)
