"""Tables as Markdown: what was measured beside what was published; what was not run and what failed is said."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from datafree.models import ALIASES
from datafree.tables.results import TableResult, current, is_of_today
from datafree.tables.specs import Cell, Table

NOTHING = "–"
Shown = Callable[[list[dict[str, Any]]], str]
Columns = dict[str, dict[str, Shown]]


def render(table: Table, results: Iterable[TableResult], page: Path, level: int = 1) -> list[str]:
    """The lines of a table's section.

    Args:
        table: the specification.
        results: all that is there of it.
        page: the file that the lines are for; links are relative to its folder.
        level: of the title.
    """
    found, superseded = current(table, results)
    lines = [f"{'#' * level} {table.title}", ""]
    facts = [
        ("Measured", table.metric),
        ("Protocol", table.protocol),
        ("Papers", "; ".join(table.papers)),
        ("Specification", f"[{table.path.name}]({link(table.path, page)})"),
    ]
    lines += [f"{name}: {text}  " for name, text in facts if text]
    lines += ["", *([table.notes, ""] if table.notes else [])]
    if table.layout == "matrix":
        lines += _matrix(table, found, page)
    else:
        columns = SPEED if table.layout == "speed" else COLUMNS
        for group, title in table.groups.items():
            cells = [cell for cell in table.cells if cell.group == group]
            if cells:
                lines += [f"{'#' * (level + 1)} {title}", "", *_rows(cells, found, page, columns)]
    lines += _footnotes(table, superseded, page)
    return lines


def link(path: Path, page: Path) -> str:
    return quote(Path(os.path.relpath(path, page.parent)).as_posix())


# One row a cell --------------------------------------------------------------------------------------------------


def _rows(cells: Sequence[Cell], found: dict[str, list[TableResult]], page: Path, columns: Columns) -> list[str]:
    """A Markdown table; columns in which no cell has anything are left out."""
    compared = ["accuracy", "published", "difference"] if columns is COLUMNS else []
    head = ["method", "length", *compared, *_columns(cells, columns), "cost", "log"]
    run = [cell for cell in cells if found[cell.name]]
    rest = [cell for cell in cells if not found[cell.name]]
    body = [_row(cell, found[cell.name], head, page, columns) for cell in run]
    kept = [i for i, name in enumerate(head) if name in ("method", "accuracy") or any(row[i] for row in body)]
    lines = [
        "| " + " | ".join(head[i] for i in kept) + " |",
        "|" + "---|" * len(kept),
        *("| " + " | ".join(row[i] for i in kept) + " |" for row in body),
        "",
    ]
    return [*(lines if run else []), *(["Not run: " + _not_run(rest), ""] if rest else [])]


def in_cell(text: str) -> str:
    """On one line, with no bar that would begin another cell."""
    return " ".join(text.split()).replace("|", r"\|")


def _not_run(cells: Sequence[Cell]) -> str:
    """By length and cost, each with what was published. A title may hold commas."""
    parts: dict[str, list[str]] = {}
    for cell in cells:
        text = cell.title + (f" ({cell.published})" if cell.published else "")
        parts.setdefault(f"{length(cell)} ({cell.cost})".strip(), []).append(text)
    return "; ".join(f"{' · '.join(names)} at {what}" for what, names in parts.items()) + "."


def _columns(cells: Sequence[Cell], columns: Columns) -> list[str]:
    archs = list(dict.fromkeys(arch for cell in cells for arch in (cell.evaluation or {}).get("archs", [])))
    jobs = {cell.job for cell in cells}
    named = archs if len(archs) > 1 else []
    return [*named, *dict.fromkeys(name for job in columns if job in jobs for name in columns[job])]


def _row(cell: Cell, results: list[TableResult], head: list[str], page: Path, columns: Columns) -> list[str]:
    done = [result.content for result in results if result.done]
    failed = [result for result in results if not result.done]
    values = {
        "method": in_cell(cell.title),
        "length": length(cell),
        "published": str(cell.published) if cell.published else "",
        "cost": cell.cost,
        "log": " ".join(f"[{result.seed}]({link(result.path, page)})" for result in results),
    }
    if done:
        values |= {"accuracy": f"**{accuracy(cell, done)}**", "difference": difference(cell, done)}
        if not done[0]["result"]["steps"]:  # a selection takes no time worth a length
            values["length"] = NOTHING
        values |= {
            name: show([content["result"] for content in done]) for name, show in columns.get(cell.job, {}).items()
        }
        if cell.job == "condense":
            values |= _scores(done)
    if failed:
        reason = in_cell(str(failed[0].content["error"]))
        # The accuracy, where that is what the table shows; else the first that this job has.
        first = next((name for name in ("accuracy", *columns.get(cell.job, {})) if name in head), head[2])
        before = f"{values.get(first, '')}; {len(failed)} " if done else ""
        values[first] = f"{before}failed: {reason}"
    return [values.get(name, "") for name in head]


def length(cell: Cell) -> str:
    """How long a cell runs, as it was asked for."""
    options = cell.options
    if options.get("budget"):
        return str(options["budget"])
    for name in ("steps", "epochs"):
        if options.get(name):
            return f"{options[name]:,} {name}"
    return ""


def accuracies(cell: Cell, done: list[dict[str, Any]]) -> list[float]:
    """In per cent, one a seed."""
    if cell.job == "condense":
        return [100 * content["scores"]["accuracy_mean"] for content in done]
    return [100 * content["result"]["accuracy" if cell.job == "pretrain" else "student_accuracy"] for content in done]


def accuracy(cell: Cell, done: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation (n): over runs; for one condensed set over the networks trained on it."""
    values = accuracies(cell, done)
    if len(values) > 1:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"
    if cell.job == "condense":
        return f"{_spread([done[0]['scores']], 'accuracy')} ({done[0]['scores']['networks']})"
    return f"{values[0]:.2f}"


