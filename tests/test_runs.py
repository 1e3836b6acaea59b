"""The run folder: nothing is ever half written, and a torn checkpoint falls back to the one before."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from datafree import runs
from datafree.runs import CHECKPOINT, LOCK, PREVIOUS, SAMPLES, Run, WriteError, atomic_write, save_network, write_json


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_write_replaces(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    atomic_write(file, b"one")
    atomic_write(file, b"two")
    assert file.read_bytes() == b"two"
    assert names(tmp_path) == ["a.txt"]


class Full:
    """A file on a disk that takes three bytes and is full then."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = open(path, mode)  # noqa: SIM115

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(
    ("place", "name", "fault", "text"),
    [
        (runs, "open", Full, "No space left on device"),
        (os, "replace", refuse, "Permission denied"),
        (os, "fsync", refuse, "Permission denied"),
    ],
)
def test_a_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, fault: Any, text: str
) -> None:
    file = tmp_path / "a.txt"
    atomic_write(file, b"old content")
    monkeypatch.setattr(place, name, fault, raising=False)
    with pytest.raises(ValueError, match=rf"cannot write .*a\.txt: {text}; free space or give another --out"):
        atomic_write(file, b"new content")
    monkeypatch.undo()
    assert file.read_bytes() == b"old content"
    assert names(tmp_path) == ["a.txt"]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.picture("step-1", b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ValueError, match=r"cannot write .*step-1\.png"):
        run.picture("step-1", b"new")
    assert (tmp_path / "images" / "step-1.png").read_bytes() == b"old"
    assert names(tmp_path / "images") == ["step-1.png"]


@pytest.mark.slow
def test_a_real_limit_on_the_files_size_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """A process that may write no more than 20 kB a file: the larger checkpoint fails, the smaller one stands."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from datafree.runs import Run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = Run(Path(sys.argv[1]))
run.save_checkpoint({"step": 1, "x": torch.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    run.save_checkpoint({"step": 2, "x": torch.zeros(100_000)})
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert names(tmp_path) == [CHECKPOINT]
    state, warnings = Run(tmp_path).load_checkpoint()
    assert state is not None
    assert state["step"] == 1
    assert warnings == []


def test_write_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}


def test_save_network_keeps_values_and_what_is_known_of_them(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    save_network(tmp_path / "n.safetensors", network, {"arch": "x", "shape": (3, 8, 8)})
    held = load_file(tmp_path / "n.safetensors")
    assert torch.equal(held["weight"], network.weight)
    assert network.bias is not None
    assert torch.equal(held["bias"], network.bias)
    with safe_open(tmp_path / "n.safetensors", framework="pt") as archive:
        assert json.loads(archive.metadata()["datafree"]) == {"arch": "x", "shape": [3, 8, 8]}


def saved(folder: Path, count: int) -> Run:
    """A run with `count` checkpoints; the last two stand."""
    run = Run(folder)
    for step in range(1, count + 1):
        run.save_checkpoint({"step": step, "x": torch.arange(3000) * step})
    return run


def test_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    run = saved(tmp_path, 3)
    assert names(tmp_path) == sorted([PREVIOUS, CHECKPOINT])
    state, warnings = run.load_checkpoint()
    assert state is not None
    assert state["step"] == 3
    assert warnings == []
    assert torch.equal(state["x"], torch.arange(3000) * 3)
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["step"] == 2


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert Run(tmp_path).load_checkpoint() == (None, [])


def test_a_checkpoint_that_was_moved_away_falls_back(tmp_path: Path) -> None:
    """What a kill between the two renames leaves."""
    run = saved(tmp_path, 2)
    (tmp_path / CHECKPOINT).unlink()
    state, _ = run.load_checkpoint()
    assert state is not None
    assert state["step"] == 1


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: list[Callable[[bytes], bytes]] = [halved, flipped, lambda _: b"", lambda _: b"no checkpoint", lambda c: c[1:]]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_with_a_warning(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    run = saved(tmp_path, 2)
    file = tmp_path / CHECKPOINT
    file.write_bytes(damage(file.read_bytes()))
    state, warnings = run.load_checkpoint()
    assert state is not None
    assert state["step"] == 1
    assert torch.equal(state["x"], torch.arange(3000))
    assert warnings == [f"{file} is torn or corrupt and left aside"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_two_damaged_checkpoints_are_none(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    run = saved(tmp_path, 2)
    for file in (tmp_path / CHECKPOINT, tmp_path / PREVIOUS):
        file.write_bytes(damage(file.read_bytes()))
    state, warnings = run.load_checkpoint()
    assert state is None
    assert len(warnings) == 2


def test_whatever_bit_flips_the_state_is_right_or_the_one_before(tmp_path: Path) -> None:
    """Names, lengths and flags of the archive included: no exception, and never wrong numbers."""
    run = Run(tmp_path)
    for step in (1, 2):
        run.save_checkpoint({"step": step, "x": torch.arange(20) * step})
    file = tmp_path / CHECKPOINT
    whole, draw = file.read_bytes(), random.Random(0)
    # No checksum covers the archive's directory: an entry's method (byte 10) and its mark as a folder (byte 38).
    entries = [i for i in range(len(whole)) if whole.startswith(b"PK\x01\x02", i)]
    places = [place for entry in entries for place in ((entry + 10, 3), (entry + 38, 4))]
    places += [(draw.randrange(entries[0], len(whole)), draw.randrange(8)) for _ in range(150)]
    places += [(draw.randrange(len(whole)), draw.randrange(8)) for _ in range(100)]
    assert len(entries) > 3
    for place, bit in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        file.write_bytes(bytes(damaged))
        state, _ = run.load_checkpoint()
        assert state is not None, (place, bit)
        assert torch.equal(state["x"], torch.arange(20) * state["step"]), (place, bit)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"step": 1, "x": Evil()}, tmp_path / CHECKPOINT)
    state, warnings = Run(tmp_path).load_checkpoint()
    assert state is None
    assert len(warnings) == 1
    assert not (tmp_path / "ran").exists()


def test_a_fresh_folder_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for n in (1, 2):
        with Run.create(None, "train-dfq") as run:
            assert run.path.as_posix() == f"runs/train-dfq-{n}"


def test_two_that_ask_for_a_fresh_folder_at_once_get_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one has made its folder after this one has looked, and before it makes its own."""
    monkeypatch.chdir(tmp_path)
    plain, other = Path.mkdir, Path("runs/x-1")

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        if path == other and not other.exists():
            plain(other, parents=True)
        plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with Run.create(None, "x") as run:
        assert run.path == Path("runs/x-2")


