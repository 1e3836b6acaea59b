"""What a configuration's field is: its flag, its kind, what it may hold. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

MOST_SHOWN = 200  # characters of a value in a message


@dataclass(frozen=True, kw_only=True)
class Field:
    """What the command line and the docs need to know of one field."""

    name: str
    type: type
    choices: tuple[str, ...]
    help: str
    default: Any
    optional: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def fields_of(config: Any) -> tuple[Field, ...]:
    """The fields of a configuration dataclass whose annotations are `Annotated[type, "help"]`."""
    return _fields_of(config)


@functools.cache
def _fields_of(config: Any) -> tuple[Field, ...]:
    hints = typing.get_type_hints(config, include_extras=True)
    found = []
    for field in dataclasses.fields(config):
        kind, text = typing.get_args(hints[field.name])
        optional = typing.get_origin(kind) in (types.UnionType, typing.Union)
        if optional:
            kind = next(option for option in typing.get_args(kind) if option is not type(None))
        base, choices = kind, ()
        if typing.get_origin(base) is Literal:
            base, choices = str, typing.get_args(base)
        if typing.get_origin(base) is tuple:
            base = tuple
        found.append(
            Field(name=field.name, type=base, choices=choices, help=text, default=field.default, optional=optional)
        )
    return tuple(found)


def replace(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of `config` with `values`; an unknown name is an error that names the nearest.

    Raises:
        ValueError: unknown name or invalid value.
    """
    fields = {field.name: field for field in fields_of(type(config))}
    for name in values:
        if name not in fields:
            raise ValueError(f"unknown option {name!r} for {type(config).__name__}{nearest(name, list(fields))}")
    return dataclasses.replace(config, **{name: _of_kind(fields[name], value) for name, value in values.items()})


def nearest(name: str, known: list[str]) -> str:
    """How a message on the unknown `name` ends: the one of `known` that was meant, or all of them."""
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f": take one of {', '.join(known)}"


def check_kinds(config: Any) -> None:
    """Brings each field's value to the type of its annotation; what a flag would give anyway needs no more.

    Raises:
        ValueError: a value of another type, in one line.
    """
    for field in fields_of(type(config)):
        value = getattr(config, field.name)
        if (right := _of_kind(field, value)) is not value:
            object.__setattr__(config, field.name, right)


def _of_kind(field: Field, value: Any) -> Any:
    """`value` as the field's type: a path as text, a list as a tuple, 32 as "32", 1e3 as 1000; None if allowed."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if (value is None and field.optional) or (type(value) is field.type and field.type is not tuple):
        return value
    if field.type is tuple and isinstance(value, list | tuple) and all(isinstance(v, numbers.Real) for v in value):
        return tuple(value)
    if field.type is float and number:
        return value
    if field.type is int and number and (isinstance(value, numbers.Integral) or value == value // 1):
        return int(value)
    if field.type is bool and value in (0, 1):
        return bool(value)
    if field.type is str and (number or isinstance(value, str | os.PathLike) or field.name == "device"):
        return str(value)
    if hasattr(value, "state_dict"):
        raise ValueError(
            f"{field.flag} is a {type(value).__name__}: save its state_dict() to a file and give that, with --arch "
            "file.py:function for a network of your own"
        )
    wanted = {
        tuple: "several numbers, such as (.485, .456, .406)",
        float: "a number",
        int: "a whole number",
        bool: "True or False",
        str: "a text",
    }
    shown = repr(value)
    if "\n" in shown or len(shown) > MOST_SHOWN:
        shown = f"a {type(value).__name__}"
    raise ValueError(f"{field.flag} is {shown}: give {wanted[field.type]}")


# Checks for __post_init__: the text says what to do.


def positive(config: Any, *names: str) -> None:
    """Raises ValueError unless each named field is > 0 (or None)."""
    _check(config, names, lambda v: v > 0, "above 0")


def not_negative(config: Any, *names: str) -> None:
    """Raises ValueError unless each named field is >= 0 (or None)."""
    _check(config, names, lambda v: v >= 0, "0 or more")


def share(config: Any, *names: str) -> None:
    """Raises ValueError unless each named field is in [0, 1) (or None)."""
    _check(config, names, lambda v: 0 <= v < 1, "from 0 to below 1")


def part(config: Any, *names: str) -> None:
    """Raises ValueError unless each named field is in [0, 1] (or None)."""
    _check(config, names, lambda v: 0 <= v <= 1, "from 0 to 1")


def choice(config: Any, *names: str) -> None:
    """Raises ValueError unless each named field is one of the choices its annotation lists (or None)."""
    kinds = {field.name: field.choices for field in fields_of(type(config))}
    for name in names:
        value = getattr(config, name)
        if value is not None and value not in kinds[name]:
            raise ValueError(f"--{name.replace('_', '-')} is {value!r}: take {' or '.join(kinds[name])}")


def _check(config: Any, names: tuple[str, ...], holds: Callable[[Any], bool], wanted: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise ValueError(f"--{name.replace('_', '-')} is {value}: give a number {wanted}")


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "15m", "1.5h" or "1h30m".

    Raises:
        ValueError: not a duration above 0.
    """
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", str(text).strip().lower())
    try:
        hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    except ValueError:
        hours = minutes = seconds = 0.0
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ValueError(f"--budget is {text!r}: give a time such as 90s, 15m or 1.5h")
    return total
