"""The processes of cells: locks, signals, kills, logs, and what these leave."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from datafree.jobs import reproduce
from datafree.jobs.cell import run_cell
from datafree.jobs.scheduling import Child, Scheduler
from datafree.jobs.standing import hold_log, locked


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_kill_after_the_result_left_is_cleared_away(tiny, tmp_path, keep, cell_of):
    """By the cell's process where it finds the result of another, else by `reproduce`."""
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder)
    work = folder / "runs" / path.stem
    for again in (
        lambda: run_cell(cell_of(tiny, "a/one"), 0, folder, keep=keep),
        lambda: reproduce(tiny, out=tmp_path / "out", cells=["a/one"], keep=keep),
    ):
        work.mkdir(exist_ok=True)
        (work / "defaults.json").write_text("{}", encoding="utf-8")
        again()
        assert work.exists() == keep


def test_what_another_process_is_at_is_not_cleared_away(tiny, tmp_path, cell_of):
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder)
    work = folder / "runs" / path.stem
    with locked(folder / "runs" / f"{path.stem}.lock"):
        work.mkdir()
        (work / "defaults.json").write_text("{}", encoding="utf-8")
        reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
        assert work.exists()


def test_a_lock_holds_though_its_file_has_gone_meanwhile(tmp_path):
    """Who has waited for a file that is no more and who has made a new one must not both go on."""
    path, got = tmp_path / "a.lock", threading.Event()

    def wait() -> None:
        with locked(path):
            got.set()

    with locked(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.3)
        path.unlink()
        newer = locked(path)
        newer.__enter__()
    assert not got.wait(0.3)
    newer.__exit__(None, None, None)
    waiting.join(5)
    assert got.is_set()
    with locked(path), locked(path, wait=False) as held:
        assert not held
    with locked(path, remove=True):
        pass
    assert not path.exists()


def test_an_interruption_while_one_waits_for_a_lock_leaves_nothing_open(tmp_path):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    opened = len(os.listdir("/dev/fd"))
    with locked(tmp_path / "a.lock"):
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a.lock"):
            pass
        signal.signal(signal.SIGALRM, before)
    assert len(os.listdir("/dev/fd")) == opened
    with locked(tmp_path / "a.lock", wait=False) as mine:
        assert mine


def test_a_log_that_somebody_has_removed_is_none(tiny, tmp_path, cell_of):
    skipped: list[tuple[str, str]] = []
    with subprocess.Popen(["false"], stdin=subprocess.PIPE) as process:
        process.wait()
        assert process.stdin is not None
        path = tmp_path / "none.json"
        child = Child(cell_of(tiny, "a/one"), 0, process, process.stdin, 1, path, path.with_suffix(".log"))
        said = Scheduler({"retry": False}, tmp_path, 1, print).outcome(child, skipped)
    assert said == "not run: its process ended with 1"
    assert skipped == [("a/one, seed 0", "its process ended with 1")]


