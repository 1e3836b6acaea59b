"""The run folder: manifest, checkpoints, metrics, pictures, networks; and the one atomic write of all files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

import datafree

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
NEW = f".{CHECKPOINT}.new"
LOCK = ".lock"  # there while a run is written
SAMPLES = "sampling.json"  # what `sample` writes first: the pictures beside it are its own
_OURS = (
    "result.json", "metrics.jsonl", "report.html", CHECKPOINT, PREVIOUS, NEW, "condensed.safetensors",
)  # fmt: skip
_TEACHER = "teacher.safetensors"  # written before run.json
# What some other program made may bear these names too: they are ours beside one of the marks, which go last.
_COMMON = (
    "images", "tensorboard", "evaluation.json", "card.md", "labels.safetensors", "student.safetensors",
    "generator.safetensors", "model.safetensors",
)  # fmt: skip
_MARKS = (SAMPLES, "run.json")


class WriteError(ValueError):
    """The disk is full or the folder takes no files: no fault of what was to be written."""


def atomic_write(path: Path, content: bytes | memoryview | str) -> None:
    """Writes a temporary file beside `path`, syncs and renames it: `path` has the old or the new content, never a part.

    Text is written as UTF-8; what of a file's name cannot be, by its number.

    Raises:
        WriteError: the folder cannot be written or has no space left; what stood there before still stands.
    """
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # a second Ctrl-C too
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}; free space or give another --out") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def save_network(path: Path, network: nn.Module, about: Mapping[str, Any]) -> None:
    """Writes weights as safetensors with `about` (plain JSON types) under the metadata key "datafree".

    Tensors are stored contiguous: safetensors does not take channels_last.
    """
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in network.state_dict().items()}
    atomic_write(path, save(tensors, metadata={"datafree": json.dumps(dict(about))}))


class Run:
    """One run's folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: Any = None
        self._events: Any = None
        self._lock: int | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.unlock()

    @classmethod
    def create(cls, out: str | Path | None, name: str, *, force: bool = False) -> Run:
        """A fresh folder, locked: `out`, or runs/NAME-N with the first N that is free.

        Raises:
            ValueError: the folder holds something and `force` is not given, or another run is being written there.
            WriteError: it cannot be written.
        """
        path = Path("runs" if out is None else out)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: give a folder as --out")
        try:
            path = _numbered(path, name) if out is None else path
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise PermissionError(13, "no permission")
            with contextlib.ExitStack() as undo:
                run = undo.enter_context(cls(path).lock())
                run._clear(force, hint=not name.startswith("sample"))
                undo.pop_all()
        except OSError as error:
            raise WriteError(f"cannot write to {path}: {error.strerror or error}; give another --out") from error
        return run

    def _clear(self, force: bool, hint: bool) -> None:
        """Removes what a former run left. `hint`: whether a run in the way could be gone on with."""
        held = sorted(p.name for p in self.path.iterdir() if p.name != LOCK)
        if held and not force:
            advice = (
                "go on with --resume, start anew with --force"
                if "run.json" in held and hint
                else "give another --out, or --force"
            )
            raise ValueError(f"{self.path} is not empty (it holds {held[0]}): {advice}")
        known = set(_MARKS) & set(held)
        for ours in (*_OURS, _TEACHER, *(_COMMON if known else ()), *_MARKS):
            _remove(self.path / ours)

    def lock(self) -> Run:
        """Takes the folder for writing until `unlock`, or until the process ends, however it does.

        Raises:
            ValueError: another run is being written there.
            WriteError: the folder cannot be written.
        """
        with _writing(self.path / LOCK):
            self._lock = flock(self.path / LOCK)
        if self._lock is None:
            raise ValueError(f"another run is being written in {self.path}: wait for its end, or give another --out")
        for torn in self.path.glob(f".{NEW}.*.tmp"):  # by a process that was killed: nobody else writes checkpoints now
            torn.unlink(missing_ok=True)
        return self

    def unlock(self) -> None:
        held, self._lock = self._lock, None
        if held is not None:
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink()  # while it is held: nobody else's can stand there
            os.close(held)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run.

        Raises:
            ValueError: no run is there.
        """
        path = Path(path)
        if not (path / "run.json").is_file():
            raise ValueError(f"no run in {path} (it has no run.json): start one without --resume")
        return cls(path)

    def manifest(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.path / 'run.json'} cannot be read ({error}): start the run anew with --force"
            ) from error
        return content

    def result(self) -> dict[str, Any] | None:
        """What result.json holds, or None while the run is not finished."""
        path = self.path / "result.json"
        if not path.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): remove it, and --resume writes it anew") from error
        return content

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Writes the state and keeps the previous checkpoint."""
        self._flush()
        position = self._metrics.tell() if self._metrics is not None else 0
        buffer = BytesIO()
        torch.save({**state, "metrics_bytes": position}, buffer)
        path = self.path / CHECKPOINT
        fresh = self.path / NEW
        with buffer.getbuffer() as content:  # released even where the disk is full: Python 3.13 would complain later
            atomic_write(fresh, content)
        with _writing(path):
            if path.exists():
                os.replace(path, self.path / PREVIOUS)
            os.replace(fresh, path)

    def load_checkpoint(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest whole checkpoint (None if there is none yet) and warnings about torn ones.

        Every byte is checked against the file's own CRCs, and no code is executed.
        """
        warnings: list[str] = []
        for name in (CHECKPOINT, PREVIOUS):
            path = self.path / name
            if not path.exists():
                continue
            state = _read_checkpoint(path)
            if state is not None:
                return state, warnings
            warnings.append(f"{path} is torn or corrupt and left aside")
        return None, warnings

    def last_checkpoint(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """What `load_checkpoint` finds; `say` is told where the run goes on."""
        state, warnings = self.load_checkpoint()
        for line in warnings:
            say(f"warning: {line}")
        say(f"going on from step {state['clock']['step']}" if state else "no checkpoint yet: starting from step 0")
        return state

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl and its numbers to TensorBoard; the row has a "step"."""
        if self._metrics is None:
            self.start_log(0, 0)
        with _writing(self.path / "metrics.jsonl"):
            self._metrics.write((json.dumps(dict(row)) + "\n").encode())
        self._flush()
        with _writing(self.path / "tensorboard"):
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._events.add_scalar(name, value, row["step"])

    def start_log(self, position: int, step: int) -> None:
        """Opens the log; what was written after the checkpoint that is resumed (`position`, `step`) is cut off."""
        from torch.utils.tensorboard import SummaryWriter

        with _writing(self.path):
            self._metrics = open(self.path / "metrics.jsonl", "ab")  # noqa: SIM115 (closed in `close`)
            self._metrics.truncate(min(position, self._metrics.tell()))
            self._metrics.seek(0, os.SEEK_END)
            self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=step or None)

    def picture(self, name: str, png: bytes) -> None:
        """Writes images/NAME.png."""
        with _writing(self.path / "images"):
            (self.path / "images").mkdir(exist_ok=True)
        atomic_write(self.path / "images" / f"{name}.png", png)

    def _flush(self) -> None:
        if self._metrics is not None:
            with _writing(self.path / "metrics.jsonl"):
                self._metrics.flush()

    def close(self) -> None:
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            with _writing(self.path), metrics:
                if self._events is not None:  # None: it could not be opened
                    self._events.close()


