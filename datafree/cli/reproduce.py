"""`datafree reproduce`."""

from __future__ import annotations

from typing import Any

import click

from datafree.cli.display import table
from datafree.fields import flag


@click.command()
@click.argument("name", metavar="[TABLE]", required=False)
@click.option(
    "--cell", "cells", multiple=True, metavar="GROUP/ROW", help="run this cell; * stands for anything; repeat"
)
@click.option("--seeds", type=int, metavar="N", help="seeds of each cell, from 0  [default: the table's]")
@click.option("--budget", metavar="TIME", help="wall clock of each cell, instead of its length, such as 30m")
@click.option("--shard", default="0/1", show_default=True, metavar="I/N", help="every N-th cell, from number I")
@click.option("--jobs", type=int, default=1, show_default=True, metavar="N", help="cells side by side, one thread each")
@click.option("--out", default="results", show_default=True, metavar="DIR", help="folder of the results")
@click.option("--teachers", metavar="DIR", help="folder of the third-party teachers' files")
@click.option(
    "--cost", "costs", multiple=True, metavar="CLASS", help="minutes, hours or gpu; repeat  [default: what runs here]"
)
@click.option("--download", is_flag=True, help="allow downloads of data and weights")
@click.option("--retry", is_flag=True, help="run failed cells again")
@click.option("--missing", is_flag=True, help="leave out what the package has a result of")
@click.option("--keep", is_flag=True, help="leave the runs' folders in DIR/TABLE/runs")
@click.option("--dry-run", is_flag=True, help="list the cells and what is there, and stop")
@click.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
def reproduce(name: str | None, **values: Any) -> None:
    """Run the missing cells of a TABLE and render it beside the published numbers.

    Without TABLE it lists the tables. A cell that has a result is not run again; one that was killed goes on. TABLE may
    be a .toml file of your own.
    """
    from datafree.jobs import reproducing

    quiet, dry = values.pop("quiet"), values.pop("dry_run")
    if name is None:
        given = [
            n for n, value in values.items() if value and value != {"shard": "0/1", "jobs": 1}.get(n) and n != "out"
        ]
        if given:
            names = ", ".join(flag({"cells": "cell", "costs": "cost"}.get(n, n)) for n in given)
            raise ValueError(f"{names}: of which TABLE? 'datafree reproduce' lists them")
        rows = [
            (each.name, f"{each.title}: {len(each.cells)} cells, {shipped} come with the package, {here} here")
            for each, shipped, here in reproducing.status(values["out"])
        ]
        click.echo(table(rows))
        return
    if values["jobs"] < 1:
        raise ValueError(f"--jobs is {values['jobs']}: give 1 or more")
    if dry:
        asked = ("out", "cells", "seeds", "budget", "shard", "costs", "retry", "missing")
        listed = reproducing.preview(name, **{key: values[key] for key in asked})
        click.echo(table(listed) if listed else "no cells: --cost, --shard and --missing leave none")
        return
    result = reproducing.reproduce(name, say=(lambda _: None) if quiet else click.echo, **values)
    if not quiet:
        click.echo(f"table: {result.page}")
    if result.failed or result.skipped:
        raise SystemExit(1)
