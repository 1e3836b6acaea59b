"""`datafree experts`."""

from __future__ import annotations

from typing import Any

import click

from datafree.cli.display import Display, table
from datafree.cli.options import given, options
from datafree.config import ExpertsConfig

_JOB_OPTIONS: list[click.Parameter] = [
    click.Option(["--out"], metavar="DIR", help="folder of the experts  [default: in the cache, by what they are of]"),
    click.Option(["-q", "--quiet"], is_flag=True, help="print warnings and errors only"),
]


def run(**values: Any) -> None:
    """Record experts: networks trained on real data, their parameters kept on the way.

    datafree condense --method mtt, tesla or datm matches them: those in the cache where its own recipe is the same,
    those in --out with --expert-folder. Experts that are there are not made again: the same command goes on.
    """
    config = ExpertsConfig(**given(values, ExpertsConfig))
    from datafree.jobs.recording import record_experts

    with Display(values["quiet"]) as display:
        result = record_experts(config, out=values["out"], say=display.say)
    if not display.quiet:
        rows = [("experts", f"{result['experts']}, {result['records']} records each")]
        rows += [("time", f"{result['seconds']:.0f} s of recording"), ("disk", f"{result['bytes'] / 1e6:,.0f} MB")]
        click.echo(table([*rows, ("folder", result["folder"])]))


experts = click.Command("experts", callback=run, params=[*options(ExpertsConfig), *_JOB_OPTIONS], help=run.__doc__)
