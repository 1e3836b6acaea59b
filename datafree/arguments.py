"""Arguments of public functions: one of another kind than its annotation says is told in a line, not deep inside."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from datafree.fields import flag, shown

P = ParamSpec("P")
R = TypeVar("R")

UNIONS = (types.UnionType, typing.Union)
WORDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path", os.PathLike: "a path"}


def checked(*own: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function raise ValueError for arguments that their annotations do not allow, and for empty texts.

    `own` are arguments whose kind it checks itself, having more to say of them; "device" is always one. A path may be
    given as a text and a text as a path; several values as anything that has a length.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        names = {name: of for name, of in signature.parameters.items() if of.kind not in several}
        options = {name for name, of in names.items() if of.kind is inspect.Parameter.KEYWORD_ONLY}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:  # Python says by itself which are missing or too many
                return function(*args, **kwargs)
            check_kinds(function, {name: value for name, value in given.items() if name in names}, own)
            for name in [n for n, value in given.items() if isinstance(value, str) and not value.strip()]:
                said = f"{flag(name)} is empty: give its value, or leave it out"
                raise ValueError(said if name in options else f"{name} is empty: give its value")
            return function(*args, **kwargs)

        return call

    return wrap


def check_kinds(of: Callable[..., Any], values: Mapping[str, Any], own: Sequence[str] = ()) -> None:
    """Raises ValueError where an annotation of the function or class does not allow a value; `own` as for `checked`."""
    hints = _hints(of)
    for name, value in values.items():
        if name in hints and name not in ("device", *own) and not _holds(hints[name], value):
            words = " or ".join(dict.fromkeys(_words(hints[name])))
            raise ValueError(f"{of.__qualname__.removesuffix('.__init__')}({name}={shown(value)}): give {words}")


_hints = functools.cache(typing.get_type_hints)


def _holds(kind: Any, value: Any) -> bool:
    """Whether an annotation allows a value; any that is not known here allows all."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in UNIONS:
        return any(_holds(part, value) for part in parts)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return hasattr(value, "__float__") and not isinstance(value, bool)
    if kind in WORDS or origin is os.PathLike:
        return isinstance(value, str | os.PathLike) if kind is str else isinstance(value, os.PathLike)
    if origin in (tuple, Sequence):
        long = hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0 and not isinstance(value, str)
        return long and all(_holds(parts[0], each) for each in value)
    if origin is Callable:
        return callable(value)
    known = origin or kind
    return not isinstance(known, type) or known in (bool, object) or isinstance(value, known)


def _words(kind: Any) -> list[str]:
    """What may be given, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        return [word for part in parts for word in _words(part)]
    if origin in (tuple, Sequence):
        return [f"several {' or '.join(_words(parts[0])).removeprefix('a ')}s"]
    known = origin or kind
    if known is type(None):
        return ["None"]
    return ["a function" if known is Callable else WORDS.get(known, f"a {getattr(known, '__name__', known)}")]