def killed(cell: Any, path: Path, number: int, said: str = "") -> Child:
    """A cell whose process was killed by a signal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_suffix(".log")
    log.write_text(said, encoding="utf-8")
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a child of `nohup` would inherit that it is ignored
    try:
        with subprocess.Popen(["sh", "-c", f"kill -{number} $$"], stdin=subprocess.PIPE) as process:
            process.wait()
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert process.stdin is not None
    return Child(cell, 0, process, process.stdin, 1, path, log)


@pytest.mark.parametrize(
    ("number", "said", "error"),
    [
        (signal.SIGKILL, "", "its process was killed by SIGKILL (was there too little memory?)"),
        (signal.SIGSEGV, "a warning\nno room at /a/b", "its process was killed by SIGSEGV: no room at b"),
        (40, "", "its process was killed by signal 40"),
    ],
)
def test_a_killed_cell_has_failed_and_is_run_again_by_retry(tiny, tmp_path, number, said, error, cell_of):
    cell, folder = cell_of(tiny, "a/one"), tmp_path / "out" / "tiny"
    path = folder / cell.file_name(0)
    work = folder / "runs" / path.stem
    work.mkdir(parents=True)
    (work / "defaults.json").write_text("{}", encoding="utf-8")
    child, skipped = killed(cell, path, number, said), list[tuple[str, str]]()
    assert Scheduler({"retry": False, "keep": False}, folder, 1, print).outcome(child, skipped) == f"failed: {error}"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["status"], content["error"], skipped) == ("failed", error, [])
    assert not child.log.exists()
    assert not list((folder / "runs").iterdir())
    assert reproduce(tiny, out=tmp_path / "out", cells=["a/one"]).found == 1
    run_cell(cell, 0, folder, retry=True)
    assert json.loads(path.read_text(encoding="utf-8"))["status"] == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_cell_has_not_failed(tiny, tmp_path, number, cell_of):
    cell, skipped = cell_of(tiny, "a/one"), list[tuple[str, str]]()
    child = killed(cell, tmp_path / cell.file_name(0), number)
    scheduler = Scheduler({"retry": False, "keep": False}, tmp_path, 1, print)
    if number == signal.SIGHUP:
        assert scheduler.outcome(child, skipped) == "not run: its process ended with -1"
    else:
        with pytest.raises(KeyboardInterrupt):
            scheduler.outcome(child, skipped)
    assert not list(tmp_path.glob("*.json"))


def test_a_killed_cell_that_another_process_is_at_has_not_failed(tiny, tmp_path, cell_of):
    cell, skipped = cell_of(tiny, "a/one"), list[tuple[str, str]]()
    child = killed(cell, tmp_path / cell.file_name(0), signal.SIGKILL)
    with locked(tmp_path / "runs" / f"{child.path.stem}.lock"):
        said = Scheduler({"retry": False, "keep": False}, tmp_path, 1, print).outcome(child, skipped)
    assert said == "not run: its process ended with -9"
    assert not list(tmp_path.glob("*.json"))


ORDER = {"budget": None, "teachers": None, "download": False, "keep": False, "retry": False, "threads": 1, "seed": 0}


def begin(table: Path, cell: str, out: Path, *before: str) -> subprocess.Popen[bytes]:
    """A cell's process, whose stdin stays open as that of a living parent does."""
    command = [*before, sys.executable, "-m", "datafree.jobs.cell"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps({**ORDER, "table": str(table), "cell": cell, "out": str(out)}).encode() + b"\n")
    process.stdin.flush()
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Status and words."""
    assert process.stderr is not None
    with process, process.stderr:
        return process.wait(60), process.stderr.read().decode()


@pytest.mark.slow
def test_the_process_of_a_cell_says_by_its_status_how_it_ended(tiny, tmp_path, cell_of):
    run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out")
    lock = tmp_path / "out" / "runs" / f"{Path(cell_of(tiny, 'a/two').file_name(0)).stem}.lock"
    with locked(lock):
        there, elsewhere = begin(tiny, "a/one", tmp_path / "out"), begin(tiny, "c/noise", tmp_path / "out")
        waiting = begin(tiny, "a/two", tmp_path / "out")
        assert ended(there) == (0, "")
        said = "its teacher net.pt is not here: name the folder that holds it by --teachers\n"
        assert ended(elsewhere) == (2, said)
        opened = Path(f"/proc/{waiting.pid}/fd")
        for _ in range(600):  # interrupted while it loads Python's modules, it would say so by a traceback
            if any(each.is_symlink() and each.readlink() == lock for each in opened.iterdir()):
                break
            time.sleep(0.1)
        waiting.send_signal(signal.SIGINT)
        assert ended(waiting) == (130, "")


@pytest.mark.slow
def test_a_cells_run_says_how_a_person_starts_it(tiny, tmp_path):
    assert ended(begin(tiny, "a/one", tmp_path / "out")) == (0, "")
    (path,) = (tmp_path / "out").glob("*.json")
    command = json.loads(path.read_text(encoding="utf-8"))["run"]["command"]
    assert command == "datafree reproduce tiny.toml --cell a/one --seeds 1"


def test_without_locks_cells_are_run_all_the_same(tmp_path, monkeypatch):
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("datafree.jobs.standing.fcntl.flock", none)
    with locked(tmp_path / "a.lock", remove=True) as held:
        assert held
    assert not (tmp_path / "a.lock").exists()


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_told_by_the_status_too(tiny, tmp_path):
    status, said = ended(begin(tiny, "a/one", tmp_path / "out", "sh", "-c", 'ulimit -f 1; exec "$@"', "sh"))
    assert status == 2
    assert "cannot write" in said
    assert said.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.json"))


def test_logs_of_processes_that_are_gone_are_cleared_away(tiny, tmp_path, monkeypatch, cell_of):
    runs = tmp_path / "out" / "tiny" / "runs"
    runs.mkdir(parents=True)
    stem = Path(cell_of(tiny, "a/one").file_name(0)).stem
    gone, used, other = (runs / name for name in (f"{stem}.1.log", f"{stem}.2.log", "another.1.log"))
    gone.touch()
    other.touch()
    monkeypatch.setattr(Scheduler, "run", lambda *_: [])
    with open(used, "wb") as file:
        hold_log(file)
        process = subprocess.Popen(["sleep", "60"], stdout=file)
    try:  # its parent, which was to read the log, has let go of it
        reproduce(tiny, out=tmp_path / "out", cells=["a/one"], keep=True)
        assert sorted(runs.iterdir()) == [used, other]
    finally:
        process.kill()
        process.wait()
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
    assert sorted(runs.iterdir()) == [other]
