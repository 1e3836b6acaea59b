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
from typing import Annotated, Any, Literal

MOST_SHOWN = 200  # characters of a value in a message
KINDS = (int, float, bool, str, tuple)  # what a field may be
# What other libraries call an option of ours.
ALIASES = {"learning_rate": "lr", "wd": "weight_decay", "iterations": "steps", "num_classes": "classes"}
# What to give for a field that is no text, where more can be said than that.
REMEDIES = {
    "data": "give a name, npz:PATH or imagefolder:PATH",
    "shape": "give channels, height and width, such as 3x32x32",
    "source": "give condensed:PATH, the folder or file that holds the set",
    "arch": "give a name, or file.py:function for a network of your own",
    "student": "give a name, or file.py:function for a network of your own",
}


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
        return flag(self.name)


def flag(name: str) -> str:
    """The flag of the option of that name."""
    return "--" + name.replace("_", "-")


def fields_of(config: Any) -> tuple[Field, ...]:
    """The fields of a configuration dataclass whose annotations are `Annotated[type, "help"]`.

    Raises:
        ValueError: a field that is annotated otherwise; one line.
    """
    return _fields_of(config)


@functools.cache
def _fields_of(config: Any) -> tuple[Field, ...]:
    hints = typing.get_type_hints(config, include_extras=True)
    found = []
    for field in dataclasses.fields(config):
        kind, text = _annotation(config, field.name, hints[field.name])
        optional = typing.get_origin(kind) in (types.UnionType, typing.Union)
        if optional:
            kind = next(option for option in typing.get_args(kind) if option is not type(None))
        base, choices = kind, ()
        if typing.get_origin(base) is Literal:
            base, choices = str, typing.get_args(base)
        if typing.get_origin(base) is tuple:
            base = tuple
        if base not in KINDS:
            raise ValueError(
                f"{config.__name__}.{field.name} is a {getattr(base, '__name__', base)}: take int, float, bool, str, "
                "Literal or a tuple of floats, each with | None or without"
            )
        found.append(
            Field(name=field.name, type=base, choices=choices, help=text, default=field.default, optional=optional)
        )
    return tuple(found)


def _annotation(config: Any, name: str, hint: Any) -> tuple[Any, str]:
    """Type and help of one field."""
    if typing.get_origin(hint) is not Annotated or not isinstance(typing.get_args(hint)[1], str):
        raise ValueError(
            f'{config.__name__}.{name} has no help: annotate it as Annotated[type, "help"], such as '
            f'{name}: Annotated[float, "weight of ..."] = 1.0'
        )
    kind, text = typing.get_args(hint)[:2]
    return kind, text


def method_config(method: type[Any], job: type[Any]) -> type[Any]:
    """The configuration of a method, whose fields stand beside those of the `job`.

    Raises:
        ValueError: there is none, or a field of it cannot be an option; one line that names the class.
    """
    name, config = method.__name__, getattr(method, "Config", None)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ValueError(f"{name} has no Config: give it its dataclass, Config = {name}Config")
    taken = {field.name for field in dataclasses.fields(job)}
    for field in fields_of(config):
        if field.name in taken:
            raise ValueError(f"{config.__name__}.{field.name} is an option of every run: give it another name")
        if field.default is dataclasses.MISSING:
            raise ValueError(f"{config.__name__}.{field.name} has no default: give it one")
    return config


def as_config(config: Any, kind: type[Any], call: str) -> Any:
    """`config`, of its `kind`, or the kind's defaults where it is None; `call`: how keywords are given.

    Raises:
        ValueError: something else was given in its place.
    """
    if config is None:
        return kind()
    if not isinstance(config, kind):
        value = f'"{config}"' if isinstance(config, str) else "..."
        raise ValueError(
            f"a {type(config).__name__} stands in the place of {kind.__name__}: give keywords: {call.format(value)}"
        )
    return config


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

    close = [ALIASES[name]] if ALIASES.get(name) in known else difflib.get_close_matches(name, known, 1)
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
    """`value` as the field's type: a path as text, a list as a tuple, 32 as "32", 1e3 as 1000; None if allowed.

    A tuple may be given as an array, a tensor or one number, a shape as a tuple.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if field.type is str and isinstance(value, str) and not value.strip():
        raise ValueError(f"{field.flag} is empty: give its value, or leave it out")
    if (value is None and field.optional) or (type(value) is field.type and field.type is not tuple):
        return value
    if field.type is tuple and (several := _numbers(value)) is not None:
        return several
    if field.type is float and number:
        return _plain(value)
    if field.type is int and number and (isinstance(value, numbers.Integral) or value == value // 1):
        return int(value)
    if field.type is bool and value in (0, 1):
        return bool(value)
    if field.type is str and (number or isinstance(value, str | os.PathLike) or field.name == "device"):
        return str(value)
    if field.name == "shape" and (sides := _numbers(value)):
        return "x".join(map(str, sides))
    raise ValueError(f"{field.flag} is {shown(value)}: {_remedy(field, value)}")


def shown(value: Any) -> str:
    """A value in a message: in full, or its kind where that would be long."""
    text = repr(value)
    long = "\n" in text or " at 0x" in text or len(text) > MOST_SHOWN
    return f"a {type(value).__name__}" if long or hasattr(value, "state_dict") else text


def _numbers(value: Any) -> tuple[float, ...] | None:
    """A list, an array, a tensor or one number as a tuple; None where it is anything else."""
    held = value.tolist() if hasattr(value, "tolist") else value
    held = held if isinstance(held, list | tuple) else [held]
    if any(isinstance(each, bool) or not isinstance(each, numbers.Real) for each in held):
        return None
    return tuple(map(_plain, held))


def _plain(number: Any) -> float:
    """As JSON takes it: numpy's numbers are no floats there."""
    return number if isinstance(number, int | float) else float(number)


def _remedy(field: Field, value: Any) -> str:
    """What to do about a value that the field does not take."""
    network = field.name in ("teacher", "student")
    if network and callable(value) and hasattr(value, "__name__"):
        return f"give what it returns, {value.__name__}()"
    if network and isinstance(value, Mapping):
        return "save it with torch.save(..., PATH) and give the file"
    if field.name in REMEDIES:
        return REMEDIES[field.name]
    if hasattr(value, "state_dict"):
        return "save its state_dict() to a file and give that, with --arch file.py:function for a network of your own"
    wanted = {
        tuple: "several numbers, such as (.485, .456, .406)",
        float: "a number",
        int: "a whole number",
        bool: "True or False",
        str: "a text",
    }
    return f"give {wanted[field.type]}"


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
    """Raises ValueError unless each field, or each named one, is of the choices its annotation lists (or None)."""
    for field in fields_of(type(config)):
        value = getattr(config, field.name)
        if field.choices and (not names or field.name in names) and value not in (None, *field.choices):
            raise ValueError(f"{field.flag} is {value!r}: take {' or '.join(field.choices)}")


def _check(config: Any, names: tuple[str, ...], holds: Callable[[Any], bool], wanted: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise ValueError(f"{flag(name)} is {value}: give a number {wanted}")


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "15m", "1.5h", "1h30m" or "1m30"; "1h30" is none, where the 30 may be of either.

    Raises:
        ValueError: not a duration above 0.
    """
    match = re.fullmatch(r"(?:([\d.]+)h(?![\d.]+$))?(?:([\d.]+)m)?(?:([\d.]+)s?)?", str(text).strip().lower())
    try:
        hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    except ValueError:
        hours = minutes = seconds = 0.0
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ValueError(f"--budget is {text!r}: give a time such as 90s, 15m or 1.5h")
    return total
