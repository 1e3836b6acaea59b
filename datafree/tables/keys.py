"""Where the keys of a TOML file stand, for messages that name a line."""

from __future__ import annotations

import re
from collections.abc import Iterator


def key_lines(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Number and keys of the lines that begin a section or a value; not of what a longer text quotes."""
    header: tuple[str, ...] = ()
    quote = ""  # the marks that end a longer text, within one
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if quote:
            quote = "" if quote in line else quote
            continue
        if match := re.match(r"\[+([^\]]+)\]+", line):
            header = _dotted(match[1])
            yield number, header
        elif match := re.match(r"([\w.\"'@/-]+)\s*=", line):
            yield number, (*header, *_dotted(match[1]))
            begun = re.search(r"\"{3}|'{3}", line)
            quote = begun[0] if begun and line.count(begun[0]) == 1 else ""


def _dotted(text: str) -> tuple[str, ...]:
    """The parts of a dotted TOML key."""
    return tuple(part.strip("\"' ") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+", text.strip()))
