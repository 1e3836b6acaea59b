"""The report of a run: one HTML page that holds all it shows, written from the files in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from datafree.report.charts import line_chart
from datafree.report.reading import (
    NONE,
    Points,
    as_list,
    as_mapping,
    as_number,
    as_text,
    class_name,
    count,
    difference,
    duration,
    first,
    grid_paths,
    megabytes,
    percent,
    read_grid,
    read_json,
    read_metrics,
    render,
    short,
    tested_on,
)

Row = tuple[str, str]


def render_report(run: Path) -> str:
    """The page for a run's folder, as text.

    Reads `run.json`, `result.json`, `metrics.jsonl` and `images/*.png`. Each may be missing, torn or incomplete, as an
    interrupted run leaves them: what is not there is left out.

    Args:
        run: The folder.

    Returns:
        A self-contained HTML page: it loads nothing, from the network or from disk.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is no folder; give the folder of a run (the --out of datafree train)")
    notes: list[str] = []
    about, result = read_json(run / "run.json", notes), read_json(run / "result.json", notes)
    metrics = read_metrics(run / "metrics.jsonl", notes)
    grids = _grids(run / "images", notes)
    teacher, student, domain = (as_mapping(about.get(key)) for key in ("teacher", "student", "domain"))
    networks = [first(teacher.get("arch"), result.get("teacher")), first(student.get("arch"), result.get("student"))]
    title = " → ".join(as_text(name) for name in networks if name is not None) or run.resolve().name
    job = as_text(about.get("job", "train"))
    if job == "condense":
        title = f"{as_text(domain.get('name'))} condensed"
    config = as_mapping(about.get("config"))
    logged = [step for points in metrics.values() for step, _, _ in points]  # once a second: not the last step
    last = first(as_number(result.get("steps")) or None, max(logged, default=None))
    context = {
        "title": title,
        "facts_line": [
            ("Job", JOBS.get(job, job)),
            ("Method", as_text(first(result.get("method"), config.get("method")))),
            ("Data", as_text(first(result.get("data"), config.get("data"), domain.get("name")))),
            ("Seed", as_text(first(about.get("seed"), result.get("seed")))),
        ],
        "finished": bool(result),
        "tested": tested_on(config),
        "last_step": None if last is None else count(last),
        "results": _results(result),
        "untested": "student_accuracy" in result and result["student_accuracy"] is None,
        "warnings": [as_text(text) for text in as_list(result.get("warnings"))] + notes,
        "choices": [as_text(text) for text in as_list(about.get("choices"))],
        "charts": _charts(metrics, as_number(result.get("teacher_accuracy"))),
        "per_class": _per_class(as_mapping(result.get("per_class")), as_list(domain.get("class_names"))),
        "grids": grids,
        "networks": _networks(teacher, student, as_mapping(about.get("networks")), result),
        "costs": _labelled(result, COSTS),
        "others": [(key, as_text(value)) for key, value in result.items() if key not in PLACED],
        "command": about.get("command"),
        "job": job,
        "configuration": _configuration(about, config),
        "environment": _environment(about, teacher),
    }
    return render("report.html.j2", context)


# Parts of the page -------------------------------------------------------------------------------------------------


