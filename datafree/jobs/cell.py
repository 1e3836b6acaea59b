"""One cell of a table, in a process of its own: `python -m datafree.jobs.cell`, told by one line of JSON on stdin.

The process ends with 0 (a result is there, finished or failed), 2 (the cell cannot be run here; stderr says why) or 130
(interrupted; what was done is kept, and the next run of the cell goes on from it). When its stdin closes it ends as
interrupted, so that nothing goes on once the parent is gone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datafree.config import CondenseConfig, PretrainConfig
from datafree.data.sources import cache_folder
from datafree.runs import write_json
from datafree.tables.loading import load_table
from datafree.tables.results import WORK, make_content
from datafree.tables.specs import Cell, with_budget
from datafree.training import TermError


class NotHereError(ValueError):
    """What a cell needs is not on this machine: no failure of the cell's."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock; it goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def teacher_options(
    teacher: Mapping[str, Any] | None, *, beside: Path, teachers: Path | None, download: bool
) -> dict[str, Any]:
    """The options of `train` that an entry of [teachers] stands for; trains it where that is how it is made.

    Args:
        teacher: the entry; None: no option, the embedded teacher.
        beside: the table's file; an `arch` in a file is looked for beside it.
        teachers: the folder of teachers' files.
        download: allow downloads of weights.

    Raises:
        NotHereError: the file is not in the folder.
        ValueError: the entry names no teacher, or the file is another one.
    """
    if teacher is None:
        return {}
    options = as_keywords({name: teacher[name] for name in ("arch", "mean", "std") if name in teacher})
    file, colon, function = str(options.get("arch", "")).rpartition(":")
    if colon and file.endswith(".py"):
        options["arch"] = f"{beside.resolve().parent / file}:{function}"
    if "file" in teacher:
        path = (teachers or Path()) / teacher["file"]
        if teachers is None or not path.is_file():
            raise NotHereError(
                f"its teacher {teacher['file']} is not here: name the folder that holds it by --teachers"
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if teacher.get("sha256") not in (None, found):
            raise ValueError(f"{path} has the SHA-256 {found[:12]}..., the table wants {teacher['sha256'][:12]}...")
        return {**options, "teacher": str(path)}
    if "source" in teacher:
        return {**options, "teacher": teacher["source"], "download": download}
    if "pretrain" not in teacher:
        raise ValueError(f"teacher {teacher.get('name')}: give its file, its source or how to pretrain it")
    return {**options, "teacher": str(trained_teacher(teacher["pretrain"], download))}


def as_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as configurations hold them: lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def trained_teacher(recipe: Mapping[str, Any], download: bool = False) -> Path:
    """The folder of a network trained by the recipe (options of `pretrain`); trained once, kept in the cache."""
    from datafree import jobs

    text = json.dumps(dict(recipe), sort_keys=True)
    folder = cache_folder() / "teachers" / hashlib.sha256(text.encode()).hexdigest()[:16]
    with locked(folder.parent / f"{folder.name}.lock"):
        if not (folder / "result.json").is_file():
            jobs.pretrain(PretrainConfig(**as_keywords(recipe), download=download), out=folder, force=True)
    return folder


def run_cell(
    cell: Cell,
    seed: int,
    out: Path,
    *,
    teachers: Path | None = None,
    download: bool = False,
    threads: int | None = None,
    keep: bool = False,
) -> Path:
    """Runs a cell, or goes on with it, and writes its result; a cell that has one is left as it is.

    Args:
        cell: what to run.
        seed: of the run.
        out: the table's folder of results.
        teachers: the folder of teachers' files.
        download: allow downloads.
        threads: where the cell names none.
        keep: leave the run's folder in out/runs.

    Returns:
        The file of the result. What the cell failed with stands in it.

    Raises:
        NotHereError: its teacher or data are not here.
        KeyboardInterrupt: after saving.
    """
    path = out / cell.file_name(seed)
    work = out / WORK / path.stem
    lock = out / WORK / f"{path.stem}.lock"
    with locked(lock):
        if path.exists():  # another process has run it meanwhile
            return path
        begun = time.monotonic()
        try:
            parts = _run(cell, seed, work, teachers, download, threads)
        except NotHereError:
            raise
        except FileNotFoundError as error:
            raise NotHereError(str(error)) from error
        except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
            name = "" if isinstance(error, ValueError | TermError) else f"{type(error).__name__}: "
            parts = {"error": f"{name}{' '.join(str(error).split())}" or type(error).__name__}
        write_json(path, make_content(cell, seed, seconds=time.monotonic() - begun, **parts))
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    lock.unlink(missing_ok=True)  # who waits for it finds the result
    return path


def _run(
    cell: Cell, seed: int, work: Path, teachers: Path | None, download: bool, threads: int | None
) -> dict[str, Any]:
    """Runs the job and returns the parts of the result file."""
    from datafree import jobs

    options = as_keywords(cell.options)
    options |= {"seed": seed, "download": download, "threads": options.get("threads") or threads}
    begun = (work / "run.json").is_file()
    scores = None
    if cell.job == "pretrain":
        jobs.pretrain(PretrainConfig(**options), out=work, force=True)
    elif cell.job == "train":
        options |= teacher_options(cell.teacher, beside=Path(cell.file), teachers=teachers, download=download)
        if not (begun and _gone_on(jobs.resume, work)):
            jobs.train(out=work, force=True, **options)
    else:
        if not (begun and _gone_on(jobs.resume_condense, work)):
            jobs.condense(out=work, force=True, **options)
        assert cell.evaluation is not None
        scores = jobs.evaluate_set(
            work,
            options.get("data", CondenseConfig.data),
            download=download,
            device=options.get("device", CondenseConfig.device),
            **cell.evaluation,
        )
    rows = [json.loads(line) for line in _lines(work / "metrics.jsonl")]
    return {
        "result": json.loads((work / "result.json").read_text(encoding="utf-8")),
        "run": json.loads((work / "run.json").read_text(encoding="utf-8")),
        "scores": scores,
        "curve": [[row["step"], row["seconds"], row["test/accuracy"]] for row in rows if "test/accuracy" in row],
    }


def _gone_on(resume: Any, work: Path) -> bool:
    """Whether the run in the folder could be gone on with, and is finished now."""
    try:
        resume(work)
    except ValueError:  # torn, or of another version: it is started anew
        return False
    return True


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _watch_parent() -> None:
    """Asks this process to stop, as Ctrl-C would, once its stdin has closed."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Reads {"table", "cell", "budget", "seed", "out", "teachers", "download", "threads", "keep"}, runs it."""
    order = json.loads(sys.stdin.buffer.readline())
    _watch_parent()
    cells = load_table(order["table"]).cells
    if order["budget"]:
        cells = tuple(with_budget(cell, order["budget"]) for cell in cells)
    cell = next(cell for cell in cells if cell.name == order["cell"])
    try:
        run_cell(
            cell,
            order["seed"],
            Path(order["out"]),
            teachers=Path(order["teachers"]) if order["teachers"] else None,
            download=order["download"],
            threads=order["threads"],
            keep=order["keep"],
        )
    except NotHereError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
