"""What a cell gave: one JSON a cell and seed, read back against its schema."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.tables.defaults import changed, defaults_of
from datafree.tables.specs import Cell, Table

SCHEMA = 1
WORK = "runs"  # in a table's folder of results: unfinished runs, and with --keep finished ones
# Key -> type; what a result file holds, neither more nor less. The first results have no "defaults".
KEYS: dict[str, Any] = {
    "schema": int,
    "table": str,
    "cell": str,
    "seed": int,
    "hash": str,
    "spec": dict,
    "defaults": dict | None,
    "status": str,
    "error": str | None,
    "seconds": float | int,
    "result": dict | None,
    "scores": dict | None,
    "curve": list,
    "run": dict | None,
}
# The numbers that the pages read of a finished result, and of its scores, by job.
NEEDS = {
    "train": ("student_accuracy", "steps", "images", "total_seconds"),
    "pretrain": ("accuracy", "steps", "total_seconds"),
    "condense": ("steps", "decoded_images", "preparation_seconds"),
}
SCORES = {"condense": ("accuracy_mean", "accuracy_std", "networks", "seconds")}


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """A result file's content; `superseded` where its spec is not the table's any more."""

    path: Path
    cell: str
    seed: int
    digest: str
    status: str
    content: dict[str, Any]

    @property
    def done(self) -> bool:
        return self.status == "done"


def make_content(
    cell: Cell,
    seed: int,
    *,
    seconds: float,
    defaults: Mapping[str, Any],
    error: str | None = None,
    result: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    curve: Iterable[Any] = (),
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a cell's result file. Folders of the machine are left out of all texts.

    Args:
        cell: what was run.
        seed: of the run.
        seconds: that it took.
        defaults: `defaults_of` the cell from before the run began: sources may be edited while it runs.
        error: what it failed with; None: it is done.
        result, scores, curve, run: what it gave, and its manifest.
    """
    named = without_folders({"error": error, "result": result, "scores": scores, "run": run})
    return {
        "schema": SCHEMA,
        "table": cell.table,
        "cell": cell.name,
        "seed": seed,
        "hash": cell.digest(seed),
        "spec": cell.spec(seed),
        "defaults": dict(defaults),
        "status": "done" if error is None else "failed",
        "seconds": round(seconds, 1),
        "curve": list(curve),
        **named,
    }


def without_folders(value: Any) -> Any:
    """Files by their names: folders of the machine that made a run are nobody's business."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return _file_names(value) if isinstance(value, str) else value


# From /, ~/, ./ or ../ on; not of an address, and nothing that merely has a stroke in it, such as 3/8.
_FOLDERS = re.compile(r"(?<![\w./~])(?:~|\.{1,2})?/(?!/)(?:[^\s:'\"=/]+/)*(?=[^/\s])")


def _file_names(text: str) -> str:
    """The text with its paths cut to their last parts; where a folder's name has spaces, if it is a known one."""
    for known in (Path.cwd(), Path.home()):
        if known != known.parent:
            text = text.replace(f"{known}/", "./")
    return _FOLDERS.sub("", text)


def lacking(job: str, result: Mapping[str, Any] | None, scores: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """("result" or "scores", name) of the first number that the pages show and a finished run does not give, if any."""
    for part, held, names in (("result", result, NEEDS), ("scores", scores, SCORES)):
        for name in names.get(job, ()):
            value = (held or {}).get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return part, name
    return None


def read_result(path: Path) -> TableResult:
    """One result file.

    Raises:
        FileNotFoundError: it is not there (any more).
        ValueError: it is malformed; names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:1: not UTF-8 ({error}): remove the file and run the cell again") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{path}:{line}: no valid JSON ({error}): remove the file and run the cell again") from error

    def fail(message: str, key: str = "") -> ValueError:
        at = next((n for n, line in enumerate(text.splitlines(), 1) if key and f'"{key}"' in line), 1)
        return ValueError(f"{path}:{at}: {message}: remove the file and run the cell again")

    if not isinstance(content, dict):
        raise fail("a result is one JSON object")
    for key in content:
        if key not in KEYS:
            raise fail(f"unknown key {key!r}", key)
    content.setdefault("defaults", None)
    for key, kind in KEYS.items():
        if key not in content:
            raise fail(f"no {key!r}")
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise fail(f"{key!r} is {content[key]!r}", key)
    if content["schema"] != SCHEMA:
        raise fail(f"schema {content['schema']}, this version reads {SCHEMA}", "schema")
    if content["status"] not in ("done", "failed"):
        raise fail(f"status {content['status']!r}: done or failed", "status")
    if (content["status"] == "failed") != (content["error"] is not None):
        raise fail("a failed result has an error, and a finished one has none", "error")
    if content["status"] == "done":
        missing = lacking(str(content["spec"].get("job")), content["result"], content["scores"])
        if missing is not None:
            raise fail(f"no number {missing[1]!r} in its {missing[0]}", missing[0])
    return TableResult(
        path=path,
        cell=content["cell"],
        seed=content["seed"],
        digest=content["hash"],
        status=content["status"],
        content=content,
    )


def read_results(folder: Path) -> list[TableResult]:
    """All result files of a table's folder, by name; none where there is no folder."""
    results = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # another process may take one away meanwhile, to run it again
            results.append(read_result(path))
    return results


def current(table: Table, results: Iterable[TableResult]) -> tuple[dict[str, list[TableResult]], list[TableResult]]:
    """Results by the cell they are of, seeds in order; and those that the table would not give any more.

    That is those with another spec, and those made with other defaults.
    """
    cells = {cell.name: cell for cell in table.cells}
    found: dict[str, list[TableResult]] = {name: [] for name in cells}
    superseded = []
    for result in sorted(results, key=lambda each: each.seed):
        cell = cells.get(result.cell)
        if cell is not None and cell.digest(result.seed) == result.digest and not outdated(cell, result):
            found[result.cell].append(result)
        else:
            superseded.append(result)
    return found, superseded


def outdated(cell: Cell, result: TableResult) -> dict[str, tuple[Any, Any]]:
    """Name -> (then, now) of the defaults that have changed since."""
    return changed(result.content["defaults"], defaults_of(cell.job, cell.options))
