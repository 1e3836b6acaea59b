"""`datafree report`."""

from __future__ import annotations

import os

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", default="report.html", show_default=True, metavar="FILE", help="the page")
@click.option("--tensorboard", metavar="DIR", help="write the same figures for TensorBoard, too")
@click.option("--force", is_flag=True, help="overwrite a file that datafree report did not write")
def report(runs: tuple[str, ...], out: str, tensorboard: str | None, force: bool) -> None:
    """Compare runs on one page: curves, costs, classes, images and options.

    RUN is a folder that datafree train, condense or pretrain wrote. The page is one file and loads nothing.
    """
    if out.endswith(("/", os.sep)):
        raise ValueError(f"{out} is a folder: name a file in it, {out}report.html")
    from datafree.report.comparison import write_comparison

    for note in write_comparison(runs, out, force=force, tensorboard=tensorboard):
        click.echo(f"warning: {note}", err=True)
    click.echo(f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {out}")
