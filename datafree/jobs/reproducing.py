"""`reproduce`: the missing cells of a table are run, each in a process of its own, and the table is rendered."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from datafree.config import parse_duration
from datafree.jobs.standing import (
    clear_left,
    clear_logs,
    held,
    hold_log,
    is_left,
    lock_of,
    locked,
    release,
    stands,
    work_of,
)
from datafree.runs import atomic_write, write_json
from datafree.tables import Cell, Table, TableResult, load_table, read_results, render
from datafree.tables.defaults import defaults_of
from datafree.tables.results import current, make_content, outdated
from datafree.tables.specs import COSTS, find_tables, tables_folder, with_budget

POLL_SECONDS = 0.1
# By these a person or the system ends all that runs: the cell goes on later. One killed by any other has failed.
INTERRUPTS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """What `reproduce` leaves behind: counts of cells and seeds, and the rendered page.

    skipped: what could not be run here, with the reason.
    """

    page: Path
    run: int
    found: int
    failed: int
    skipped: tuple[tuple[str, str], ...]


def reproduce(
    table: str | Path,
    *,
    out: str | Path = "results",
    cells: Sequence[str] = (),
    seeds: int | None = None,
    budget: str | None = None,
    shard: str = "0/1",
    jobs: int = 1,
    teachers: str | Path | None = None,
    costs: Sequence[str] | None = None,
    download: bool = False,
    retry: bool = False,
    keep: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Reproduced:
    """Runs the cells of a table that have no result yet, and renders it to OUT/TABLE.md.

    Args:
        table: its name, or a .toml file.
        out: folder of results; OUT/TABLE holds one JSON a cell and seed.
        cells: patterns of the cells to run, such as "mnist/*"; default: all.
        seeds: seeds 0 to this less one; default: the table's.
        budget: wall clock of each cell, instead of its length.
        shard: "i/n" runs every n-th cell and seed, from number i, which counts from 0.
        jobs: cells side by side; above 1 each has one CPU thread where it names no other number.
        teachers: the folder of teachers' files.
        costs: of the cells to run; default: minutes and hours, and gpu where there is one.
        download: allow downloads of data and weights.
        retry: run failed cells again.
        keep: leave the runs' folders in OUT/TABLE/runs.
        say: called with a line a cell.

    Raises:
        ValueError: no such table or cell, something in the table or in a result file is wrong; one line.
        KeyboardInterrupt: after the cells that were running have saved what they had.
    """
    read = load_table(table)
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}: give 1 or more")
    todo = _todo(read, cells, seeds, budget, shard, costs)
    for name, other in twins(read, cells, budget, costs).items():
        say(f"{name}: at this length one with {other}, which is run for both")
    folder = Path(out) / read.name
    read_results(folder, read.name)  # a malformed file is found before anything is run
    there = [_is_there(cell, folder / cell.file_name(seed), retry, say) for cell, seed in todo]
    missing = [each for each, found in zip(todo, there, strict=True) if not found]
    page = Path(out) / f"{read.name}.md"
    say(f"{read.name}: {len(todo)} cells and seeds, {sum(there)} there, {len(missing)} to run")
    for cell, seed in todo:
        clear_logs(folder / cell.file_name(seed))
    if not keep:
        _tidy(folder / cell.file_name(seed) for cell, seed in todo)
    order = {
        "table": str(read.path.resolve()),
        "budget": budget,
        "out": str(folder),
        "teachers": str(teachers) if teachers is not None else None,
        "download": download,
        "keep": keep,
        "retry": retry,
    }
    try:
        skipped = Scheduler(order, folder, jobs, say).run(missing)
    finally:
        write_page(read, folder, page, budget)
    left = {name for name, _ in skipped}
    ran = [held(folder / cell.file_name(seed)) for cell, seed in missing if full_name(cell, seed) not in left]
    results = [result for result in ran if result is not None]
    return Reproduced(
        page=page,
        run=len(results),
        found=sum(there),
        failed=sum(not result.done for result in results),
        skipped=tuple(skipped),
    )


def preview(
    table: str | Path,
    *,
    out: str | Path = "results",
    cells: Sequence[str] = (),
    seeds: int | None = None,
    budget: str | None = None,
    shard: str = "0/1",
    costs: Sequence[str] | None = None,
    retry: bool = False,
) -> list[tuple[str, str]]:
    """What `reproduce` would see to: each cell and seed, its cost and what is there of it. Changes nothing.

    Arguments as for `reproduce`; what a person can mend raises as there.
    """
    read = load_table(table)
    rows = []
    for cell, seed in _todo(read, cells, seeds, budget, shard, costs):
        result = held(Path(out) / read.name / cell.file_name(seed))
        words = [] if result is None else [outcome(result)]
        if result is None or not stands(cell, result, retry):
            words.append("to run" if result is None else "to run again")
        rows.append((full_name(cell, seed), ", ".join([cell.cost, *words])))
    return rows + [(name, f"one with {other}") for name, other in twins(read, cells, budget, costs).items()]


def full_name(cell: Cell, seed: int) -> str:
    return f"{cell.name}, seed {seed}"


def _todo(
    table: Table,
    cells: Sequence[str],
    seeds: int | None,
    budget: str | None,
    shard: str,
    costs: Sequence[str] | None,
) -> list[tuple[Cell, int]]:
    """The cells and seeds that are asked for, whatever is there of them."""
    number, count = parse_shard(shard)
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds is {seeds}: give 1 or more")
    chosen = choose(table, cells, budget, allowed_costs(costs))
    return [(cell, seed) for cell in chosen for seed in range(seeds or table.seeds)][number::count]


def _is_there(cell: Cell, path: Path, retry: bool, say: Callable[[str], None]) -> bool:
    """Whether the cell has a result that stands. Its process makes room for another: that holds the lock."""
    result = held(path)
    if result is None:
        return False
    if other := outdated(cell, result):
        then = ", ".join(f"{name} {before!r}, now {now!r}" for name, (before, now) in sorted(other.items()))
        say(f"{cell.name}: runs again, its result is of other defaults ({then}); the former one is kept")
    return stands(cell, result, retry)


def _tidy(paths: Iterable[Path]) -> None:
    """Clears away what killed processes have left beside results, where nobody is at it."""
    for path in paths:
        if is_left(path):
            with locked(lock_of(path), wait=False, remove=True) as mine:
                if mine:
                    clear_left(path)


def write_page(table: Table, folder: Path, page: Path, budget: str | None = None) -> None:
    """Renders a table with the results in the folder; at another budget, its cells at that one."""
    shown = table
    if budget is not None:
        unique = {cell.name: cell for cell in at_length(table, budget).values()}
        shown = dataclasses.replace(table, cells=tuple(unique.values()))
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(page, ("\n".join(render(shown, read_results(folder, table.name), page)).rstrip() + "\n").encode())


def status(out: str | Path) -> list[tuple[Table, int, int]]:
    """Each table of the package: how many cells have a finished result that is shipped, and one in `out`."""
    return [
        (table, _finished(table, tables_folder() / "results"), _finished(table, Path(out)))
        for table in map(load_table, find_tables())
    ]


def _finished(table: Table, folder: Path) -> int:
    found, _ = current(table, read_results(folder / table.name, table.name))
    return sum(any(result.done for result in results) for results in found.values())


def choose(table: Table, patterns: Sequence[str], budget: str | None, costs: Sequence[str]) -> list[Cell]:
    """The cells that are asked for, in the table's order; a cell that is named is run whatever it costs.

    Cells that are one spec at the budget are one cell.
    """
    chosen = _chosen(table, patterns, costs)
    if budget is None:
        return chosen
    parse_duration(budget)
    of = at_length(table, budget)
    return list({of[cell.name].name: of[cell.name] for cell in chosen}.values())


def at_length(table: Table, budget: str) -> dict[str, Cell]:
    """Name in the table -> its cell at the budget; of those that are one spec then, the first for all of them."""
    first: dict[str, Cell] = {}
    cells = {cell.name: with_budget(cell, budget) for cell in table.cells}
    return {name: first.setdefault(cell.digest(0), cell) for name, cell in cells.items()}


def twins(table: Table, patterns: Sequence[str], budget: str | None, costs: Sequence[str] | None) -> dict[str, str]:
    """Name at the budget of each cell that is asked for -> that of the cell that is run in its place."""
    if budget is None:
        return {}
    of = at_length(table, budget)
    names = {with_budget(c, budget).name: of[c.name].name for c in _chosen(table, patterns, allowed_costs(costs))}
    return {name: other for name, other in names.items() if name != other}


def _chosen(table: Table, patterns: Sequence[str], costs: Sequence[str]) -> list[Cell]:
    for pattern in patterns:
        if not any(_matches(cell, pattern) for cell in table.cells):
            names = ", ".join(cell.name for cell in table.cells[:8])
            more = ", ..." if len(table.cells) > 8 else ""
            raise ValueError(f"{table.name} has no cell {pattern!r}: take GROUP/ROW of {names}{more}")
    if patterns:
        return [cell for cell in table.cells if any(_matches(cell, pattern) for pattern in patterns)]
    return [cell for cell in table.cells if cell.cost in costs]


def _matches(cell: Cell, pattern: str) -> bool:
    return fnmatchcase(cell.name, pattern) or fnmatchcase(f"{cell.group}/{cell.row}", pattern)


def allowed_costs(costs: Sequence[str] | None) -> Sequence[str]:
    """The classes given; without any, what this machine can be asked to do."""
    if costs:
        for cost in costs:
            if cost not in COSTS:
                raise ValueError(f"--cost {cost}: take {', '.join(COSTS)}")
        return costs
    import torch

    return COSTS if torch.cuda.is_available() else COSTS[:2]


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        ValueError: not of that form, or i is not below n.
    """
    first, slash, second = text.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and int(first) < int(second):
        return int(first), int(second)
    raise ValueError(f"--shard {text}: give i/n with i from 0 to n - 1, such as 0/8")


