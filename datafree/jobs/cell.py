"""One cell of a table, in a process of its own: `python -m datafree.jobs.cell`, told by one line of JSON on stdin.

The process ends with 0 (a result is there, finished or failed), 2 (the cell cannot be run here, or the disk is full;
stderr says why) or 130 (interrupted). After a full disk or an interruption what was done is kept, and the next run of
the cell goes on from it. When its stdin closes it ends as interrupted: nothing goes on once the parent is gone.
One that is killed by a signal cannot write a result: its parent writes that it has failed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datafree.config import CondenseConfig, PretrainConfig
from datafree.data import load_data
from datafree.data.sources import cache_folder, find_data, missing_message
from datafree.jobs import standing
from datafree.jobs.standing import locked
from datafree.runs import WriteError, write_json
from datafree.tables.defaults import cell_defaults, defaults_of
from datafree.tables.loading import load_table
from datafree.tables.results import lacking, make_content
from datafree.tables.specs import Cell, beside_table, find_tables, with_budget
from datafree.training import TermError

FULL = (errno.ENOSPC, errno.EDQUOT)


class NotHereError(ValueError):
    """What a cell needs is not on this machine: no failure of the cell's."""


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
    options = _of_table(beside, {name: teacher[name] for name in ("arch", "mean", "std") if name in teacher})
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
    return {**options, "teacher": str(trained_teacher(_of_table(beside, teacher["pretrain"]), download))}