def _grids(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The first, the middle and the last picture."""
    paths = grid_paths(folder)
    chosen = [paths[i] for i in sorted({0, len(paths) // 2, len(paths) - 1})] if paths else []
    return [grid for path in chosen if (grid := read_grid(path, notes)) is not None]


def _results(result: Mapping[str, Any]) -> list[Row]:
    rows = _labelled(result, RESULTS)
    teacher, student = as_number(result.get("teacher_accuracy")), as_number(result.get("student_accuracy"))
    if teacher is not None and student is not None:
        rows.insert(2, ("Student less teacher", f"{difference(student - teacher)} points"))
    return rows


def _charts(metrics: Mapping[str, Points], teacher_accuracy: float | None) -> list[dict[str, Any]]:
    """Test scores against wall clock, then all else against steps: agreement, the loss terms, the learning rate."""
    tests = [key for key in metrics if key.startswith("test/")]
    terms = [key for key in metrics if "/" in key and key not in tests]
    charts: list[dict[str, Any]] = []
    names = {"agreement": "agreement on synthesized images", "lr": "learning rate", "rate": "learned inner rate"}
    order = [*tests, "agreement", *terms, "lr", "rate"]
    for key in (key for key in order if key in metrics):
        points = metrics[key]
        if key in tests:
            # By time, for a clock that went back; a run of some minutes reads better in minutes.
            points = sorted(points, key=lambda point: point[1])
            unit, xlabel = (60.0, "minutes") if points[-1][1] > 120 else (1.0, "seconds")
            x = [seconds / unit for _, seconds, _ in points]
        else:
            xlabel, x = "step", [step for step, _, _ in points]
        y = [value for _, _, value in points]
        fraction = key.rsplit("/", 1)[-1] in ("accuracy", "agreement")
        show: Callable[[Any], str] = percent if fraction else as_text
        reference = teacher_accuracy if key == "test/accuracy" else None
        svg = line_chart(x, y, name=f"chart{len(charts)}", xlabel=xlabel, percent=fraction, reference=reference)
        charts.append(
            {
                "name": names.get(key, key),
                "words": f"first {show(y[0])}, last {show(y[-1])}, lowest {show(min(y))}, highest {show(max(y))}",
                "reference": None if reference is None else f"dashed: the teacher, {percent(reference)}",
                "svg": Markup(svg),  # matplotlib's own markup: no text of the run's is in it
            }
        )
    return charts


def _per_class(scores: Mapping[str, Any], names: Sequence[Any]) -> dict[str, Any] | None:
    """Who was scored, and for each class its name and their accuracies, each as text and as a percentage for a bar."""
    who = [key for key in ("teacher", "student") if as_list(scores.get(key))]
    if not who:
        return None
    rows = []
    for index in range(max(len(scores[key]) for key in who)):
        values = [as_number(scores[key][index]) if index < len(scores[key]) else None for key in who]
        bars = [(percent(value), min(100.0, max(0.0, 100 * (value or 0.0)))) for value in values]
        rows.append((class_name(names, index), bars))
    return {"who": who, "rows": rows}


def _networks(
    teacher: Mapping[str, Any], student: Mapping[str, Any], looked_through: Mapping[str, Any], result: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Whose size is known, and rows of (label, values). What an entry does not say is looked up in the result."""
    columns = {}
    for who, side in (("teacher", teacher), ("student", student), ("looked through", looked_through)):
        sizes = [first(side.get(key), result.get(f"{who}_{key}")) for key in SIZES]
        if any(size is not None for size in sizes):
            arch = as_text(first(side.get("arch"), result.get(who)))
            columns[who] = [arch, count(sizes[0]), short(sizes[1]), as_text(as_number(sizes[2]), 3)]
    labels = ("Architecture", "Parameters", "Multiply-adds per image", "Latency of one image (ms)")
    rows = list(zip(labels, zip(*columns.values(), strict=True), strict=True)) if columns else []
    rows = [row for row in rows if set(row[1]) != {NONE}]
    return {"who": list(columns), "rows": rows} if columns else None


def _configuration(about: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Rows of (name, value, whether a person set it)."""
    chosen = {str(name).replace("-", "_") for name in as_list(about.get("set_by_user"))}
    values = {**config, **as_mapping(about.get("method_options"))}
    return [(key, as_text(value, 15), key.replace("-", "_") in chosen) for key, value in values.items()]


def _environment(about: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Row]:
    rows = {"datafree": about.get("datafree"), "git commit": about.get("git")}
    rows.update({key: value for key, value in as_mapping(about.get("versions")).items() if key != "datafree"})
    rows.update({key.replace("_gb", " (GB)"): value for key, value in as_mapping(about.get("machine")).items()})
    rows.update({"teacher": teacher.get("source"), "teacher's SHA-256": teacher.get("sha256")})
    return [(key, as_text(value)) for key, value in rows.items() if value is not None]


# Labels ------------------------------------------------------------------------------------------------------------


def _labelled(result: Mapping[str, Any], labels: Mapping[str, tuple[str, Callable[[Any], str]]]) -> list[Row]:
    return [(label, show(result[key])) for key, (label, show) in labels.items() if key in result]


RESULTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "teacher_accuracy": ("Teacher's accuracy", percent),
    "student_accuracy": ("Student's accuracy", percent),
    "accuracy": ("Accuracy", percent),
    "agreement": ("Agreement with the teacher", percent),
    "kl": ("KL divergence from the teacher (nats)", as_text),
}
SIZES = ("parameters", "multiply_adds", "latency_ms")  # of each network, in run.json or result.json
JOBS = {"train": "data-free distillation", "pretrain": "training with data", "condense": "condensation"}
COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "steps": ("Steps", count),
    "rounds": ("Rounds", count),
    "images": ("Images synthesized", count),
    "stored_images": ("Images stored", count),
    "stored_floats": ("Floats stored", count),
    "decoded_images": ("Images decoded", count),
    "label_bytes": ("Labels (bytes)", count),
    "learning_rate": ("Learned rate", as_text),
    "preparation_seconds": ("Preparation", duration),
    "synthesis_seconds": ("Synthesis", duration),
    "distillation_seconds": ("Distillation", duration),
    "total_seconds": ("In all", duration),
    "peak_rss_mb": ("Peak memory", megabytes),
    "peak_device_mb": ("Peak memory of the device", megabytes),
    "latency_on": ("Latency measured on", as_text),
    "precision": ("Precision", as_text),
    "threads": ("Threads", as_text),
    "processes": ("Processes", as_text),
}
# What stands elsewhere on the page; any other key of result.json is listed under the costs as it is.
PLACED = {
    *RESULTS,
    *COSTS,
    *("per_class", "confusion", "warnings", "method", "data", "seed", "teacher", "student", "arch"),
    *(f"{who}_{what}" for who in ("teacher", "student") for what in SIZES),
}