@dataclass
class Scheduler:
    """Runs cells side by side, in order; a cell of several threads takes as many places.

    Attributes:
        order: what all children are told.
        folder: of the results; the children's words go to runs/CELL.PID.log there, with our own number.
        jobs: places.
        say: called with a line a cell.
    """

    order: dict[str, Any]
    folder: Path
    jobs: int
    say: Callable[[str], None]

    def run(self, missing: Sequence[tuple[Cell, int]]) -> list[tuple[str, str]]:
        """Returns what could not be run here, with the reason."""
        waiting, running, skipped = list(missing), list[Child](), list[tuple[str, str]]()
        done = 0
        try:
            while waiting or running:
                while waiting and self._places(waiting[0][0]) <= self.jobs - sum(c.places for c in running):
                    running.append(self._start(*waiting.pop(0)))
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    done += 1
                    self.say(f"[{done}/{len(missing)}] {child.name}: {self.outcome(child, skipped)}")
                time.sleep(POLL_SECONDS)
        finally:
            for child in running:  # interrupted: they have the signal, or get it by the end of their stdin
                child.close()
            for child in running:
                child.process.wait()
                child.log.unlink(missing_ok=True)
        return skipped

    def _places(self, cell: Cell) -> int:
        return max(1, min(cell.threads or 1, self.jobs))

    def _start(self, cell: Cell, seed: int) -> Child:
        places = self._places(cell)
        threads = cell.threads or (1 if self.jobs > 1 else None)
        path = self.folder / cell.file_name(seed)
        log = work_of(path).with_name(f"{path.stem}.{os.getpid()}.log")  # others may wait for this cell
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        with open(log, "wb") as words:
            hold_log(words)
            process = subprocess.Popen(
                [sys.executable, "-m", "datafree.jobs.cell"],
                stdin=subprocess.PIPE,
                stdout=words,
                stderr=words,
                env=environment,
            )
        assert process.stdin is not None
        order = {**self.order, "cell": cell.name, "seed": seed, "threads": threads}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        return Child(cell, seed, process, process.stdin, places, path, log)

    def outcome(self, child: Child, skipped: list[tuple[str, str]]) -> str:
        """What became of a cell whose process has ended, in a few words; adds to what was skipped.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        child.close()
        code, words = child.process.returncode, child.words()
        result = held(child.path)
        if code in (0, 2, 130):  # it has said all; of a crash the log stays
            child.log.unlink(missing_ok=True)
        if result is not None and (code == 0 or stands(child.cell, result, self.order["retry"])):
            child.log.unlink(missing_ok=True)
            return outcome(result)
        reason = words[-1] if words else f"its process ended with {code}"
        if code in (130, -2, -15):
            raise KeyboardInterrupt("interrupted; the same command goes on")
        if code < 0 and -code not in INTERRUPTS and (result := record_death(child, self.order["keep"])) is not None:
            child.log.unlink(missing_ok=True)
            return outcome(result)
        skipped.append((child.name, reason))
        return f"not run: {reason}"


@dataclass
class Child:
    """A running cell."""

    cell: Cell
    seed: int
    process: subprocess.Popen[bytes]
    stdin: IO[bytes]
    places: int
    path: Path
    log: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return full_name(self.cell, self.seed)

    def words(self) -> list[str]:
        """The lines that it has said; none where somebody has removed them."""
        try:
            return self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except FileNotFoundError:
            return []

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()


def record_death(child: Child, keep: bool) -> TableResult | None:
    """Writes down that a cell has failed whose process was killed, and could not do so itself.

    None, and nothing is written, where another process is at the cell by now, or has a result of it.
    """
    number = -child.process.returncode
    name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    hint = " (was there too little memory?)" if number == signal.SIGKILL else ""
    error = ": ".join([f"its process was killed by {name}{hint}", *child.words()[-1:]])
    with locked(lock_of(child.path), wait=False, remove=True) as mine:
        if not mine or held(child.path) is not None:
            return None
        cell = child.cell
        defaults = defaults_of(cell.job, cell.options)
        seconds = time.monotonic() - child.begun
        write_json(child.path, make_content(cell, child.seed, seconds=seconds, defaults=defaults, error=error))
        release(work_of(child.path), keep)
    return held(child.path)


def outcome(result: TableResult) -> str:
    """A result in a few words."""
    content = result.content
    if not result.done:
        return f"failed: {content['error']}"
    found = content["scores"] or content["result"]
    value = next(found[name] for name in ("accuracy_mean", "student_accuracy", "accuracy") if name in found)
    return f"{100 * value:.2f} % after {content['seconds']:.0f} s"
