"""The figures of a comparison of runs, each with its title and what it shows in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from datafree.report.charts import REFERENCE, Series, bars, curves, matrix, scatter
from datafree.report.compared import MOST_CLASSES, Compared
from datafree.report.reading import as_list, as_number, count, difference, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Of = Callable[[Compared], float | None]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure of a comparison.

    Attributes:
        tag: Its name in TensorBoard.
        title: What stands above it.
        words: What it shows, for those who do not see it.
        draw: Makes it; `legend=True` names the runs inside. Figures of one run have no legend and ignore that.
        run: The run it is of, if it is of one.
        wide: Whether it is to be moved sideways on a narrow screen rather than made small.
    """

    tag: str
    title: str
    words: str
    draw: Callable[..., Figure]
    run: Compared | None = None
    wide: bool = False


# Accuracy ----------------------------------------------------------------------------------------------------------


def accuracy_charts(runs: Sequence[Compared]) -> list[Chart]:
    """Accuracy over steps and over wall clock, and the last one against the number of images."""
    charts: list[Chart] = []
    teachers = sorted({run.teacher_accuracy for run in runs if run.teacher_accuracy is not None})
    for axis, what in enumerate(("steps", "wall clock")):
        courses = [(run, found) for run in runs if (found := course(run, axis))]
        if not courses:
            continue
        longest = max(found[-1][0] for _, found in courses)
        hours, minutes = (3600.0, "hours"), (60.0, "minutes")
        unit, xlabel = (1.0, "step") if axis == 0 else _unit(longest, hours, minutes)
        series = [_series(run, [x / unit for x, _ in found], [y for _, y in found]) for run, found in courses]
        words = "last: " + ", ".join(f"{run.mark}: {percent(found[-1][1])}" for run, found in courses)
        draw = partial(curves, series, xlabel=xlabel, references=teachers)
        charts.append(Chart(tag=f"accuracy/{what}", title=f"Accuracy against {what}", words=words, draw=draw))
    made = partial(_result, "images")
    for title, of in (("images made", made), ("images a class", images_a_class)):
        points = _points(runs, of)
        if len(points) > 1:
            words = "; ".join(f"{run.mark}: {count(x)}, {percent(y)}" for run, x, y in points)
            series = [_series(run, [x], [y]) for run, x, y in points]
            draw = partial(scatter, series, xlabel=title)
            charts.append(
                Chart(tag=f"accuracy/{title}", title=f"Last accuracy against {title}", words=words, draw=draw)
            )
    return charts


def course(run: Compared, axis: int) -> list[tuple[float, float]]:
    """(steps or seconds, test accuracy) as logged, and at the end the last evaluation. `axis`: 0 for steps, 1 for
    seconds."""
    found = [(point[axis], point[2]) for point in run.metrics.get("test/accuracy", [])]
    end = run.steps if axis == 0 else as_number(run.result.get("total_seconds"))
    if end is not None and run.accuracy is not None:
        found.append((end, run.accuracy))
    return sorted(found, key=lambda point: point[0])  # a clock may have gone back


def images_a_class(run: Compared) -> float | None:
    """Of a condensed set; their mean where classes differ."""
    counts = [as_number(value) for value in as_list(run.about.get("images_per_class"))]
    known = [value for value in counts if value is not None]
    return sum(known) / len(known) if known else None


def _unit(seconds: float, *larger: tuple[float, str]) -> tuple[float, str]:
    """The largest unit of which there are more than two."""
    return next(((size, name) for size, name in larger if seconds > 2 * size), (1.0, "seconds"))


# Costs -------------------------------------------------------------------------------------------------------------


