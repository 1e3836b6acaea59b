"""Renders what the methods' pages take from code and result files: flags and defaults, results beside published ones.

python scripts/method_pages.py

Between the markers of each page in docs/methods and docs/condensation. tests/test_results.py compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from datafree import condensation, synthesis
from datafree.config import TrainConfig
from datafree.fields import Field, fields_of
from datafree.tables import Table, TableResult, find_tables, load_table, read_results
from datafree.tables.rendering import COLUMNS, NOTHING, accuracy, length, link
from datafree.tables.results import current

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FOLDERS = {"methods": synthesis, "condensation": condensation}
SHARED = {"tesla": "mtt"}  # methods on another one's page
COST = ("images", "synthesis", "distillation")  # images made, seconds of making them and of the student's steps
HEAD = ("what", "method", "length", "accuracy", "published", "source", *COST, "peak memory", "run")


def pages() -> dict[Path, list[str]]:
    """Page -> the methods that it is about."""
    found: dict[Path, list[str]] = {}
    for folder, registry in FOLDERS.items():
        for name in registry.METHODS:
            found.setdefault(ROOT / "docs" / folder / f"{SHARED.get(name, name)}.md", []).append(name)
    return found


def parts(page: Path, names: list[str]) -> dict[str, list[str]]:
    """Marker -> the lines between its ends."""
    held = {"results": results(page, names)}
    if page.parent.name == "methods":
        held["flags"] = flags(names[0])
    return held


def flags(name: str) -> list[str]:
    """The method's own flags, and those of the student's training for which it has a default of its own."""
    method = synthesis.load_method(name)
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    lines += [_flag(field, field.default) for field in fields_of(method.Config)]
    shared = {field.name: field for field in fields_of(TrainConfig)}
    return lines + [_flag(shared[key], value) for key, value in method.STUDENT.items()]


def _flag(field: Field, default: Any) -> str:
    if default is None or isinstance(default, bool):
        shown = {None: "", True: "on", False: "off"}[default]
    elif isinstance(default, float):
        shown = f"{default:g}"
    else:
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    choices = f" ({', '.join(field.choices)})" if field.choices else ""
    return f"| `{field.flag}` | {shown} | {field.help}{choices} |".replace("  ", " ")


def results(page: Path, names: list[str]) -> list[str]:
    """What was measured of the methods, and what was published; columns in which nothing stands are left out."""
    rows = list(_rows(page, names))
    if not rows:
        return [f"No table has a run of it yet: [benchmarks]({link(ROOT / 'benchmarks' / 'README.md', page)})."]
    kept = [i for i in range(len(HEAD)) if any(row[i] for row in rows)]
    table = [HEAD, ["---"] * len(HEAD), *rows]
    return ["| " + " | ".join(row[i] for i in kept) + " |" for row in table]


@cache
def _tables() -> list[tuple[Table, dict[str, list[TableResult]]]]:
    """The tables that pages quote, with the results that stand of each cell; read once for all pages."""
    tables = [load_table(name) for name in find_tables() if name != "digits-smoke"]
    return [
        (table, current(table, read_results(RESULTS / table.name))[0]) for table in tables if table.layout != "speed"
    ]


def _rows(page: Path, names: list[str]) -> Iterator[list[str]]:
    for table, found in _tables():
        for cell in table.cells:
            done = [result for result in found[cell.name] if result.done]
            if cell.options.get("method") not in names or cell.options.get("source") or not (done or cell.published):
                continue
            contents = [result.content for result in done]
            peak = max((content["result"]["peak_rss_mb"] for content in contents), default=0)
            columns = COLUMNS.get(cell.job, {})
            timed = not contents or contents[0]["result"]["steps"]
            group = table.groups[cell.group]
            yield [
                table.title if table.title.endswith(group) else f"{table.title}: {group}",
                cell.title,
                length(cell) if timed else NOTHING,
                f"**{accuracy(cell, contents)}**" if done else "not run",
                str(cell.published) if cell.published else "",
                cell.published.source if cell.published else "",
                *(columns[name]([c["result"] for c in contents]) if name in columns else "" for name in COST),
                f"{peak:,.0f} MB" if done else "",
                " ".join(f"[{result.seed}]({link(result.path, page)})" for result in done),
            ]


def rendered(page: Path, names: list[str], text: str) -> str:
    """The page with what stands between its markers as code and result files have it.

    Raises:
        ValueError: a marker is missing.
    """
    for marker, lines in parts(page, names).items():
        begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{page.relative_to(ROOT)} lacks {begin} … {end}: put both where the table shall stand")
        text = before + "\n".join([begin, *lines, end]) + after
    return text


def main() -> None:
    """See the top of the file."""
    for page, names in pages().items():
        page.write_text(rendered(page, names, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
