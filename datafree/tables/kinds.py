"""What the keys of a table's specification and of a result file may be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datafree.fields import parse_duration
from datafree.tables.defaults import JOBS
from datafree.tables.specs import COSTS


@dataclass(frozen=True)
class Kind:
    """What a value may be, in words that follow "give", and whether one is."""

    words: str
    holds: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or _whole(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _from(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: _number(value) and least <= value <= most


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _length(value: Any) -> bool:
    try:
        return isinstance(value, str) and parse_duration(value) > 0
    except ValueError:
        return False


def _different(value: Any) -> bool:
    return _all(_length)(value) and len({parse_duration(each) for each in value}) == len(value)


def _moment(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and WHOLE.holds(value[0])
        and AMOUNT.holds(value[1])
        and SHARE.holds(value[2])
    )


def one_of(*known: str) -> Kind:
    return Kind(f"one of {', '.join(known)}", lambda value: value in known)


def or_none(kind: Kind) -> Kind:
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", _all(TEXT.holds))
NUMBER = Kind("a number", _number)
NUMBERS = Kind("a list of numbers", _all(_number))
SPREADS = Kind("a list of numbers above 0", _all(lambda value: _number(value) and value > 0))
INTEGER = Kind("a whole number", _whole)
WHOLE = Kind("a whole number of 0 or more", lambda value: _whole(value) and value >= 0)
COUNT = Kind("a whole number above 0", lambda value: _whole(value) and value > 0)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
SECTION = Kind("a section", lambda value: isinstance(value, dict))
TIMES = Kind('a list of times, no two alike, such as ["10m", "30m"]', lambda value: bool(value) and _different(value))
SAID = Kind("a text that is not blank", lambda value: isinstance(value, str) and bool(value.strip()))
NOTHING = Kind("null", lambda value: value is None)
SHARE = Kind("a number from 0 to 1", _from(0, 1))
PER_CENT = Kind("a number from 0 to 100", _from(0, 100))
AMOUNT = Kind("a number of 0 or more", _from(0))
DEVICE = Kind("auto, cpu, cuda or cuda:N", lambda value: bool(re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", str(value))))
CURVE = Kind("a list of [step, seconds, accuracy]", _all(_moment))
JOB, COST = one_of(*JOBS), one_of(*COSTS)

KEYS: dict[str, dict[str, Kind]] = {
    "": {
        **dict.fromkeys(("title", "metric", "protocol", "notes"), TEXT),
        **dict.fromkeys(("options", "teachers", "groups", "rows", "cells", "published"), SECTION),
        "papers": TEXTS, "order": INTEGER, "layout": one_of("rows", "matrix", "speed"), "budgets": TIMES,
        "seeds": COUNT, "cost": COST, "tolerance": AMOUNT,
    },
    "teachers": {
        **dict.fromkeys(("title", "file", "source", "sha256", "arch"), TEXT),
        "mean": NUMBERS, "std": SPREADS, "pretrain": SECTION,
    },
    "groups": {
        "title": TEXT, "job": JOB, "teacher": TEXT, "rows": TEXTS, "cost": COST, "budgets": TIMES,
        "evaluation": SECTION, "options": SECTION,
    },
    "rows": {"title": TEXT, "job": JOB, "groups": TEXTS, "cost": COST, "options": SECTION, "budgets": TIMES},
    "published": {"value": PER_CENT, "spread": AMOUNT, "source": SAID, "tolerance": AMOUNT},
    "evaluation": {
        "protocol": TEXT, "networks": COUNT, "archs": TEXTS, "precision": one_of("32", "bf16"), "validation": TRUTH,
    },
}  # fmt: skip
# What an option may be, by its field's type.
TYPES = {int: INTEGER, float: NUMBER, str: TEXT, bool: TRUTH, tuple: NUMBERS}
