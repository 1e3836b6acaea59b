"""The comparison of several runs: one HTML page, written from the files in the runs' folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from datafree.arguments import checked
from datafree.report.charts import pixels, svg
from datafree.report.compared import MOST_CLASSES, Compared, read_runs
from datafree.report.figures import Chart, accuracy_charts, class_charts, cost_charts, decision_charts
from datafree.report.reading import (
    NONE,
    as_list,
    as_mapping,
    as_number,
    as_text,
    count,
    difference,
    duration,
    first,
    megabytes,
    percent,
    render,
    short,
    tested_on,
)
from datafree.runs import atomic_write

OURS = '<meta name="generator" content="datafree report">'  # by this line a page of ours is known again


@checked()
def write_comparison(
    paths: Sequence[str | Path], out: str | Path, *, force: bool = False, tensorboard: str | Path | None = None
) -> list[str]:
    """Writes the page that compares the runs in these folders.

    Args:
        paths: The folders, at least one.
        out: The file. One that stands there is replaced if an earlier call wrote it, or with `force`.
        tensorboard: A folder that gets the same figures as TensorBoard's images.

    Returns:
        What is left out of the page and why; lines that stand in the page, too.

    Raises:
        ValueError: A folder is no run, or the page cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give a file as --out")
    if not force and out.is_file() and OURS.encode() not in out.read_bytes()[:2000]:
        raise ValueError(f"{out} is there, and datafree report did not write it: give another --out, or --force")
    if tensorboard is not None and Path(tensorboard).exists() and not Path(tensorboard).is_dir():
        raise ValueError(f"{tensorboard} is a file: give a folder as --tensorboard")
    runs = read_runs([Path(path) for path in paths])
    sections = figures(runs)
    page = render_comparison(runs, sections)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}; give another --out") from error
    atomic_write(out, page)
    if tensorboard is not None:
        _write_tensorboard(Path(tensorboard), runs, [chart for charts in sections.values() for chart in charts])
    return _notes(runs)


def figures(runs: Sequence[Compared]) -> dict[str, list[Chart]]:
    """The figures of each section of the page."""
    return {
        "accuracy": accuracy_charts(runs),
        "cost": cost_charts(runs),
        "classes": class_charts(runs),
        "decisions": decision_charts(runs),
    }


def render_comparison(runs: Sequence[Compared], sections: dict[str, list[Chart]]) -> str:
    """The page, as text: self-contained, it loads nothing."""
    drawn = {
        section: [
            {
                "title": chart.title,
                "words": chart.words,
                "run": chart.run,
                "wide": chart.wide,
                # matplotlib's own markup, in which it escapes the runs' names and classes
                "svg": Markup(svg(chart.draw(), f"{section}{index}")),
            }
            for index, chart in enumerate(charts)
        ]
        for section, charts in sections.items()
    }
    differing, partial, shared = configurations(runs)
    context = {
        "title": f"{len(runs)} runs compared" if len(runs) > 1 else runs[0].label,
        "ours": Markup(OURS),
        "runs": runs,
        "notes": _notes(runs),
        "tested": " or ".join(_tested(runs)),
        "table": table(runs),
        "unscored": [str(run) for run in runs if run.job == "condense" and run.result and run.accuracy is None],
        "sections": drawn,
        "class_tables": class_tables(runs),
        "most_classes": MOST_CLASSES,
        "grids": [run for run in runs if run.grid],
        "differing": differing,
        "partial": partial,
        "shared": shared,
    }
    return render("comparison.html.j2", context)


def _tested(runs: Sequence[Compared]) -> list[str]:
    """The images that accuracies are of; of a condensed set, those that it was judged on, if it was."""
    options = [
        {"validation": run.evaluation.get("split") == "validation"} if run.job == "condense" else run.options
        for run in runs
        if run.job != "condense" or run.evaluation
    ]
    return list(dict.fromkeys(map(tested_on, options))) or ["the test set"]


def _notes(runs: Sequence[Compared]) -> list[str]:
    """What is wrong with the comparison, with a run's files, and what the run itself warned of."""
    data = list(dict.fromkeys(run.data for run in runs if run.data != NONE))
    notes = []
    if len(data) > 1:
        notes.append(f"the runs are on different data ({', '.join(data)}): their accuracies do not compare")
    if len(tested := _tested(runs)) > 1:
        notes.append(f"some runs were tested on {tested[0]}, some on {tested[1]}: their accuracies do not compare")
    timed = list(dict.fromkeys(as_text(run.result["latency_on"]) for run in runs if "latency_on" in run.result))
    if len(timed) > 1:
        notes.append(f"latencies were measured on {'; '.join(timed)}: they do not compare")
    judged = list(dict.fromkeys(_judged(run) for run in runs if run.evaluation))
    if len(judged) > 1:
        notes.append(f"the condensed sets were judged by {'; '.join(judged)}: their accuracies do not compare")
    for run in runs:
        notes += [f"{run}: {note}" for note in run.notes]
        notes += [f"{run}: {as_text(text)}" for text in as_list(run.result.get("warnings"))]
    return notes


# Tables ------------------------------------------------------------------------------------------------------------


def table(runs: Sequence[Compared]) -> dict[str, Any]:
    """Column heads, and for each run its cells; a column that no run fills is left out."""
    rows = [_facts(run) for run in runs]
    heads = [head for head in rows[0] if any(row[head] != NONE for row in rows)]
    return {"heads": heads, "rows": [[row[head] for head in heads] for row in rows]}


