"""What a table is: cells, each a job with its options, and the figure it is compared with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

COSTS = ("minutes", "hours", "gpu")
LENGTHS = ("steps", "epochs", "budget")
EVALUATION: dict[str, Any] = {
    "protocol": "default",
    "networks": None,
    "archs": [],
    "precision": "32",
    "validation": False,
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure read in a source, in per cent; spread and tolerance in points."""

    value: float
    spread: float | None
    source: str
    tolerance: float

    def __str__(self) -> str:
        return f"{self.value:g}" + ("" if self.spread is None else f" ± {self.spread:g}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a table, but for its seed.

    Attributes:
        name: "GROUP/ROW", with "@BUDGET" where the table has several budgets.
        job: "train", "condense" or "pretrain".
        options: the job's and the method's, as keywords.
        teacher: an entry of [teachers], with its name; None where the job has none or the embedded one.
        evaluation: how a condensed set is judged; None for other jobs.
        cost: "minutes", "hours" (on two CPU cores) or "gpu".
        published: what it is compared with.
    """

    table: str
    group: str
    row: str
    name: str
    title: str
    job: str
    options: Mapping[str, Any]
    teacher: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    cost: str
    published: Published | None = None
    file: str = ""
    line: int = 1

    def spec(self, seed: int) -> dict[str, Any]:
        """All that decides the result."""
        teacher = {k: v for k, v in (self.teacher or {}).items() if k not in ("name", "title")}
        # What is as by default is left out, so that a new entry with a default does not make old results stale.
        evaluation = {k: v for k, v in (self.evaluation or {}).items() if v != EVALUATION[k]}
        return {
            "job": self.job,
            "options": {**self.options, "seed": seed},
            "teacher": teacher or None,
            "evaluation": evaluation or None,
        }

    def digest(self, seed: int) -> str:
        """The hash of `spec`: 16 hexadecimal digits."""
        return digest_of(self.spec(seed))

    def file_name(self, seed: int) -> str:
        """Of its result: readable, and one for each hash."""
        return file_name(self.name, seed, self.digest(seed))

    @property
    def threads(self) -> int:
        return int(self.options.get("threads") or 0)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A specification, read and checked."""

    name: str
    title: str
    path: Path
    cells: tuple[Cell, ...]
    groups: Mapping[str, str]  # name -> title
    papers: tuple[str, ...] = ()
    metric: str = ""
    protocol: str = ""
    notes: str = ""
    order: int = 99
    layout: str = "rows"
    seeds: int = 1


def digest_of(spec: Mapping[str, Any]) -> str:
    """The hash of what decides a result: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


# Letters of a cell's name in that of its file: a file system may take 255 bytes, of up to four a letter.
PLAIN = 50


def file_name(cell: str, seed: int, digest: str) -> str:
    """Of a result of the cell with that name."""
    plain = re.sub(r"[^\w.-]+", "-", cell)[:PLAIN]
    return f"{plain}-{seed}-{digest[:8]}.json"


def beside_table(table: Path, network: str) -> str:
    """The name of a network; FILE.py:FUNCTION is looked for beside the table, wherever one stands."""
    file, colon, function = network.rpartition(":")
    if not colon or not file.endswith(".py"):
        return network
    return f"{table.resolve().parent / os.path.expanduser(file)}:{function}"


def missing_file(table: Path, network: str) -> Path | None:
    """The file of a network FILE.py:FUNCTION, where it is not there."""
    found = beside_table(table, network)
    file = Path(found.rpartition(":")[0])
    return file if file.suffix == ".py" and not os.path.isfile(file) else None


def with_budget(cell: Cell, budget: str) -> Cell:
    """The cell at another length; its name says so."""
    options = {**{k: v for k, v in cell.options.items() if k not in LENGTHS}, "budget": budget}
    return dataclasses.replace(cell, options=options, name=f"{cell.group}/{cell.row}@{budget}")


def tables_folder() -> Path:
    """Where the package's own tables stand."""
    return Path(str(files("datafree.benchmarks"))).resolve()


def find_tables() -> dict[str, Path]:
    """The package's tables by name, in the order of the page."""
    paths = {path.stem: path for path in sorted(tables_folder().glob("*.toml"))}
    return dict(sorted(paths.items(), key=lambda item: (_order(item[1]), item[0])))


def _order(path: Path) -> int:
    match = re.search(r"^order\s*=\s*(\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return int(match[1]) if match else 99
