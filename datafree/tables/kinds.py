"""What the keys of a table's specification may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datafree.config import parse_duration
from datafree.tables.defaults import JOBS
from datafree.tables.specs import COSTS


@dataclass(frozen=True)
class Kind:
    """What a value may be, in words that follow "give", and whether one is."""

    words: str
    holds: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _length(value: Any) -> bool:
    try:
        return isinstance(value, str) and parse_duration(value) > 0
    except ValueError:
        return False


def one_of(*known: str) -> Kind:
    return Kind(f"one of {', '.join(known)}", lambda value: value in known)


TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", _all(TEXT.holds))
NUMBER = Kind("a number", _number)
NUMBERS = Kind("a list of numbers", _all(_number))
WHOLE = Kind("a whole number", _whole)
COUNT = Kind("a whole number above 0", lambda value: _whole(value) and value > 0)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
SECTION = Kind("a section", lambda value: isinstance(value, dict))
TIMES = Kind('a list of times, such as ["10m", "30m"]', lambda value: bool(value) and _all(_length)(value))
JOB, COST = one_of(*JOBS), one_of(*COSTS)

KEYS: dict[str, dict[str, Kind]] = {
    "": {
        **dict.fromkeys(("title", "metric", "protocol", "notes"), TEXT),
        **dict.fromkeys(("options", "teachers", "groups", "rows", "cells", "published"), SECTION),
        "papers": TEXTS, "order": WHOLE, "layout": one_of("rows", "matrix", "speed"), "budgets": TIMES,
        "seeds": COUNT, "cost": COST, "tolerance": NUMBER,
    },
    "teachers": {
        **dict.fromkeys(("title", "file", "source", "sha256", "arch"), TEXT),
        "mean": NUMBERS, "std": NUMBERS, "pretrain": SECTION,
    },
    "groups": {
        "title": TEXT, "job": JOB, "teacher": TEXT, "rows": TEXTS, "cost": COST, "budgets": TIMES,
        "evaluation": SECTION, "options": SECTION,
    },
    "rows": {"title": TEXT, "job": JOB, "groups": TEXTS, "cost": COST, "options": SECTION, "budgets": TIMES},
    "published": {"value": NUMBER, "spread": NUMBER, "source": TEXT, "tolerance": NUMBER},
    "evaluation": {
        "protocol": TEXT, "networks": COUNT, "archs": TEXTS, "precision": one_of("32", "bf16"), "validation": TRUTH,
    },
}  # fmt: skip
# What an option may be, by its field's type.
TYPES = {int: WHOLE, float: NUMBER, str: TEXT, bool: TRUTH, tuple: NUMBERS}
