"""`datafree pretrain`."""

from __future__ import annotations

from typing import Any

import click

from datafree.cli.display import Display, percent, table
from datafree.cli.methods import folder_to_resume
from datafree.cli.options import given, options
from datafree.config import PretrainConfig

_JOB_OPTIONS: list[click.Parameter] = [
    click.Option(["--out"], metavar="DIR", help="folder of the run  [default: a fresh runs/pretrain-ARCH-N]"),
    click.Option(["--resume"], is_flag=True, help="go on with the run in --out; takes no other flag"),
    click.Option(["--force"], is_flag=True, help="overwrite the run in --out"),
    click.Option(["-q", "--quiet"], is_flag=True, help="print warnings and errors only"),
]


def run(**values: Any) -> None:
    """Train a network on real data: a teacher, or the baseline "student with data".

    Writes OUT/model.safetensors, which datafree train --teacher takes as it is. The accuracy is the last iterate's.
    """
    common, out = given(values, PretrainConfig), values["out"]
    config = PretrainConfig(**common)
    folder = None
    if values["resume"]:
        folder = folder_to_resume(out, [*common, *(["force"] if values["force"] else [])])
    from datafree import jobs

    with Display(values["quiet"]) as display:
        if folder is not None:
            result = jobs.resume_pretrain(folder, say=display.say, show=display.show)
        else:
            result = jobs.pretrain(config, out=out, force=values["force"], say=display.say, show=display.show)
    if not values["quiet"]:
        rows = [("network", f"{result['student']} on {result['data']}"), ("test accuracy", percent(result["accuracy"]))]
        rows += [("time", f"{result['total_seconds']:.0f} s, {result['steps']:,} steps"), ("file", result["file"])]
        click.echo(table(rows))


pretrain = click.Command("pretrain", callback=run, params=[*options(PretrainConfig), *_JOB_OPTIONS], help=run.__doc__)