def _of_table(table: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """A table's options, with networks in files by their paths."""
    networks = {name: beside_table(table, options[name]) for name in ("student", "arch", "teacher") if name in options}
    return {**options, **networks}


def trained_teacher(recipe: Mapping[str, Any], download: bool = False) -> Path:
    """The folder of a network trained by the recipe (options of `pretrain`); trained once, kept in the cache.

    One that was interrupted goes on. Other defaults, or another file of the network or of the data, make another one.
    """
    from datafree import jobs

    held = [dict(recipe), defaults_of("pretrain", recipe), data_state(str(recipe.get("data", "")))]
    file = Path(str(recipe.get("arch", "")).rpartition(":")[0])
    if file.suffix == ".py" and file.is_file():
        held.append(hashlib.sha256(file.read_bytes()).hexdigest())
    text = json.dumps(held, sort_keys=True)
    folder = cache_folder() / "teachers" / hashlib.sha256(text.encode()).hexdigest()[:16]
    with locked(folder.parent / f"{folder.name}.lock"):
        begun = (folder / "run.json").is_file()
        if not (folder / "result.json").is_file() and not (begun and _gone_on(jobs.resume_pretrain, folder)):
            jobs.pretrain(PretrainConfig(**recipe, download=download), out=folder, force=True)
    return folder


def data_state(name: str) -> str | None:
    """What tells the data behind npz:FILE or imagefolder:PATH from others of that name; None for a data set's name."""
    kind, _, where = name.partition(":")
    if kind not in ("npz", "imagefolder"):
        return None
    path = Path(os.path.expanduser(where))  # ~name of no user stays as it is
    walked = os.walk(path, followlinks=True)  # as the loader does
    files = sorted(Path(folder, name) for folder, _, names in walked for name in names) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    seen = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def tested_on(cell: Cell) -> str | None:
    """The data that a distillation's student is tested on: those it names, else those that its teacher is trained on.

    None where only the teacher's file may say so.
    """
    if "data" in cell.options:
        return str(cell.options["data"])
    recipe = {} if cell.teacher is None else cell.teacher.get("pretrain")
    return None if recipe is None else str(recipe.get("data", PretrainConfig.data))


def check_data(name: str, split: str, download: bool) -> None:
    """Looks for data that a run would do without.

    Raises:
        NotHereError: they are not here; or could not be fetched, where `download` allows that.
        ValueError: no such data.
    """
    if find_data(name) is not None:
        return
    if not download:
        raise NotHereError(missing_message(name))
    try:
        load_data(name, download=True, splits=(split,))
    except FileNotFoundError as error:
        raise NotHereError(str(error)) from error


def run_cell(
    cell: Cell,
    seed: int,
    out: Path,
    *,
    teachers: Path | None = None,
    download: bool = False,
    threads: int | None = None,
    keep: bool = False,
    retry: bool = False,
    recipes: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Runs a cell, or goes on with it, and writes its result; a result that stands is left as it is.

    Args:
        cell: what to run.
        seed: of the run.
        out: the table's folder of results.
        teachers: the folder of teachers' files.
        download: allow downloads.
        threads: where the cell names none.
        keep: leave the run's folder in out/runs.
        retry: run it again where it has failed; of a condensed set whose scoring has, the scoring.
        recipes: of the table's teachers; a network trained by one of them is the cached one.

    Returns:
        The file of the result. What the cell failed with stands in it.

    Raises:
        NotHereError: its teacher or data are not here.
        WriteError: the disk is full; the run's folder is kept.
        KeyboardInterrupt: after saving.
    """
    path = out / cell.file_name(seed)
    work = standing.work_of(path)
    with locked(standing.lock_of(path), remove=True):
        if (result := standing.held(path)) is not None:
            if standing.stands(cell, result, retry):  # another process may have run it meanwhile
                if not keep:
                    standing.clear_left(path)
                return path
            standing.make_room(cell, path)
        begun = time.monotonic()
        defaults = cell_defaults(cell)  # what the run has, whatever happens to the sources meanwhile
        try:
            goes_on = standing.goes_on(work, defaults)
            if cell.job == "pretrain" and seed == 0 and cell.options in recipes:
                teacher = trained_teacher(_of_table(Path(cell.file), cell.options), download)
                shutil.copytree(teacher, work, dirs_exist_ok=True)
                goes_on = True
            parts = _run(cell, seed, work, goes_on, teachers, download, threads)
        except WriteError:
            raise
        except (NotHereError, FileNotFoundError) as error:
            standing.drop_empty(work)
            raise NotHereError(str(error)) from error
        except Exception as error:  # a network of one's own may raise anything: the other cells go on
            if isinstance(error, OSError) and error.errno in FULL:
                raise WriteError(f"cannot write {error.filename or work}: {error.strerror}; free space") from error
            parts = {"error": _said(error)}
        seconds = _seconds(parts) or time.monotonic() - begun
        try:
            write_json(path, make_content(cell, seed, seconds=seconds, defaults=defaults, **parts))
        except WriteError as error:
            if "error" not in parts:
                raise
            raise WriteError(f"{error}; the cell has failed: {parts['error']}") from error
        standing.release(path, keep)
    return path


def _said(error: Exception) -> str:
    """An error in a line; one that nobody expects, with the place it comes from."""
    text, name = " ".join(str(error).split()), type(error).__name__
    if isinstance(error, ValueError | TermError):
        return text or name
    said = f"{name}: {text}" if text else name
    if isinstance(error, OSError | RuntimeError | ArithmeticError | MemoryError):
        return said
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{said} ({Path(last.filename).name}, line {last.lineno})"


def _seconds(parts: Mapping[str, Any]) -> float | None:
    """What a run took with its scoring, in all its sittings and without its teacher's training; None: not known."""
    result, scores = parts.get("result") or {}, parts.get("scores") or {}
    if "total_seconds" not in result:
        return None
    return float(result["total_seconds"] + result.get("preparation_seconds", 0.0) + scores.get("seconds", 0.0))


def _run(
    cell: Cell, seed: int, work: Path, begun: bool, teachers: Path | None, download: bool, threads: int | None
) -> dict[str, Any]:
    """Runs the job, or goes on with one that has begun, and returns the parts of the result file."""
    from datafree import jobs

    table = Path(cell.file)
    options = _of_table(table, cell.options)
    options |= {"seed": seed, "download": download, "threads": options.get("threads") or threads}
    scores = None
    if cell.job == "pretrain":
        if not (begun and _gone_on(jobs.resume_pretrain, work)):
            jobs.pretrain(PretrainConfig(**options), out=work, force=True)
    elif cell.job == "train":
        if (name := tested_on(cell)) is not None:  # other jobs begin with their data; this one ends with them
            check_data(name, "train" if cell.options.get("validation") else "test", download)
        options |= teacher_options(cell.teacher, beside=table, teachers=teachers, download=download)
        if not (begun and _gone_on(jobs.resume, work)):
            jobs.train(out=work, force=True, **options)
    else:
        if not (begun and _gone_on(jobs.resume_condense, work)):
            jobs.condense(out=work, force=True, **options)
        assert cell.evaluation is not None
        named = {beside_table(table, arch): arch for arch in cell.evaluation["archs"]}
        scores = jobs.evaluate_set(
            work,
            options.get("data", CondenseConfig.data),
            download=download,
            device=options.get("device", CondenseConfig.device),
            seed=seed,
            **{**cell.evaluation, "archs": list(named)},
        )
        if named:  # as the table has them: pages look for these
            scores["archs"] = {named.get(arch, arch): held for arch, held in scores["archs"].items()}
        write_json(work / "evaluation.json", scores)  # where `report` looks for them, in runs that --keep hands over
    rows = [json.loads(line) for line in _lines(work / "metrics.jsonl")]
    parts = {
        "result": json.loads((work / "result.json").read_text(encoding="utf-8")),
        "run": json.loads((work / "run.json").read_text(encoding="utf-8")),
        "scores": scores,
        "curve": [[row["step"], row["seconds"], row["test/accuracy"]] for row in rows if "test/accuracy" in row],
    }
    if wrong := lacking(cell.job, parts["result"], scores):
        why = [line for line in parts["run"].get("choices", ()) if line.startswith("test data: ")]
        parts["error"] = why[0] if why else wrong
    return parts


def _gone_on(resume: Any, work: Path) -> bool:
    """Whether the run in the folder could be gone on with, and is finished now."""
    try:
        resume(work)
    except WriteError:  # nothing is wrong with the run
        raise
    except ValueError:  # torn, or of another version: it is started anew
        return False
    return True


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _watch_parent() -> None:
    """Asks this process to stop, as Ctrl-C would, once its stdin has closed."""

    def wait() -> None:
        # Not sys.stdin: a thread that waits there holds its lock, and Python aborts when it ends meanwhile.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Reads {"table", "cell", "budget", "seed", "out", "teachers", "download", "threads", "keep", "retry"}, runs it."""
    order = json.loads(sys.stdin.buffer.readline())
    _watch_parent()
    cells = load_table(order["table"]).cells
    recipes = [cell.teacher["pretrain"] for cell in cells if cell.teacher and "pretrain" in cell.teacher]
    if order["budget"]:
        cells = tuple(with_budget(cell, order["budget"]) for cell in cells)
    cell = next(cell for cell in cells if cell.name == order["cell"])
    # What a person types for this; the run writes it down. A length that was given takes the place of the table's.
    length = ["--budget", order["budget"]] if order["budget"] else []
    named = [f"{cell.group}/{cell.row}" if length else cell.name, *length, "--seeds", str(order["seed"] + 1)]
    table = cell.table if cell.table in find_tables() else order["table"]
    sys.argv = ["__main__.py", "reproduce", table, "--cell", *named]
    try:
        run_cell(
            cell,
            order["seed"],
            Path(order["out"]),
            teachers=Path(order["teachers"]) if order["teachers"] else None,
            download=order["download"],
            threads=order["threads"],
            keep=order["keep"],
            retry=order["retry"],
            recipes=recipes,
        )
    except (NotHereError, WriteError) as error:
        with contextlib.suppress(OSError):  # the words go to a file, on the disk that may be full
            print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