def _numbered(folder: Path, name: str) -> Path:
    """Makes FOLDER/NAME-N with the first N that is free; two processes that ask at once get one each."""
    n = 1
    while True:
        try:
            (path := folder / f"{name}-{n}").mkdir(parents=True)
        except FileExistsError:
            n += 1
        else:
            return path


def flock(path: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock on a file, which is made for it; None where another has it, without `wait`."""
    while True:
        held = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(held)
            return None
        except OSError:  # a file system without locks
            return held
        except BaseException:  # a Ctrl-C while it waits
            os.close(held)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), path.stat()):
                return held
        os.close(held)  # who had it until now has removed this file: once more


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    """None where the file was torn. One that may not be read is not taken for that: it would be written over."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(path) as archive:
            # torch reads nothing for an entry that is marked as a folder (0x10), and no checksum covers that mark.
            if archive.testzip() is not None or any(entry.external_attr & 0x10 for entry in archive.infolist()):
                return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile, zlib.error, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        return None
    return state


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, git commit, machine and command, for the manifest."""
    packages = ("torch", "torchvision", "numpy")
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
    return {
        "datafree": datafree.__version__,
        "command": _command(),
        "versions": versions,
        "git": _git_commit(),
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
    }


def _command() -> str:
    """The command line as a person would type it again; for a script, its own."""
    name = Path(sys.argv[0]).name
    return shlex.join(["datafree" if name == "__main__.py" else name, *sys.argv[1:]])


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None when it is installed elsewhere."""
    folder = Path(datafree.__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "-q", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
