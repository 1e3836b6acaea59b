"""The runs of a comparison: read from their folders, told apart, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.report.charts import COLOURS
from datafree.report.reading import (
    Points,
    as_list,
    as_mapping,
    as_number,
    as_text,
    class_name,
    first,
    grid_paths,
    read_grid,
    read_json,
    read_metrics,
)

FILES = ("run.json", "result.json", "metrics.jsonl")
MOST_CLASSES = 20  # above, a table of decisions and a bar for each class are too much for a page


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run among others.

    Attributes:
        mark: Its number in the comparison, from 1, as text.
        label: The name of its folder, with as many folders above it as tell it apart.
        colour: In all charts.
        path: Its folder.
        about: run.json; empty where that is missing or torn, as are the next three.
        result: result.json.
        evaluation: evaluation.json, which `datafree evaluate SET --json` writes for a condensed set.
        metrics: What metrics.jsonl holds.
        picture: Its last grid of images.
        grid: The same, to stand in a page.
        notes: What is missing or could not be read.
    """

    mark: str
    label: str
    colour: str
    path: Path
    about: dict[str, Any]
    result: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: dict[str, Points]
    picture: Path | None
    grid: dict[str, Any] | None
    notes: list[str]

    def __str__(self) -> str:
        return f"{self.mark} {self.label}"

    @property
    def job(self) -> str:
        return as_text(self.about.get("job"))

    @property
    def options(self) -> dict[str, Any]:
        """All options of the run, its method's with them."""
        return {**as_mapping(self.about.get("config")), **as_mapping(self.about.get("method_options"))}

    @property
    def data(self) -> str:
        domain = as_mapping(self.about.get("domain"))
        return as_text(first(self.result.get("data"), self.options.get("data"), domain.get("name")))

    @property
    def class_names(self) -> list[Any]:
        return as_list(as_mapping(self.about.get("domain")).get("class_names"))

    @property
    def accuracy(self) -> float | None:
        """The student's last accuracy; of a condensed set, the mean of the networks trained on it."""
        found = [self.result.get("student_accuracy"), self.result.get("accuracy"), self.evaluation.get("accuracy_mean")]
        return first(*map(as_number, found))  # type: ignore[no-any-return]

    @property
    def teacher_accuracy(self) -> float | None:
        return as_number(self.result.get("teacher_accuracy"))

    @property
    def steps(self) -> float | None:
        """Steps in all; of a run that is not finished, those that its log knows of."""
        logged = [step for points in self.metrics.values() for step, _, _ in points]
        return first(as_number(self.result.get("steps")), max(logged, default=None))  # type: ignore[no-any-return]

    def cost(self, who: str, what: str) -> float | None:
        """`parameters`, `multiply_adds` or `latency_ms` of the `teacher` or the `student`."""
        side = as_mapping(self.about.get(who))
        return as_number(first(side.get(what), self.result.get(f"{who}_{what}")))

    def per_class(self, who: str) -> list[float | None]:
        """Accuracy of the `teacher` or the `student` on each class; empty where that is not known."""
        return [as_number(value) for value in as_list(as_mapping(self.result.get("per_class")).get(who))]

    def names(self, count: int) -> list[str]:
        """What the first `count` classes are called."""
        return [class_name(self.class_names, index) for index in range(count)]

    def losses(self) -> list[tuple[int, float, float]]:
        """(class, student's accuracy, teacher's) of each class where both are known, the greatest loss first."""
        sides = zip(self.per_class("student"), self.per_class("teacher"), strict=False)
        known = [(i, s, t) for i, (s, t) in enumerate(sides) if s is not None and t is not None]
        return sorted(known, key=lambda row: row[1] - row[2])

    def decisions(self) -> list[list[int]] | None:
        """Counts of the teacher's decision (row) against the student's (column); None where they are not known."""
        rows = [as_list(row) for row in as_list(self.result.get("confusion"))]
        sound = all(len(row) == len(rows) and all(type(n) is int and n >= 0 for n in row) for row in rows)
        return rows if sound and 2 <= len(rows) <= MOST_CLASSES else None


def read_runs(paths: Sequence[Path]) -> list[Compared]:
    """The runs in these folders, numbered in this order.

    Raises:
        ValueError: No folder was given, or one that holds no run.
    """
    if not paths:
        raise ValueError("there is no run to report on: name the folders of one or more")
    for path in paths:
        if not any((path / name).is_file() for name in FILES):
            what = "it holds none of " + ", ".join(FILES) if path.is_dir() else "it is no folder"
            raise ValueError(f"{path} is no run ({what}): name the --out of datafree train, condense or pretrain")
    return [_read(path, label, index) for index, (path, label) in enumerate(zip(paths, labels(paths), strict=True))]


def _read(path: Path, label: str, index: int) -> Compared:
    notes: list[str] = []
    about, result = read_json(path / "run.json", notes), read_json(path / "result.json", notes)
    metrics = read_metrics(path / "metrics.jsonl", notes)
    notes += [f"{name} is missing" for name in FILES if not (path / name).is_file()]
    pictures = grid_paths(path / "images")
    if not pictures and about.get("job") in ("train", "condense"):
        notes.append("images/ holds no picture")
    run = Compared(
        mark=str(index + 1),
        label=label,
        colour=COLOURS[index % len(COLOURS)],
        path=path,
        about=about,
        result=result,
        evaluation=read_json(path / "evaluation.json", notes),
        metrics=metrics,
        picture=pictures[-1] if pictures else None,
        grid=read_grid(pictures[-1], notes) if pictures else None,
        notes=notes,
    )
    counted = as_list(result.get("confusion"))
    if result.get("confusion") is not None and len(counted) in range(2, MOST_CLASSES + 1) and run.decisions() is None:
        notes.append("confusion in result.json is no square table of counts")
    return run


def labels(paths: Sequence[Path]) -> list[str]:
    """A name for each path, no two alike: its last part, with the parts above it where another path ends the same;
    a path that is named again gets a number."""
    places = [path.resolve() for path in paths]
    tails = {place: _tail(place, set(places) - {place}) for place in places}
    given: list[str] = []
    for place in places:
        name, times = tails[place], 1
        while name in given or (times > 1 and name in tails.values()):
            times += 1
            name = f"{tails[place]} ({times})"
        given.append(name)
    return given


def _tail(place: Path, others: set[Path]) -> str:
    """As many last parts of an absolute path as none of the others ends with."""
    depth = 1
    while any(other.parts[-depth:] == place.parts[-depth:] for other in others):
        depth += 1
    return "/".join(place.parts[-depth:]).replace("//", "/")