BUSY = r"another run is being written in .*: wait for its end, or give another --out"


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Run.create(out, "x") as run:
        write_json(out / "run.json", {})
        for force in (False, True):
            with pytest.raises(ValueError, match=BUSY):
                Run.create(out, "x", force=force)
        with pytest.raises(ValueError, match=BUSY):
            Run.open(out).lock()
        assert Run.open(out).manifest() == {}  # readers may
        assert pickle.loads(pickle.dumps(run)).path == out
    assert names(out) == ["run.json"]
    with Run.open(out).lock(), pytest.raises(ValueError, match=BUSY):
        Run.create(out, "x", force=True)
    assert names(out) == ["run.json"]
    with Run.create(out, "x", force=True):
        assert names(out) == [LOCK]


def test_whoever_is_refused_leaves_the_lock_with_its_owner(tmp_path: Path) -> None:
    with Run.create(tmp_path, "x"):
        for _ in range(2):
            with pytest.raises(ValueError, match=BUSY):
                Run.create(tmp_path, "x")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        Run.create(tmp_path, "x")
    assert names(tmp_path) == ["thesis.tex"]
    with Run.create(tmp_path, "x", force=True):
        pass


def test_a_lock_file_that_was_removed_while_one_waited_for_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner removes the file and lets go between this one's opening and locking: a third would lock another."""
    first, plain = Run(tmp_path).lock(), fcntl.flock

    def flock(file: int, how: int) -> None:
        first.unlock()
        plain(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Run(tmp_path).lock():
        monkeypatch.undo()
        with pytest.raises(ValueError, match=BUSY):
            Run(tmp_path).lock()


def test_without_locks_a_run_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Run.create(tmp_path, "x"):
        pass
    assert names(tmp_path) == []


@pytest.mark.slow
def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """Even while a program that it has started goes on."""
    code = """
import subprocess, sys, time
from datafree.runs import Run
Run.create(sys.argv[1], "x")
child = subprocess.Popen(["sleep", "100"])
print(child.pid, flush=True)
time.sleep(100)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(ValueError, match=BUSY):
                Run.create(tmp_path / "run", "x", force=True)
            process.kill()
            process.wait()
            assert names(tmp_path / "run") == [LOCK]
            with Run.create(tmp_path / "run", "x"):  # what is left over is nothing that stands in the way
                pass
        finally:
            os.kill(child, signal.SIGKILL)
    assert names(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"thesis.tex": "x"}, r"is not empty \(it holds thesis\.tex\): give another --out, or --force"),
        ({"run.json": "{}"}, r"\(it holds run\.json\): go on with --resume, start anew with --force"),
    ],
)
def test_a_folder_that_holds_something_is_refused(tmp_path: Path, content: dict[str, str], text: str) -> None:
    for name, value in content.items():
        (tmp_path / name).write_text(value)
    with pytest.raises(ValueError, match=text):
        Run.create(tmp_path, "x")
    assert names(tmp_path) == list(content)


def test_force_leaves_a_folder_alone_that_merely_has_names_like_ours(tmp_path: Path) -> None:
    others = ("images/precious.png", "labels.safetensors", "tensorboard/events")
    fill(tmp_path, *others)
    with Run.create(tmp_path, "x", force=True):
        assert {name for name in others if (tmp_path / name).is_file()} == set(others)


def test_names_that_are_no_utf_8_do_not_stop_a_file(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.txt", "caf\udce9 é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9 é"


def test_force_removes_a_runs_own_files_and_no_others(tmp_path: Path) -> None:
    fill(tmp_path, *OURS, "run.json", "thesis.tex")
    with Run.create(tmp_path, "x", force=True):
        pass
    assert names(tmp_path) == ["thesis.tex"]


# What commands write into a run's folder: a condensed set, its card, and its scores as docs/report.md keeps them, too.
OURS = (
    "result.json", "checkpoint.pt", "checkpoint.previous.pt", ".checkpoint.pt.new", "report.html",
    "student.safetensors", "condensed.safetensors", "card.md", "evaluation.json", "images/a.png",
    "tensorboard/events.1",
)  # fmt: skip


def fill(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")


@pytest.mark.parametrize("held", [(*OURS, "run.json"), ("images/a.png", "labels.safetensors", SAMPLES)])
def test_force_that_is_interrupted_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: tuple[str, ...]
) -> None:
    """After any of the removals: what tells that the rest is ours goes last."""
    plain, left, interruptions = runs._remove, [0], 0

    def remove(path: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        plain(path)

    monkeypatch.setattr(runs, "_remove", remove)
    for most in range(100):
        fill(tmp_path, *held, "thesis.tex")
        left[0] = most
        try:
            Run.create(tmp_path, "x", force=True).unlock()
        except KeyboardInterrupt:
            left[0], interruptions = 100, interruptions + 1
            Run.create(tmp_path, "x", force=True).unlock()
        else:
            break
        finally:
            assert names(tmp_path) == ["thesis.tex"]
    assert interruptions > len(held)


def test_force_keeps_what_others_call_by_the_same_name(tmp_path: Path) -> None:
    """Nothing says that it is a run's."""
    fill(tmp_path, "card.md", "config.json", "evaluation.json", "images/sea.png", "model.safetensors")
    with Run.create(tmp_path, "x", force=True):
        pass
    assert names(tmp_path) == ["card.md", "config.json", "evaluation.json", "images", "model.safetensors"]


def test_what_a_killed_write_of_a_checkpoint_left_is_removed(tmp_path: Path) -> None:
    others = (".checkpoint.pt.new", ".notes.tmp", "run.json")
    fill(tmp_path, "..checkpoint.pt.new.123.tmp", *others)
    with Run.open(tmp_path).lock():
        assert set(names(tmp_path)) == {*others, ".lock"}


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_torn_one(tmp_path: Path) -> None:
    """It would be written over, though nothing is wrong with it."""
    (tmp_path / CHECKPOINT).mkdir()  # root may read every file
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read: "):
        Run(tmp_path).load_checkpoint()


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(ValueError, match="a is a file: give a folder as --out"):
        Run.create(tmp_path / "a", "x", force=True)
    with pytest.raises(ValueError, match=r"cannot write to .*: Not a directory; give another --out"):
        Run.create(tmp_path / "a" / "b", "x")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"cannot write to .*: Permission denied; give another --out"):
        Run.create(tmp_path / "new", "x")


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so the answer is given
    with pytest.raises(ValueError, match=r"cannot write to .*: no permission; give another --out"):
        Run.create(tmp_path, "x")