def _facts(run: Compared) -> dict[str, str]:
    result = run.result
    return {
        "Accuracy": _accuracy(run),
        "Agreement": percent(result.get("agreement")),
        "Teacher's accuracy": percent(run.teacher_accuracy),
        "Job": run.job,
        "Method": as_text(first(result.get("method"), run.options.get("method"))),
        "Data": run.data,
        "Networks": _networks(run),
        "Judged by": _judged(run),
        "Steps": count(run.steps),
        "Images": count(first(result.get("images"), result.get("stored_images"))),
        "Wall clock": _seconds(run),
        "Peak memory": _memory(run),
        "Size": _size(run),
        "Multiply-adds": short(run.cost("student", "multiply_adds")),
        "Latency (ms)": _latency(run),
        "Epsilon": as_text(as_number(result.get("epsilon"))),  # of private methods, of which there is none yet
    }


def _networks(run: Compared) -> str:
    """teacher → student; of a condensation, the network it looks through."""
    through = as_mapping(run.about.get("networks")).get("arch")
    sides = [first(as_mapping(run.about.get(who)).get("arch"), run.result.get(who)) for who in ("teacher", "student")]
    named = " → ".join(as_text(name) for name in sides if name is not None)
    return named or (NONE if through in (None, "none") else f"through {as_text(through)}")


def _judged(run: Compared) -> str:
    """Of a condensed set: protocol, network, the images it was tested on, and its labels where they are not its own."""
    told = [run.evaluation.get(name) for name in ("protocol", "arch", "data", "split")]
    labels = run.evaluation.get("set_labels")
    told += [f"{as_text(labels)} labels"] if labels not in (None, "own") else []
    return " ".join(as_text(each) for each in told if each is not None) or NONE


def _accuracy(run: Compared) -> str:
    """With the spread over networks, where several were trained on a condensed set."""
    spread = as_number(run.evaluation.get("accuracy_std"))
    several = run.evaluation.get("networks") != 1
    if run.result.get("student_accuracy") is None and run.accuracy is not None and spread is not None and several:
        return f"{100 * run.accuracy:.2f} ± {100 * spread:.2f} %"
    return percent(run.accuracy)


def _seconds(run: Compared) -> str:
    before = as_number(run.result.get("preparation_seconds"))
    extra = f" (and {duration(before)} before)" if before else ""
    return duration(run.result.get("total_seconds")) + extra


def _memory(run: Compared) -> str:
    device = run.result.get("peak_device_mb")
    extra = "" if device is None else f", device {megabytes(device)}"
    return megabytes(run.result.get("peak_rss_mb")) + extra


def _latency(run: Compared) -> str:
    number = run.cost("student", "latency_ms")
    return count(number) if number is not None and number >= 1000 else as_text(number, 3)


def _size(run: Compared) -> str:
    parameters, floats = run.cost("student", "parameters"), run.result.get("stored_floats")
    if parameters is not None:
        return f"{count(parameters)} parameters"
    return NONE if floats is None else f"{count(floats)} floats"


def class_tables(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """For runs on the same classes: each class with each student's accuracy and how far that is from its teacher's,
    the class that loses most on average first; of many classes, so many as a page takes."""
    groups: dict[tuple[str, tuple[str, ...]], list[Compared]] = {}
    for run in runs:
        if run.losses():
            names = tuple(run.names(len(run.per_class("student"))))
            groups.setdefault((run.data, names), []).append(run)
    tables = []
    for (_, names), group in groups.items():
        scores = [{index: (student, teacher) for index, student, teacher in run.losses()} for run in group]
        change = {
            index: float(np.mean([s - t for known in scores if index in known for s, t in [known[index]]]))
            for index in {index for known in scores for index in known}
        }
        order = sorted(change, key=lambda index: (change[index], index))
        rows = [
            (names[index], [_pair(*known[index]) if index in known else (NONE, "") for known in scores])
            for index in order[:MOST_CLASSES]
        ]
        tables.append({"runs": group, "rows": rows, "classes": len(order)})
    return tables


def _pair(student: float, teacher: float) -> tuple[str, str]:
    return percent(student), difference(student - teacher)


Row = tuple[str, list[tuple[str, bool]]]  # an option; of each run its value, and whether it is to be marked


def configurations(runs: Sequence[Compared]) -> tuple[list[Row], list[Row], list[Row]]:
    """The options in which the runs differ; those that only some have, all with one value; and those that all share.

    A run that has not the option shows nothing. Marked is another value than that of the first run that has it.
    """
    options = [run.options for run in runs]
    differing: list[Row] = []
    partial: list[Row] = []
    shared: list[Row] = []
    for name in dict.fromkeys(name for own in options for name in own):
        held = [own[name] for own in options if name in own]
        row = (
            name,
            [(as_text(own[name], 15), own[name] != held[0]) if name in own else ("", False) for own in options],
        )
        if any(value != held[0] for value in held):
            differing.append(row)
        else:
            (shared if len(held) == len(runs) else partial).append(row)
    return differing, partial, shared


# TensorBoard -------------------------------------------------------------------------------------------------------


def _text(name: str) -> str:
    """A folder's name may be no text."""
    return name.encode("utf-8", "replace").decode()


def _write_tensorboard(folder: Path, runs: Sequence[Compared], charts: Sequence[Chart]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    try:
        with SummaryWriter(str(folder)) as writer:
            for chart in charts:
                writer.add_image(_text(chart.tag), pixels(chart.draw(legend=True)), dataformats="HWC")
            for run in runs:
                if run.picture is not None and run.grid is not None:
                    image = np.asarray(Image.open(run.picture).convert("RGB"))
                    writer.add_image(_text(f"images/{run}"), image, dataformats="HWC")
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}; give another --tensorboard") from error
