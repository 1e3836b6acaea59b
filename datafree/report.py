"""The report of a run: one HTML page that holds all it shows, written from the files in the run's folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from datafree.pictures import data_uri, line_chart

NONE = "–"
Row = tuple[str, str]
Points = list[tuple[float, float, float]]  # step, seconds, value


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
    about, result = _read_json(run / "run.json", notes), _read_json(run / "result.json", notes)
    metrics = _read_metrics(run / "metrics.jsonl")
    grids = _grids(run / "images", notes)
    teacher, student, domain = (_mapping(about.get(key)) for key in ("teacher", "student", "domain"))
    networks = [_first(teacher.get("arch"), result.get("teacher")), _first(student.get("arch"), result.get("student"))]
    title = " → ".join(_value(name) for name in networks if name is not None) or run.resolve().name
    job = about.get("job", "train")
    if job == "condense":
        title = f"{_value(domain.get('name'))} condensed"
    config = _mapping(about.get("config"))
    steps = [int(step) for points in metrics.values() for step, _, _ in points]
    context = {
        "title": title,
        "facts_line": [
            ("Job", JOBS.get(job, _value(job))),
            ("Method", _value(_first(result.get("method"), config.get("method")))),
            ("Data", _value(_first(result.get("data"), config.get("data"), domain.get("name")))),
            ("Seed", _value(_first(about.get("seed"), result.get("seed")))),
        ],
        "finished": bool(result),
        "last_step": f"{max(steps):,}" if steps else None,
        "results": _results(result),
        "untested": "student_accuracy" in result and result["student_accuracy"] is None,
        "warnings": [_value(text) for text in _list(result.get("warnings"))] + notes,
        "choices": [_value(text) for text in _list(about.get("choices"))],
        "charts": _charts(metrics, _number(result.get("teacher_accuracy"))),
        "per_class": _per_class(_mapping(result.get("per_class")), _list(domain.get("class_names"))),
        "grids": grids,
        "networks": _networks(teacher, student, _mapping(about.get("networks")), result),
        "costs": _labelled(result, COSTS),
        "others": [(key, _value(value)) for key, value in result.items() if key not in PLACED],
        "command": about.get("command"),
        "job": job,
        "configuration": _configuration(about, config),
        "environment": _environment(about, teacher),
    }
    source = files("datafree").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(context)


# Files -------------------------------------------------------------------------------------------------------------


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object in the file; empty, with a note if there is a file, where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return {}


def _read_metrics(path: Path) -> dict[str, Points]:
    """Each logged name with its points, by step. A torn line is skipped; of a step logged twice, the later line counts
    (a resumed run logs again what it does again)."""
    found: dict[str, dict[float, tuple[float, float, float]]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = _mapping(json.loads(line))
        except ValueError:
            continue
        step, seconds = _number(entry.pop("step", None)), _number(entry.pop("seconds", None))
        if step is None:
            continue
        for key, value in entry.items():
            number = _number(value)
            if number is not None:
                found.setdefault(key, {})[step] = (step, seconds or 0.0, number)
    return {key: [points[step] for step in sorted(points)] for key, points in found.items()}


def _grids(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The first, the middle and the last picture of the steps; of a run without steps, any that lie in the folder."""
    paths = sorted(folder.glob("step-*.png")) or sorted(folder.glob("*.png"))
    chosen = [paths[i] for i in sorted({0, len(paths) // 2, len(paths) - 1})] if paths else []
    grids = []
    for path in chosen:
        step = re.fullmatch(r"step-0*(\d+)", path.stem)
        when = f"step {int(step[1]):,}" if step else path.stem
        try:
            address, width, height = data_uri(path.read_bytes())
        except (OSError, ValueError) as error:
            notes.append(f"images/{path.name} could not be read: {error}")
            continue
        grids.append({"when": when, "src": address, "width": width, "height": height})
    return grids


# Parts of the page -------------------------------------------------------------------------------------------------


def _results(result: Mapping[str, Any]) -> list[Row]:
    rows = _labelled(result, RESULTS)
    teacher, student = _number(result.get("teacher_accuracy")), _number(result.get("student_accuracy"))
    if teacher is not None and student is not None:
        rows.insert(2, ("Student less teacher", f"{100 * (student - teacher):+.2f} points".replace("-", "−")))
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
        percent = key.rsplit("/", 1)[-1] in ("accuracy", "agreement")
        show: Callable[[Any], str] = _percent if percent else _value
        reference = teacher_accuracy if key == "test/accuracy" else None
        svg = line_chart(x, y, name=f"chart{len(charts)}", xlabel=xlabel, percent=percent, reference=reference)
        charts.append(
            {
                "name": names.get(key, key),
                "words": f"first {show(y[0])}, last {show(y[-1])}, lowest {show(min(y))}, highest {show(max(y))}",
                "reference": None if reference is None else f"dashed: the teacher, {_percent(reference)}",
                "svg": Markup(svg),  # matplotlib's own markup: no text of the run's is in it
            }
        )
    return charts


def _per_class(scores: Mapping[str, Any], names: Sequence[Any]) -> dict[str, Any] | None:
    """Who was scored, and for each class its name and their accuracies, each as text and as a percentage for a bar."""
    who = [key for key in ("teacher", "student") if _list(scores.get(key))]
    if not who:
        return None
    rows = []
    for index in range(max(len(scores[key]) for key in who)):
        values = [_number(scores[key][index]) if index < len(scores[key]) else None for key in who]
        bars = [(_percent(value), min(100.0, max(0.0, 100 * (value or 0.0)))) for value in values]
        rows.append((_value(names[index]) if index < len(names) else str(index), bars))
    return {"who": who, "rows": rows}


def _networks(
    teacher: Mapping[str, Any], student: Mapping[str, Any], looked_through: Mapping[str, Any], result: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Whose size is known, and rows of (label, values). What an entry does not say is looked up in the result."""
    columns = {}
    for who, side in (("teacher", teacher), ("student", student), ("looked through", looked_through)):
        sizes = [_first(side.get(key), result.get(f"{who}_{key}")) for key in ("parameters", "multiply_adds")]
        if sizes != [None, None]:
            arch = _value(_first(side.get("arch"), result.get(who)))
            columns[who] = [arch, _count(sizes[0]), _short(sizes[1])]
    labels = ("Architecture", "Parameters", "Multiply-adds per image")
    rows = list(zip(labels, zip(*columns.values(), strict=True), strict=True)) if columns else []
    return {"who": list(columns), "rows": rows} if columns else None


def _configuration(about: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Rows of (name, value, whether a person set it)."""
    chosen = {str(name).replace("-", "_") for name in _list(about.get("set_by_user"))}
    values = {**config, **_mapping(about.get("method_options"))}
    return [(key, _value(value, 15), key.replace("-", "_") in chosen) for key, value in values.items()]


def _environment(about: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Row]:
    rows = {"datafree": about.get("datafree"), "git commit": about.get("git")}
    rows.update({key: value for key, value in _mapping(about.get("versions")).items() if key != "datafree"})
    rows.update({key.replace("_gb", " (GB)"): value for key, value in _mapping(about.get("machine")).items()})
    rows.update({"teacher": teacher.get("source"), "teacher's SHA-256": teacher.get("sha256")})
    return [(key, _value(value)) for key, value in rows.items() if value is not None]


# Values ------------------------------------------------------------------------------------------------------------


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _number(value: Any) -> float | None:
    """The value if it is a finite number: JSON written by Python may hold NaN and Infinity."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _value(value: Any, digits: int = 4) -> str:
    """Any value of a JSON file as text; fractions to so many significant digits."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, list):
        return ", ".join(_value(item, digits) for item in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _percent(value: Any) -> str:
    number = _number(value)
    return NONE if number is None else f"{100 * number:.2f} %"


def _count(value: Any) -> str:
    number = _number(value)
    return NONE if number is None else f"{number:,.0f}"


def _short(value: Any) -> str:
    number = _number(value)
    if number is None:
        return NONE
    size, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if abs(number) >= s), (1.0, ""))
    return f"{number / size:.3g}{unit}"


def _duration(value: Any) -> str:
    number = _number(value)
    if number is None:
        return NONE
    if number < 60:
        return f"{number:.1f} s"
    minutes, seconds = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _megabytes(value: Any) -> str:
    number = _number(value)
    return NONE if number is None else f"{number:,.0f} MB"


def _labelled(result: Mapping[str, Any], labels: Mapping[str, tuple[str, Callable[[Any], str]]]) -> list[Row]:
    return [(label, show(result[key])) for key, (label, show) in labels.items() if key in result]


RESULTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "teacher_accuracy": ("Teacher's accuracy", _percent),
    "student_accuracy": ("Student's accuracy", _percent),
    "accuracy": ("Accuracy", _percent),
    "agreement": ("Agreement with the teacher", _percent),
    "kl": ("KL divergence from the teacher (nats)", _value),
}
JOBS = {"train": "data-free distillation", "pretrain": "training with data", "condense": "condensation"}
COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "steps": ("Steps", _count),
    "rounds": ("Rounds", _count),
    "images": ("Images synthesized", _count),
    "stored_images": ("Images stored", _count),
    "stored_floats": ("Floats stored", _count),
    "decoded_images": ("Images decoded", _count),
    "label_bytes": ("Labels (bytes)", _count),
    "learning_rate": ("Learned rate", _value),
    "preparation_seconds": ("Preparation", _duration),
    "synthesis_seconds": ("Synthesis", _duration),
    "distillation_seconds": ("Distillation", _duration),
    "total_seconds": ("In all", _duration),
    "peak_rss_mb": ("Peak memory", _megabytes),
    "peak_device_mb": ("Peak memory of the device", _megabytes),
    "precision": ("Precision", _value),
    "threads": ("Threads", _value),
    "processes": ("Processes", _value),
}
# What stands elsewhere on the page; any other key of result.json is listed under the costs as it is.
PLACED = {
    *RESULTS,
    *COSTS,
    *("per_class", "warnings", "method", "data", "seed", "teacher", "student", "arch"),
    *(f"{who}_{what}" for who in ("teacher", "student") for what in ("parameters", "multiply_adds")),
}
