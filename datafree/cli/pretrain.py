"""`datafree pretrain`."""

from __future__ import annotations

from typing import Any

import click

from datafree.cli.display import Display, network, percent, resolved, table
from datafree.cli.methods import folder_to_resume
from datafree.cli.options import given, options, run_flags
from datafree.config import PretrainConfig


def run(**values: Any) -> None:
    """Train a network on real data: a teacher, or the baseline "student with data".

    Writes OUT/model.safetensors, which datafree train --teacher takes as it is. The accuracy is the last iterate's.

    Where nothing else is said: 30 epochs, SGD at a rate of 0.1 (cosine) with a weight decay of 0.0005. Adam's
    rate is 0.001.
    """
    common, out = given(values, PretrainConfig), values["out"]
    config = PretrainConfig(**common)
    folder = None
    if values["resume"]:
        folder = folder_to_resume(out, [*common, *(n for n in ("force", "dry_run") if values[n])])
    from datafree import jobs

    if values["dry_run"]:
        from datafree.jobs.pretraining import dry_run_pretrain

        _print_plan(dry_run_pretrain(config))
        return

    with Display(values["quiet"]) as display:
        if folder is not None:
            result = jobs.resume_pretrain(folder, say=display.say, show=display.show)
        else:
            result = jobs.pretrain(config, out=out, force=values["force"], say=display.say, show=display.show)
    if not display.quiet:
        rows = [("network", f"{result['student']} on {result['data']}"), ("test accuracy", percent(result["accuracy"]))]
        rows += [("time", f"{result['total_seconds']:.0f} s, {result['steps']:,} steps"), ("file", result["file"])]
        click.echo(table(rows))


def _print_plan(plan: dict[str, Any]) -> None:
    rows = [*resolved(plan), ("network", network(plan["student"]))]
    click.echo(table([*rows, *(("choice", line) for line in plan["choices"])]))


pretrain = click.Command(
    "pretrain",
    callback=run,
    params=[*options(PretrainConfig), *run_flags("pretrain-ARCH", config=False)],
    help=run.__doc__,
)
