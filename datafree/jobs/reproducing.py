"""`reproduce`: the missing cells of a table are run, and the table is rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datafree.arguments import checked
from datafree.jobs.choosing import allowed_costs, at_length, choose, parse_shard, spelt, twins
from datafree.jobs.paths import check_folder
from datafree.jobs.scheduling import Scheduler, full_name, outcome
from datafree.jobs.standing import clear_left, clear_logs, held, is_left, lock_of, locked, stands
from datafree.runs import atomic_write
from datafree.tables import Cell, Table, TableResult, load_table, read_results, render
from datafree.tables.results import current, is_of_today, outdated
from datafree.tables.specs import find_tables, tables_folder

MOST_SEEDS = 1000


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


@checked()
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
    missing: bool = False,
    keep: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Reproduced:
    """Runs the cells of a table that have no result yet, and renders it to OUT/TABLE.md, or OUT/TABLE@BUDGET.md.

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
        missing: leave out the cells and seeds of which a result comes with the package.
        keep: leave the runs' folders in OUT/TABLE/runs.
        say: called with a line a cell.

    Raises:
        ValueError: no such table or cell, something in the table or in a result file is wrong; one line.
        KeyboardInterrupt: after the cells that were running have saved what they had.
    """
    read = load_table(table)
    _check_out(Path(out))
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}: give 1 or more")
    budget = spelt(read, budget)
    todo = _todo(read, cells, seeds, budget, shard, costs, missing)
    for name, other in twins(read, cells, budget, costs).items():
        say(f"{name}: at this length one with {other}, which is run for both")
    folder = Path(out) / read.name
    read_results(folder, read.name)  # a malformed file is found before anything is run
    there = [_is_there(cell, folder / cell.file_name(seed), retry, say) for cell, seed in todo]
    due = [each for each, found in zip(todo, there, strict=True) if not found]
    page = Path(out) / f"{read.name if budget is None else f'{read.name}@{budget}'}.md"
    say(f"{read.name}: {len(todo)} cells and seeds, {sum(there)} there, {len(due)} to run")
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
        skipped = Scheduler(order, folder, jobs, say).run(due)
    finally:
        write_page(read, folder, page, budget)
    left = {name for name, _ in skipped}
    ran = [held(folder / cell.file_name(seed)) for cell, seed in due if full_name(cell, seed) not in left]
    results = [result for result in ran if result is not None]
    return Reproduced(
        page=page,
        run=len(results),
        found=sum(there),
        failed=sum(not result.done for result in results),
        skipped=tuple(skipped),
    )


@checked()
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
    missing: bool = False,
) -> list[tuple[str, str]]:
    """What `reproduce` would see to: each cell and seed, its cost and what is there of it. Changes nothing.

    Arguments as for `reproduce`; what a person can mend raises as there.
    """
    read = load_table(table)
    _check_out(Path(out))
    rows, budget = [], spelt(read, budget)
    for cell, seed in _todo(read, cells, seeds, budget, shard, costs, missing):
        result = held(Path(out) / read.name / cell.file_name(seed))
        words = [] if result is None else [outcome(result)]
        if result is None or not stands(cell, result, retry):
            words.append("to run" if result is None else "to run again")
        if (shipped := _shipped(read, cell, seed)) is not None:
            words.append(f"the package has {outcome(shipped)}")
        rows.append((full_name(cell, seed), ", ".join([cell.cost, *words])))
    return rows + [(name, f"one with {other}") for name, other in twins(read, cells, budget, costs).items()]


def _check_out(out: Path) -> None:
    check_folder(out)
    for package in (tables_folder(), Path(__file__).resolve().parents[1]):
        if package in (out.resolve(), *out.resolve().parents):
            raise ValueError(f"--out {out} is in the package's own {package}: give a folder elsewhere")


def _todo(
    table: Table,
    cells: Sequence[str],
    seeds: int | None,
    budget: str | None,
    shard: str,
    costs: Sequence[str] | None,
    missing: bool,
) -> list[tuple[Cell, int]]:
    """The cells and seeds that are asked for, whatever is there of them."""
    number, count = parse_shard(shard)
    if seeds is not None and not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds is {seeds}: give 1 to {MOST_SEEDS:,}")
    chosen = choose(table, cells, budget, allowed_costs(costs))
    todo = [(cell, seed) for cell in chosen for seed in range(seeds or table.seeds)]
    if missing:
        todo = [(cell, seed) for cell, seed in todo if _shipped(table, cell, seed) is None]
    return todo[number::count]


def _shipped(table: Table, cell: Cell, seed: int) -> TableResult | None:
    """The finished result that comes with the package and still stands, if one does."""
    result = held(tables_folder() / "results" / table.name / cell.file_name(seed))
    return result if result is not None and result.done and stands(cell, result, False) else None


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
    """Renders a table with the results in the folder; at another budget, its cells at that one.

    Results that are of today at another length are nobody's predecessors: they are on the page of that length.
    """
    shown = _at(table, budget)

    def is_shown(result: TableResult) -> bool:
        lengths = {None, result.content["spec"]["options"].get("budget")}
        return is_of_today(shown, result) or not any(is_of_today(_at(table, each), result) for each in lengths)

    results = [result for result in read_results(folder, table.name) if is_shown(result)]
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(page, ("\n".join(render(shown, results, page)).rstrip() + "\n").encode("utf-8", "replace"))


def _at(table: Table, budget: str | None) -> Table:
    if budget is None:
        return table
    unique = {cell.name: cell for cell in at_length(table, budget).values()}
    return dataclasses.replace(table, cells=tuple(unique.values()))


@checked()
def status(out: str | Path) -> list[tuple[Table, int, int]]:
    """Each table of the package: how many cells have a finished result that is shipped, and one in `out`."""
    return [
        (table, _finished(table, tables_folder() / "results"), _finished(table, Path(out)))
        for table in map(load_table, find_tables())
    ]


def _finished(table: Table, folder: Path) -> int:
    found, _ = current(table, read_results(folder / table.name, table.name))
    return sum(any(result.done for result in results) for results in found.values())
