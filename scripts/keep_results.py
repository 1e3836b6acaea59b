"""Keeps results in benchmarks/results, one folder a table, and renders the pages that show them.

python scripts/keep_results.py [RESULTS]    # RESULTS: the --out of datafree reproduce; without it only renders

Renders benchmarks/README.md and benchmarks/not-run.md, the table between the markers in README.md, and what the
methods' pages take from results (`method_pages.py`). tests/test_results.py compares them.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from datafree.jobs.standing import free, held
from datafree.tables import Cell, TableResult, find_tables, load_table, read_results, render
from datafree.tables.rendering import accuracies, accuracy, length, random_real
from datafree.tables.results import OLD, current

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
PAGE, NOT_RUN = BENCHMARKS / "README.md", BENCHMARKS / "not-run.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
SHOWN = ("data-free-cpu", "condensation-cpu")  # in the README
DEFAULTS = ("blend", "default", "frepo")
BASELINES = ("random", "herding", "mean", "noise", "student-with-data", "distilled-with-data", "inheriting-with-data")


def keep(results: Path) -> list[Path]:
    """Copies the finished and the failed cells of the package's tables; returns what was copied.

    No finished one is lost: another of that name is moved to -oldN, a failure makes room. One that was marked as
    superseded here is there.
    """
    copied = []
    for name in find_tables():
        folder = BENCHMARKS / "results" / name
        contents = [_unmarked(result) for result in read_results(folder)]
        for result in read_results(results / name):
            target = folder / result.path.name
            there = held(target)
            if _unmarked(result) in contents or (there is not None and there.done and not result.done):
                continue
            if there is not None:
                if result.done and not there.done:
                    target.unlink()
                elif OLD.search(target.stem):
                    target = free(target)
                else:
                    target.rename(free(target))
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(result.path, target)
            copied.append(target)
    return copied


def _unmarked(result: TableResult) -> dict[str, Any]:
    return {**result.content, "superseded": None}


def pages() -> dict[Path, str]:
    """benchmarks/README.md with the tables of which anything was run, and beside it one with the others."""
    tables = [load_table(path) for path in find_tables().values()]
    results = {table.name: read_results(BENCHMARKS / "results" / table.name) for table in tables}
    run, waiting = ([t for t in tables if bool(results[t.name]) is there] for there in (True, False))
    lines = [
        "# Results",
        "",
        "Rendered by `python scripts/keep_results.py` from the JSON files in `results/`, which hold each run's",
        "manifest, result and curve. `datafree reproduce TABLE` runs the cells again. Cost is of one cell on two CPU",
        "cores: minutes, hours, or more (gpu).",
        "",
    ]
    for table in run:
        lines += render(table, results[table.name], PAGE, level=2)
    lines += [
        "## Tables of which nothing was run",
        "",
        f"Cells and published figures: [{NOT_RUN.name}]({NOT_RUN.name}).",
        "",
    ]
    lines += [f"* {table.title}: {len(table.cells)} cells, `datafree reproduce {table.name}`" for table in waiting]
    rest = [
        "# Tables of which nothing was run",
        "",
        "Rendered like [the results](README.md). The recipes are ready: `datafree reproduce TABLE` runs them.",
        "",
    ]
    for table in waiting:
        rest += render(table, [], NOT_RUN, level=2)
    return {PAGE: _text(lines), NOT_RUN: _text(rest)}


def _text(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def short_table() -> str:
    """The README's table: of each group and length the default and the best other method, beside them the baselines.

    A group of baselines alone is left out.
    """
    lines = ["| | length | default | best other method | to compare with |", "|---|---|---|---|---|"]
    for name in SHOWN:
        table = load_table(name)
        found, _ = current(table, read_results(BENCHMARKS / "results" / name))
        contents = {c.name: [r.content for r in found[c.name] if r.done] for c in table.cells}
        for group, title in table.groups.items():
            lines += _lines(title, [c for c in table.cells if c.group == group and contents[c.name]], contents)
    return "\n".join(lines)


Contents = dict[str, list[dict[str, Any]]]  # by a cell's name, one a seed


def _lines(title: str, cells: list[Cell], contents: Contents) -> list[str]:
    """A group's: one a length, the baselines in the first."""

    def best(cells: list[Cell]) -> list[Cell]:
        return sorted(cells, key=lambda c: fmean(accuracies(c, contents[c.name])), reverse=True)[:1]

    def shown(cells: list[Cell]) -> str:
        return " · ".join(f"{figure(c, contents[c.name])} {c.title}" for c in cells)

    baselines = [c for c in cells if c.row in BASELINES]
    methods = [c for c in cells if c.row not in BASELINES]
    lines: list[str] = []
    for long in dict.fromkeys(map(length, methods)):
        here = [c for c in methods if length(c) == long]
        # frepo-60m is the default at its length; other variants of a default are no other method beside it.
        default = [c for c in here if c.row.removesuffix(f"-{long}") in DEFAULTS]
        other = best([c for c in here if c not in default and not (default and c.row.startswith(DEFAULTS))])
        beside = shown(baselines) if not lines else ""
        bold = f"**{shown(default)}**" if default else ""
        lines.append(f"| {title if not lines else ''} | {long} | {bold} | {shown(other)} | {beside} |")
    return lines


def figure(cell: Cell, done: list[dict[str, Any]]) -> str:
    """As in the table; of random images that over many draws, one for each network, not that of the row's one draw."""
    if cell.row != "random":
        return accuracy(cell, done)
    return f"{random_real(done)} ({done[0]['scores']['networks']})"


def rendered(readme: str) -> str:
    """The README with its table as the result files have it."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{short_table()}\n{END}{after}"


def main(arguments: list[str]) -> None:
    if arguments:
        for path in keep(Path(arguments[0])):
            print(path.relative_to(ROOT))
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    runpy.run_path(str(Path(__file__).with_name("method_pages.py")), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
