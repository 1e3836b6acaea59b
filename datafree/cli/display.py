"""What a person sees while a job runs: a live line on a terminal, plain lines elsewhere, nothing with -q."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import click

PLAIN_SECONDS = 10.0


class Display:
    """`say` prints a line, `show` the measurements of the moment.

    Args:
        quiet: print warnings only.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.live: Any = None
        self.task: Any = None
        self.printed = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, line: str) -> None:
        if self.quiet and not line.startswith("warning:"):
            return
        if self.live is not None:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line, err=True)

    def show(self, row: Mapping[str, Any]) -> None:
        if self.quiet:
            return
        text = describe(row)
        if sys.stderr.isatty():
            self._show_live(row, text)
        elif time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            click.echo(f"{row['fraction']:4.0%}  step {row['step']}  {text}  {_left(row)} left", err=True)

    def _show_live(self, row: Mapping[str, Any], text: str) -> None:
        if self.live is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.description}"))
            self.live = Progress(*columns, console=Console(stderr=True), transient=True)
            self.live.start()
            self.task = self.live.add_task("", total=1.0)
        self.live.update(
            self.task, completed=row["fraction"], description=f"step {row['step']}  {text}  {_left(row)} left"
        )


def describe(row: Mapping[str, Any]) -> str:
    """The named terms of a row, in a line."""
    parts = [
        f"{key.partition('/')[2]} {value:.3g}"
        for key, value in row.items()
        if "/" in key and not key.startswith("test/")
    ]
    if "agreement" in row:
        parts.append(f"agreement {row['agreement']:.0%}")
    if "test/accuracy" in row:
        parts.append(f"test accuracy {row['test/accuracy']:.1%}")
    return "  ".join(parts)


def _left(row: Mapping[str, Any]) -> str:
    seconds = row.get("seconds_left")
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"