def test_open_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run in .* \(it has no run\.json\): start one without --resume"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{torn")
    with pytest.raises(ValueError, match=r"run\.json cannot be read .*: start the run anew with --force") as caught:
        Run.open(tmp_path).manifest()
    assert "\n" not in str(caught.value)
    assert Run.open(tmp_path).result() is None


def test_what_was_logged_after_the_checkpoint_is_cut_off_on_resume(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start_log(0, 0)
    for step in (1, 2):
        run.log({"step": step, "loss": 0.5})
    run.save_checkpoint({"step": 2})
    run.log({"step": 3, "loss": 0.25})  # and then the process is killed
    run.close()

    again = Run(tmp_path)
    state, _ = again.load_checkpoint()
    assert state is not None
    again.start_log(state["metrics_bytes"], state["step"])
    again.log({"step": 3, "loss": 0.125})
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.125}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_log_of_a_fresh_start_is_empty(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("left over\n")
    run = Run(tmp_path)
    run.start_log(0, 0)
    run.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_log_that_cannot_be_opened_is_closed_and_the_reason_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", full)
    run = Run(tmp_path)
    with pytest.raises(WriteError, match="No space left"), contextlib.closing(run):
        run.start_log(0, 0)
    assert run._metrics is None


def test_environment_is_plain(tmp_path: Path) -> None:
    about = runs.environment(torch.device("cpu"))
    assert json.loads(json.dumps(about)) == about
    assert torch.__version__.startswith(about["versions"]["torch"].split("+")[0])
    assert about["machine"]["device"] == "cpu"
    assert 1 < runs.peak_rss_mb() < 1e5


@pytest.mark.parametrize(("step", "purged"), [(0, None), (7, 7)])
def test_tensorboard_forgets_what_came_after_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, purged: int | None
) -> None:
    asked: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            asked.append(purge_step)

        def close(self) -> None: ...

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Writer)
    run = Run(tmp_path)
    run.start_log(0, step)
    run.close()
    assert asked == [purged]