def cost_charts(runs: Sequence[Compared]) -> list[Chart]:
    """Accuracy against what it costs, each with its Pareto front; what no run knows is left out."""
    charts = []
    for title, of, of_teacher in COSTS:
        points = _points(runs, of)
        if not points:
            continue
        groups = [
            [point for point in points if point[0].data == data]
            for data in dict.fromkeys(run.data for run, _, _ in points)
        ]
        best = [
            [group[i] for i in pareto_front([x for _, x, _ in group], [y for _, _, y in group])] for group in groups
        ]
        fronts = [([x for _, x, _ in front], [y for _, _, y in front]) for front in best]
        teachers = [(of_teacher(run), run.teacher_accuracy) for run, _, _ in points] if of_teacher else []
        known = sorted({(x, y) for x, y in teachers if x is not None and y is not None})
        series = [_series(run, [x], [y]) for run, x, y in points]
        words = "on the front: " + ", ".join(run.mark for front in best for run, _, _ in front)
        draw = partial(scatter, series, xlabel=title, fronts=fronts, teachers=known)
        charts.append(Chart(tag=f"cost/{title}", title=f"Accuracy against {title}", words=words, draw=draw))
    return charts


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Who is on the Pareto front, by ascending cost: those for whom nobody has more for the same or less, or as much
    for less.

    Args:
        costs: (n,).
        gains: (n,).
    """
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        last = front[-1] if front else None
        equal = last is not None and (costs[last], gains[last]) == (costs[index], gains[index])
        if last is None or gains[index] > gains[last] or equal:
            front.append(index)
    return front


def _result(key: str, run: Compared) -> float | None:
    return as_number(run.result.get(key))


def _size(who: str, what: str, run: Compared) -> float | None:
    return run.cost(who, what)


# What is measured, of a run and of its teacher.
COSTS: tuple[tuple[str, Of, Of | None], ...] = (
    ("parameters", partial(_size, "student", "parameters"), partial(_size, "teacher", "parameters")),
    ("multiply-adds an image", partial(_size, "student", "multiply_adds"), partial(_size, "teacher", "multiply_adds")),
    ("latency (ms)", partial(_size, "student", "latency_ms"), partial(_size, "teacher", "latency_ms")),
    ("epsilon", partial(_result, "epsilon"), None),  # of private methods, of which there is none yet
)


# Classes -----------------------------------------------------------------------------------------------------------


def class_charts(runs: Sequence[Compared]) -> list[Chart]:
    """For each run, the accuracy of every class beside its teacher's; of many classes, those that lose most."""
    charts = []
    for run in runs:
        sides = {who: values for who in ("teacher", "student") if (values := run.per_class(who))}
        if not sides:
            continue
        classes = max(map(len, sides.values()))
        chosen = list(range(classes))
        if classes > MOST_CLASSES:
            lost = [index for index, _, _ in run.losses()] or chosen
            chosen = sorted(lost[:MOST_CLASSES])
        colours = {"teacher": REFERENCE, "student": run.colour}
        series = [
            Series(mark=who, label=who, colour=colours[who], x=chosen, y=[_at(values, i) for i in chosen])
            for who, values in sides.items()
        ]
        names = run.names(classes)
        draw = partial(bars, [names[index] for index in chosen], series)
        part = "" if len(chosen) == classes else f"; {len(chosen)} of {classes} classes"
        charts.append(Chart(tag=f"classes/{run}", title=str(run), words=inherited(run) + part, draw=draw, run=run))
    return charts


def inherited(run: Compared) -> str:
    """Which classes lose most between teacher and student, and which are the teacher's weakest."""
    rows = run.losses()
    if not rows:
        return "beside no teacher"
    names = run.names(max(index for index, _, _ in rows) + 1)
    changes = [(names[index], student - teacher) for index, student, teacher in rows]
    lost = [f"{name} ({difference(change, 1)})" for name, change in changes[:3] if change < 0]
    won = [f"{name} ({difference(change, 1)})" for name, change in changes[:-4:-1] if change > 0]
    weak = [f"{names[i]} ({percent(t)})" for i, _, t in sorted(rows, key=lambda row: row[2])[:3] if t < 1]
    parts = [f"loses most at {', '.join(lost)}" if lost else "no class loses"]
    parts += [f"gains at {', '.join(won)}"] if won else []
    parts += [f"the teacher's weakest: {', '.join(weak)}"] if weak else []
    return "; ".join(parts)


def decision_charts(runs: Sequence[Compared]) -> list[Chart]:
    """For each run, how often the student decides as its teacher, and for what instead where it does not."""
    charts = []
    for run in runs:
        counts = run.decisions()
        if counts is None:
            continue
        names = run.names(len(counts))
        total, alike = sum(map(sum, counts)), sum(counts[i][i] for i in range(len(counts)))
        apart = sorted(
            ((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j),
            key=lambda entry: -entry[0],
        )
        words = f"alike on {percent(alike / total if total else None)} of {total:,} images"
        if apart:
            words += "; most often apart: " + ", ".join(f"{names[i]} → {names[j]} ({n:,})" for n, i, j in apart[:3])
        draw = partial(_matrix, counts, names)
        wide = len(counts) > 10
        charts.append(Chart(tag=f"decisions/{run}", title=str(run), words=words, draw=draw, run=run, wide=wide))
    return charts


def _matrix(counts: list[list[int]], names: list[str], legend: bool = False) -> Figure:
    return matrix(counts, names, xlabel="the student decides", ylabel="the teacher decides")


# Parts -------------------------------------------------------------------------------------------------------------


def _series(run: Compared, x: Sequence[float], y: Sequence[float]) -> Series:
    return Series(mark=run.mark, label=str(run), colour=run.colour, x=x, y=y)


def _points(runs: Iterable[Compared], of: Of) -> list[tuple[Compared, float, float]]:
    """(run, cost, accuracy) of those that know both."""
    found = [(run, of(run), run.accuracy) for run in runs]
    return [(run, x, y) for run, x, y in found if x is not None and y is not None]


def _at(values: Sequence[float | None], index: int) -> float:
    value = values[index] if index < len(values) else None
    return math.nan if value is None else value
