"""What there is of a cell on disk, beside its result OUT/CELL.json: OUT/runs/CELL, its run, and OUT/runs/CELL.lock.

Who holds the lock alone changes any of it. The run's folder holds defaults.json until a person's --keep hands it over:
so a folder that a kill has left behind is told from one that is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from datafree.runs import flock, write_json
from datafree.tables import Cell, TableResult
from datafree.tables.results import OLD, WORK, outdated, read_result

DEFAULTS = "defaults.json"


@contextmanager
def locked(path: Path, *, wait: bool = True, remove: bool = False) -> Iterator[bool]:
    """Holds a lock between processes, which goes with the process, however that ends.

    Args:
        path: of a file that is made for it.
        wait: until no other holds it; else the value says whether this one does.
        remove: the file, at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = flock(path, wait=wait)
    if descriptor is None:
        yield False
        return
    with os.fdopen(descriptor, "wb"):
        try:
            yield True
        finally:
            if remove:
                path.unlink(missing_ok=True)


def work_of(path: Path) -> Path:
    """The folder of the run that a result's file is made from."""
    return path.parent / WORK / path.stem


def lock_of(path: Path) -> Path:
    return path.parent / WORK / f"{path.stem}.lock"


def held(path: Path) -> TableResult | None:
    """The result, if there is one at this moment."""
    try:
        return read_result(path)
    except FileNotFoundError:
        return None


def stands(cell: Cell, result: TableResult, retry: bool) -> bool:
    """Whether the cell need not be run: its result is of today's defaults, and no failure to `retry`."""
    return not outdated(cell, result) and (result.done or not retry)


def make_room(cell: Cell, path: Path) -> None:
    """Takes a result that does not stand away, and the run it came from.

    A result of other defaults is kept as CELL-oldN, and so is a run that was handed over. A set that was condensed and
    not scored stays: it is gone on with.
    """
    old, work, result = free(path), work_of(path), read_result(path)
    other, handed_over, waits = bool(outdated(cell, result)), _handed_over(work), unscored(result)
    path.rename(old) if other else path.unlink()
    if handed_over:
        work.rename(work_of(old))
    elif other or not waits:
        shutil.rmtree(work, ignore_errors=True)


def free(path: Path) -> Path:
    """The first CELL-oldN.json of which there is neither a result nor a run; of another CELL-oldN.json likewise."""
    stem = OLD.sub("", path.stem)
    olds = (path.with_name(f"{stem}-old{number}.json") for number in itertools.count(1))
    return next(name for name in olds if not name.exists() and not work_of(name).exists())


def _handed_over(work: Path) -> bool:
    return (work / "run.json").is_file() and not (work / DEFAULTS).is_file()


def unscored(result: TableResult) -> bool:
    """Whether it is of a condensed set that is there, and whose scoring has failed."""
    condensed = (work_of(result.path) / "result.json").is_file()
    return not result.done and result.content["spec"]["job"] == "condense" and condensed


def goes_on(work: Path, defaults: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run of these defaults; if not, it is emptied for one.

    A run that was handed over, and whose result a person has removed, is kept as CELL-oldN.
    """
    try:
        then = json.loads((work / DEFAULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        then = None
    if then == json.loads(json.dumps(defaults)):
        return (work / "run.json").is_file()
    if _handed_over(work):
        work.rename(work_of(free(work.parent.parent / f"{work.name}.json")))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / DEFAULTS, defaults)
    return False


def drop_empty(work: Path) -> None:
    """Removes a folder in which no run has begun."""
    if not (work / "run.json").is_file():
        shutil.rmtree(work, ignore_errors=True)


def release(path: Path, keep: bool) -> None:
    """Removes the run whose result is written there, or hands its folder over; one that is not scored stays."""
    work = work_of(path)
    if unscored(read_result(path)):
        return
    if keep:
        (work / DEFAULTS).unlink(missing_ok=True)
    else:
        shutil.rmtree(work, ignore_errors=True)


def is_left(path: Path) -> bool:
    """Whether a kill between the result and the end has left the run behind; one that was kept is none."""
    result = held(path)
    return result is not None and not unscored(result) and (work_of(path) / DEFAULTS).is_file()


def clear_left(path: Path) -> None:
    """Removes a run that was left behind. Needs the lock."""
    if is_left(path):
        shutil.rmtree(work_of(path), ignore_errors=True)


def hold_log(file: IO[bytes]) -> None:
    """Marks a log as in use for as long as any process has it open, however its writers end."""
    with contextlib.suppress(OSError):  # a file system without locks: its logs stay
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def clear_logs(path: Path) -> None:
    """Removes what was said by processes of a cell that are gone, with those who would have read it."""
    for log in work_of(path).parent.glob(f"{glob.escape(path.stem)}.*.log"):
        with contextlib.suppress(OSError), open(log, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.unlink(missing_ok=True)
