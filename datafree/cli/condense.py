"""`datafree condense`."""

from __future__ import annotations

from typing import Any

import click

from datafree import condensation
from datafree.cli.display import Display, network, resolved, table
from datafree.cli.methods import Kind, MethodCommand, read_config, resume, saved_and_given
from datafree.cli.options import given, run_flags
from datafree.config import CondenseConfig

KIND = Kind(
    job="condense",
    room=condensation,
    common=CondenseConfig,
    sections={
        "Data and images": (
            "data", "validation", "ipc", "images", "allow_fewer", "init", "factor", "labels", "mean", "std", "flip",
            "zca",
        ),
        "Length": ("steps", "budget"),
        "Method and networks": ("method", "arch", "nets", "net_pool", "net_steps"),
        "Images' optimisation": (
            "augmentation", "augmentation_mode", "optimizer", "image_lr", "image_momentum", "label_lr", "schedule",
            "image_ema", "clip",
        ),
    },
    flags=run_flags("condense-METHOD"),
)  # fmt: skip


@click.command(cls=MethodCommand, kind=KIND)
def condense(**values: Any) -> None:
    """Condense a real data set into a few synthetic images.

    Without --data it condenses scikit-learn's digits. The result is a folder: condensed.safetensors, card.md, pictures
    and a report. `datafree evaluate FOLDER` scores it; `datafree train --source condensed:FOLDER` distils on it.
    """
    _, method_config = click.get_current_context().meta["method"]
    common, own = given(values, CondenseConfig), given(values, method_config)
    out, quiet = values["out"], Display(values["quiet"]).quiet  # of several processes one prints the result
    if values["resume"]:
        others = [*common, *own, *(n for n in ("config", "force", "dry_run") if values[n])]
        _print_result(resume(KIND, "resume_condense", out, others, quiet), quiet)
        return
    chosen = None
    if values["config"] is not None:
        saved = read_config(values["config"], KIND)
        common, own, chosen = saved_and_given(saved, (common, own), (("steps", "budget"), ("ipc", "images")))
    config = CondenseConfig(**common)
    method_config(**own)  # an impossible value is an error before torch is loaded
    from datafree import jobs

    if values["dry_run"]:
        _print_plan(jobs.dry_run_condense(config, set_by_user=chosen, **own))
        return
    with Display(quiet) as display:
        result = jobs.condense(
            config, out=out, force=values["force"], set_by_user=chosen, say=display.say, show=display.show, **own
        )
    _print_result(result, quiet)


def _print_result(result: Any, quiet: bool) -> None:
    if quiet or not result.metrics:
        return
    m = result.metrics
    stored, decoded = _budget(m)
    rows = [
        ("condensed", f"{m['data']} by {m['method']}, {stored}"),
        ("decoded", decoded),
        ("time", f"{m['total_seconds']:.0f} s for {m['steps']:,} steps, {m['preparation_seconds']:.0f} s before"),
        ("peak memory", f"{m['peak_rss_mb']:,.0f} MB"),
        ("set", str(result.path / "condensed.safetensors")),
        ("report", str(result.path / "report.html")),
        ("score it", f"datafree evaluate {result.path}"),
    ]
    click.echo(table(rows))


def _print_plan(plan: dict[str, Any]) -> None:
    stored, decoded = _budget(plan["budget"])
    rows = [
        *resolved(plan),
        ("networks", network(plan["networks"])),
        ("stored", stored),
        ("decoded", decoded),
        *(("beforehand", line) for line in plan["beforehand"] or ["nothing"]),
        *(("choice", line) for line in plan["choices"]),
    ]
    click.echo(table(rows))


def _budget(costs: dict[str, Any]) -> tuple[str, str]:
    """What a set stores, and what it is decoded to."""
    return (
        f"{costs['stored_images']:,} images ({costs['stored_floats']:,} floats)",
        f"{costs['decoded_images']:,} images; labels {costs['label_bytes']:,} bytes",
    )
