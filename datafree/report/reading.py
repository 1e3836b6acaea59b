"""What the pages about runs share: a run's files read in whatever state they are, values as text, and the templates."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from datafree.pictures import data_uri

NONE = "–"
Points = list[tuple[float, float, float]]  # step, seconds, value


# Files -------------------------------------------------------------------------------------------------------------


def read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object in the file; empty, with a note if there is a file, where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return {}


def read_metrics(path: Path, notes: list[str]) -> dict[str, Points]:
    """Each logged name with its points, by step. A torn line is skipped; of a step logged twice, the later line counts
    (a resumed run logs again what it does again)."""
    found: dict[str, dict[float, tuple[float, float, float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error}")
        return {}
    for line in lines:
        try:
            entry = as_mapping(json.loads(line))
        except (ValueError, RecursionError):
            continue
        step, seconds = as_number(entry.pop("step", None)), as_number(entry.pop("seconds", None))
        if step is None:
            continue
        for key, value in entry.items():
            number = as_number(value)
            if number is not None:
                found.setdefault(key, {})[step] = (step, seconds or 0.0, number)
    return {key: [points[step] for step in sorted(points)] for key, points in found.items()}


def grid_paths(folder: Path) -> list[Path]:
    """The pictures of the steps, in order; of a run without steps, any that lie in the folder."""
    return sorted(folder.glob("step-*.png")) or sorted(folder.glob("*.png"))


def read_grid(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """A picture to stand in a page: when it was made, its address, width and height; None, with a note, if torn."""
    step = re.fullmatch(r"step-0*(\d+)", path.stem)
    try:
        address, width, height = data_uri(path.read_bytes())
    except (OSError, ValueError) as error:
        notes.append(f"images/{path.name} could not be read: {error}")
        return None
    return {"when": f"step {int(step[1]):,}" if step else path.stem, "src": address, "width": width, "height": height}


# Values ------------------------------------------------------------------------------------------------------------


def as_mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_number(value: Any) -> float | None:
    """The value if it is a finite number: JSON written by Python may hold NaN and Infinity."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # a whole number of more than 308 digits
        return None


def as_text(value: Any, digits: int = 4) -> str:
    """Any value of a JSON file as text; fractions to so many significant digits."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, list):
        return ", ".join(as_text(item, digits) for item in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)


def tested_on(config: Mapping[str, Any]) -> str:
    """The images that a run's accuracies are of, by its options."""
    return "held-out training images" if config.get("validation") is True else "the test set"


def percent(value: Any) -> str:
    number = as_number(value)
    return NONE if number is None else f"{100 * number:.2f} %"


def difference(fraction: float, digits: int = 2) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    return f"{100 * fraction:+.{digits}f}".replace("-", "−")


def count(value: Any) -> str:
    number = as_number(value)
    return NONE if number is None else f"{number:,.0f}"


def short(value: Any) -> str:
    number = as_number(value)
    if number is None:
        return NONE
    number = float(f"{number:.3g}")  # before its unit is chosen: 999,600 are 1 M
    size, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if abs(number) >= s), (1.0, ""))
    return f"{number / size:.3g}{unit}"


def duration(value: Any) -> str:
    number = as_number(value)
    if number is None:
        return NONE
    if round(number, 1) < 60:
        return f"{number:.1f} s"
    minutes, seconds = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def megabytes(value: Any) -> str:
    number = as_number(value)
    return NONE if number is None else f"{number:,.0f} MB"


def class_name(names: Sequence[Any], index: int) -> str:
    """The name of a class; its number where it has none."""
    return as_text(names[index]) if index < len(names) else str(index)


# Pages -------------------------------------------------------------------------------------------------------------


def render(template: str, context: Mapping[str, Any]) -> str:
    """The page that a template (a file in `templates/`) makes of its context. All values are escaped."""

    def load(name: str) -> str:
        return files("datafree").joinpath(f"templates/{name}").read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(context)
