"""What a person sees while a job runs: a live line on a terminal, plain lines elsewhere, nothing with -q."""

from __future__ import annotations

import os
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
        quiet: print warnings only. Of several processes all but the first print nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self.silent = os.environ.get("RANK", "0") != "0"  # torchrun's, set before any process group is
        self.quiet = quiet or self.silent
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
        if self.silent or (self.quiet and not line.startswith("warning:")):
            return
        if self.live is not None:
            self.live.console.print(line, markup=False, highlight=False, soft_wrap=True)
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
            from rich.table import Column

            # Only the terms give way on a narrow terminal.
            whole, rest = Column(no_wrap=True, min_width=9), Column(no_wrap=True, overflow="ellipsis", ratio=1)
            bar = BarColumn(bar_width=12, table_column=Column(min_width=12))
            percent_done = TextColumn("{task.percentage:3.0f}%", table_column=Column(no_wrap=True, min_width=4))
            left = TextColumn("{task.fields[left]} left", table_column=whole)
            terms = TextColumn("{task.description}", table_column=rest, markup=False)
            console = Console(stderr=True)
            self.live = Progress(bar, percent_done, left, terms, console=console, transient=True, expand=True)
            self.live.start()
            self.task = self.live.add_task("", total=1.0, left="?")
        line = f"step {row['step']}  {text}"
        self.live.update(self.task, completed=row["fraction"], description=line, left=_left(row))


def describe(row: Mapping[str, Any]) -> str:
    """Agreement, test accuracy and the named terms of a row, in a line."""
    parts = [f"agreement {row['agreement']:.0%}"] if "agreement" in row else []
    if "test/accuracy" in row:
        parts.append(f"test accuracy {row['test/accuracy']:.1%}")
    parts += [
        f"{key.partition('/')[2]} {value:.3g}"
        for key, value in row.items()
        if "/" in key and not key.startswith("test/")
    ]
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


def plain(value: Any) -> str:
    """A value of a configuration as it is typed."""
    return ",".join(f"{v:g}" for v in value) if isinstance(value, tuple | list) else str(value)


def resolved(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for each option that a run would have."""
    options = {**plan["config"], "device": plan["machine"]["device"], **plan["method_options"]}
    return [(name, plain(value)) for name, value in options.items() if value is not None]


def network(about: Mapping[str, Any]) -> str:
    """A network's name and costs."""
    return f"{about['arch']}: {about['parameters']:,} parameters, {about['multiply_adds']:,} multiply-adds"
