"""What a cell gave: one JSON a cell and seed, read back against its schema."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.tables.defaults import cell_defaults, changed
from datafree.tables.schema import SCHEMA, problems, run_problems
from datafree.tables.specs import Cell, Table, file_name

WORK = "runs"  # in a table's folder of results: unfinished runs, and with --keep finished ones


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """A result file's content, which keeps to the schema; its hash and its name are those of its spec."""

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
        defaults: `cell_defaults` from before the run began: sources may be edited while it runs.
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
    return _FOLDERS.sub("", text).encode("utf-8", "replace").decode()  # a file's name may be no text


def lacking(job: str, result: Mapping[str, Any] | None, scores: Mapping[str, Any] | None) -> str | None:
    """The first thing that keeps a run from being finished, in words: a number that is not there or makes no sense."""
    return next((words for _, words in run_problems(job, result, scores)), None)


AGAIN = "remove the file and run the cell again"


def read_result(path: Path, table: str | None = None) -> TableResult:
    """One result file; `table`: that it has to be of.

    Raises:
        FileNotFoundError: it is not there (any more).
        ValueError: it is malformed, or its hash or name is not that of its spec; names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): move it elsewhere") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{line_of(error)}: not UTF-8 ({error}): {AGAIN}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{getattr(error, 'lineno', 1)}: no valid JSON ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}:1: a result is one JSON object: {AGAIN}")
    for key in ("defaults", "superseded"):
        content.setdefault(key, None)
    keys, wrong = next(problems(content), ((), ""))
    if not wrong and table not in (None, content["table"]):
        keys, wrong = ("table",), f"a result of the table {content['table']!r} among those of {table!r}"
    if not wrong:
        name = file_name(content["cell"], content["seed"], content["hash"])
        if OLD.sub("", path.stem) != name.removesuffix(".json"):
            keys, wrong = ("cell",), f"its cell, seed and hash make the name {name}"
    if wrong:
        raise ValueError(f"{path}:{_line(text, keys)}: {wrong}: {AGAIN}")
    return TableResult(
        path=path,
        cell=content["cell"],
        seed=content["seed"],
        digest=content["hash"],
        status=content["status"],
        content=content,
    )


OLD = re.compile(r"-old(\d+)$")


def _old(path: Path) -> int:
    """N of CELL-oldN.json, a result that has made room for another; 0: of CELL.json."""
    match = OLD.search(path.stem)
    return int(match[1]) if match else 0


def line_of(error: UnicodeDecodeError) -> int:
    """Where a text ceases to be UTF-8; counts from 1."""
    return 1 + error.object[: error.start].count(b"\n")


def _line(text: str, keys: Iterable[str]) -> int:
    """Of a key within others, or of the innermost of them that is there."""
    lines, at = text.splitlines(), 0
    for key in keys:
        at = next((n for n in range(at, len(lines)) if f"{json.dumps(key)}:" in lines[n]), at)
    return at + 1


def read_results(folder: Path, table: str | None = None) -> list[TableResult]:
    """All result files of a table's folder, by name; none where there is no folder. Raises as `read_result`."""
    results = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # another process may take one away meanwhile, to run it again
            results.append(read_result(path, table))
    return results


def current(table: Table, results: Iterable[TableResult]) -> tuple[dict[str, list[TableResult]], list[TableResult]]:
    """Results by the cell they are of, seeds in order; and all others.

    Every run of today's spec and defaults counts, those of one seed too where wall clock gives each of them another
    figure: to count one would be to choose it. The others are those with another spec, with other defaults or marked as
    superseded, and those that repeat one that counts.
    """
    found: dict[str, list[TableResult]] = {cell.name: [] for cell in table.cells}
    others = []
    for result in sorted(results, key=lambda each: (each.seed, _old(each.path))):
        if is_of_today(table, result) and not any(_repeats(table, result, each) for each in found[result.cell]):
            found[result.cell].append(result)
        else:
            others.append(result)
    return found, others


def _repeats(table: Table, result: TableResult, other: TableResult) -> bool:
    """Whether a result of the same cell is a copy, or another run of the seed that can but give the same."""
    timed = table.layout == "speed" or "budget" in result.content["spec"]["options"]
    alike = (result.seed, result.status) == (other.seed, other.status)
    return alike and (not timed or result.content == other.content)


def is_of_today(table: Table, result: TableResult) -> bool:
    """Whether the table would give this result now: its spec and its defaults are today's."""
    cell = next((cell for cell in table.cells if cell.name == result.cell), None)
    return cell is not None and cell.digest(result.seed) == result.digest and not outdated(cell, result)


def outdated(cell: Cell, result: TableResult) -> dict[str, tuple[Any, Any]]:
    """Name -> (then, now) of the defaults that have changed since; the reason of one that is marked as superseded."""
    reason = result.content["superseded"]
    marked = {} if reason is None else {"superseded": (reason, None)}
    return marked | changed(result.content["defaults"], cell_defaults(cell))
