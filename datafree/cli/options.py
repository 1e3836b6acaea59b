"""Flags from configuration dataclasses, and a configuration back from flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from datafree.fields import Field, fields_of


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Comma-separated numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: give numbers with commas between, such as .485,.456,.406", param, ctx)


def option(field: Field) -> click.Option:
    """The flag of a field. It has no default of its own: a flag that was not given stays out of the parameters."""
    shown = "" if field.default is None or field.default is False else f"  [default: {_text(field.default)}]"
    if field.type is bool:
        flags = f"{field.flag}/--no-{field.flag[2:]}"
        return click.Option([flags], default=None, help=field.help + shown)
    kind: Any = click.Choice(field.choices) if field.choices else Numbers() if field.type is tuple else field.type
    metavar = None if field.choices else {int: "N", float: "X", tuple: "X,X,.."}.get(field.type, "TEXT")
    return click.Option([field.flag], type=kind, default=None, metavar=metavar, help=field.help + shown)


def options(config: type) -> list[click.Parameter]:
    return [option(field) for field in fields_of(config)]


def run_flags(name: str, *, config: bool = True) -> list[click.Parameter]:
    """The flags of a command that writes a run; `name` is its folder's, without --config where that is not `config`."""
    flags: list[click.Parameter] = [
        click.Option(["--out"], metavar="DIR", help=f"folder of the run  [default: a fresh runs/{name}-N]"),
        click.Option(["--resume"], is_flag=True, help="go on with the run in --out; takes no other flag"),
        click.Option(["--config"], metavar="RUN.JSON", help="rerun a saved run or result; flags beside it override it"),
        click.Option(["--force"], is_flag=True, help="overwrite the run in --out"),
        click.Option(["--dry-run"], is_flag=True, help="print what would be run, and stop"),
        click.Option(["-q", "--quiet"], is_flag=True, help="print warnings and errors only"),
    ]
    return [flag for flag in flags if config or flag.name != "config"]


def given(values: Mapping[str, Any], config: type) -> dict[str, Any]:
    """The fields of `config` that were set on the command line."""
    names = {field.name for field in fields_of(config)}
    return {name: value for name, value in values.items() if name in names and value is not None}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