def difference(cell: Cell, done: list[dict[str, Any]]) -> str:
    """Measured less published, in points; * where it falls short by more than the tolerance and the spread."""
    if cell.published is None:
        return ""
    points = statistics.mean(accuracies(cell, done)) - cell.published.value
    short = points < -max(cell.published.tolerance, cell.published.spread or 0.0) - 1e-9  # a sum's rounding is no gap
    return f"{points:+.1f}{'*' if short else ''}".replace("-", "−")


def random_real(done: Sequence[Mapping[str, Any]]) -> str:
    """Of networks trained on random real images, a draw for each network; empty where there are none.

    The draws are a seed's: two runs of it have the same.
    """
    return _spread([content["scores"] for content in _a_seed_each(done)], "random_accuracy")


def _a_seed_each(done: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({content["seed"]: content for content in done}.values())


def _spread(scores: Sequence[Mapping[str, Any]], name: str) -> str:
    """Mean ± standard deviation of `name` in per cent: over runs; of one run over its networks, where it has some."""
    known = [each for each in scores if f"{name}_mean" in each]
    means = [100 * each[f"{name}_mean"] for each in known]
    if len(means) > 1:
        return f"{statistics.mean(means):.1f} ± {statistics.stdev(means):.1f}"
    if not known or len(known[0].get(name.replace("accuracy", "accuracies"), ())) == 1:
        return "".join(f"{mean:.1f}" for mean in means)
    return f"{means[0]:.1f} ± {100 * known[0][f'{name}_std']:.1f}"


def _scores(done: list[dict[str, Any]]) -> dict[str, str]:
    scores = [content["scores"] for content in done]
    shown = {
        "scored": f"{statistics.mean(each['seconds'] for each in scores):.0f} s",
        "random real": random_real(done),
    }
    for arch in dict.fromkeys(arch for each in scores for arch in each.get("archs", {})):
        those, drawn = (
            [content["scores"]["archs"][arch] for content in contents if arch in content["scores"].get("archs", {})]
            for contents in (done, _a_seed_each(done))
        )
        random = [100 * each["random_accuracy_mean"] for each in drawn if "random_accuracy_mean" in each]
        text = _spread(those, "accuracy") + (f" (random {statistics.mean(random):.1f})" if random else "")
        shown |= dict.fromkeys((arch, *(short for short, name in ALIASES.items() if name == arch)), text)
    return {name: text for name, text in shown.items() if text}


def _mean(name: str, form: str, scale: float = 1.0) -> Shown:
    """The mean over runs of an entry of the result, as text; empty where it is not known."""

    def show(results: list[dict[str, Any]]) -> str:
        values = [scale * each[name] for each in results if each.get(name) is not None]
        return form.format(statistics.mean(values)) if values else ""

    return show


COLUMNS: Columns = {
    "train": {
        "agreement": _mean("agreement", "{:.2f}", 100),
        "teacher": _mean("teacher_accuracy", "{:.2f}", 100),
        "images": _mean("images", "{:,.0f}"),
        "steps": _mean("steps", "{:,.0f}"),
        "synthesis": _mean("synthesis_seconds", "{:.0f} s"),
        "distillation": _mean("distillation_seconds", "{:.0f} s"),
        "peak": _mean("peak_rss_mb", "{:,.0f} MB"),
    },
    "pretrain": {"steps": _mean("steps", "{:,.0f}")},
    "condense": {
        "random real": lambda _: "",
        "decoded": _mean("decoded_images", "{:,.0f}"),
        "prepared": _mean("preparation_seconds", "{:.0f} s"),
        "steps": _mean("steps", "{:,.0f}"),
        "peak": _mean("peak_rss_mb", "{:,.0f} MB"),
        "scored": lambda _: "",
    },
}


def _rate(seconds: tuple[str, ...], count: str) -> Shown:
    """Mean over runs of ms a `count`: the sum of the named seconds divided by it."""

    def show(results: list[dict[str, Any]]) -> str:
        values = [
            1000 * sum(each[name] for name in seconds) / each[count]
            for each in results
            if each.get(count) and all(each.get(name) is not None for name in seconds)
        ]
        return _three_digits(statistics.mean(values)) + " ms" if values else ""

    return show


def _three_digits(value: float) -> str:
    """0.00156, 7.2, 1,430, 12,300."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


SPEED: Columns = {
    "train": {
        "an image made": _rate(("synthesis_seconds",), "images"),
        "a student's step": _rate(("distillation_seconds",), "steps"),
        "a step with its images": _rate(("synthesis_seconds", "distillation_seconds"), "steps"),
        "peak": _mean("peak_rss_mb", "{:,.0f} MB"),
    },
    "condense": {
        "a step": _rate(("total_seconds",), "steps"),
        "prepared": _mean("preparation_seconds", "{:.0f} s"),
        "decoded": _mean("decoded_images", "{:,.0f}"),
        "scored": lambda _: "",
        "peak": _mean("peak_rss_mb", "{:,.0f} MB"),
    },
}


# Rows by groups --------------------------------------------------------------------------------------------------


def _matrix(table: Table, found: dict[str, list[TableResult]], page: Path) -> list[str]:
    """Rows are methods, columns are groups; a cell is what was measured, then in brackets what was published.

    What has no place in a cell stands below: the cost, the runs of every seed, and why a run has failed.
    """
    rows = list(dict.fromkeys(cell.row for cell in table.cells))
    groups = [group for group in table.groups if any(cell.group == group for cell in table.cells)]
    titles = {cell.row: cell.title for cell in table.cells}
    lines = [
        "| method | " + " | ".join(in_cell(table.groups[group]) for group in groups) + " |",
        "|" + "---|" * (len(groups) + 1),
    ]
    for row in rows:
        shown = []
        for group in groups:
            cells = [cell for cell in table.cells if (cell.group, cell.row) == (group, row)]
            shown.append("; ".join(_brief(cell, found[cell.name], page) for cell in cells) or NOTHING)
        lines.append(f"| {in_cell(titles[row])} | " + " | ".join(shown) + " |")
    lines.append("")
    if any(cell.published for cell in table.cells):
        measured = any(result.done for cell in table.cells if cell.published for result in found[cell.name])
        less = f"; what was measured less that, in points. {_mark(table)}" if measured else "."
        lines += [f"In brackets: as published{less}", ""]
    return [*lines, _costs(table), "", *_runs(table, found, page), *_failures(table, found)]


def _brief(cell: Cell, results: list[TableResult], page: Path) -> str:
    done = [result.content for result in results if result.done]
    failed = len(results) - len(done)
    if done:
        target = next(result for result in results if result.done)
        text = f"**[{accuracy(cell, done)}]({link(target.path, page)})**" + (f"; {failed} failed" if failed else "")
    else:
        text = "failed" if results else "not run"
    aside = [str(cell.published), *([difference(cell, done)] if done else [])] if cell.published else []
    return text + (f" ({'; '.join(aside)})" if aside else "")


def _costs(table: Table) -> str:
    """The cost that most cells have is said of all others."""
    cells: dict[str, list[Cell]] = {}
    for cell in table.cells:
        cells.setdefault(cell.cost, []).append(cell)
    most = max(cells, key=lambda cost: len(cells[cost]))
    if len(cells) == 1:
        return f"Cost of a cell: {most}."
    parts = []
    for cost, of in cells.items():
        titles: dict[str, list[str]] = {}
        for cell in of if cost != most else ():
            titles.setdefault(table.groups[cell.group], []).append(_named(cell))
        parts += [f"{cost} for {', '.join(dict.fromkeys(names))} at {group}" for group, names in titles.items()]
    return f"Cost of a cell: {'; '.join(parts)}; {most} for all others."


def _named(cell: Cell) -> str:
    """By its title, and its length where the table has several."""
    _, at, budget = cell.name.rpartition("@")
    return f"{cell.title}, {budget}" if at else cell.title


def _runs(table: Table, found: dict[str, list[TableResult]], page: Path) -> list[str]:
    """A line a group: each cell that was run, its length, the seconds it took, and the files of its seeds."""
    lines = []
    for group, title in table.groups.items():
        parts = []
        for cell in (cell for cell in table.cells if cell.group == group and found[cell.name]):
            done = [result.content["seconds"] for result in found[cell.name] if result.done]
            facts = [length(cell), f"{statistics.mean(done):,.0f} s" if done else ""]
            text = f"{cell.title} ({', '.join(filter(None, facts))})" if any(facts) else cell.title
            parts.append(" ".join([text, *(f"[{r.seed}]({link(r.path, page)})" for r in found[cell.name])]))
        lines += [f"* {title}: {'; '.join(parts)}"] if parts else []
    return ["Runs, by seed; seconds are their mean:", "", *lines, ""] if lines else []


def _failures(table: Table, found: dict[str, list[TableResult]]) -> list[str]:
    failed = [(cell, result) for cell in table.cells for result in found[cell.name] if not result.done]
    lines = [
        f"* {_named(cell)} at {table.groups[cell.group]}, seed {result.seed}: {in_cell(str(result.content['error']))}"
        for cell, result in failed
    ]
    return ["Failed:", "", *lines, ""] if lines else []


def _footnotes(table: Table, superseded: list[TableResult], page: Path) -> list[str]:
    lines = []
    if table.layout == "rows" and any(cell.published for cell in table.cells):
        sources = dict.fromkeys(cell.published.source for cell in table.cells if cell.published)
        lines += [f"Published: {'; '.join(sources)}. {_mark(table)}", ""]
    if table.layout == "matrix":
        sources = dict.fromkeys(cell.published.source for cell in table.cells if cell.published)
        lines += [f"Published: {'; '.join(sources)}.", ""] if sources else []
    copies = [result for result in superseded if is_of_today(table, result)]
    old = [result for result in superseded if not is_of_today(table, result)]
    for what, results in (
        ("Superseded, made by another spec or with other defaults", old),
        ("Not counted, copies or repeated", copies),
    ):
        each = ", ".join(f"[{r.cell}, seed {r.seed}]({link(r.path, page)}) {_figure(r)}{_why(r)}" for r in results)
        lines += [f"{what}: {each}.", ""] if results else []
    return lines


def _mark(table: Table) -> str:
    """What `difference` marks."""
    points = sorted({cell.published.tolerance for cell in table.cells if cell.published})
    text = f"{' or '.join(f'{each:g}' for each in points)} {'point' if points == [1] else 'points'}"
    return f"A * marks what falls short by more than {text} and by more than the published spread."


def _why(result: TableResult) -> str:
    reason = result.content["superseded"]
    return "" if reason is None else f" ({in_cell(reason)})"


def _figure(result: TableResult) -> str:
    if not result.done:
        return "failed"
    held = result.content["scores"] or result.content["result"]
    found = [held[name] for name in ("accuracy_mean", "student_accuracy", "accuracy") if held.get(name) is not None]
    return f"{100 * found[0]:.2f}"
