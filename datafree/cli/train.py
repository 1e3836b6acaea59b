"""`datafree train`."""

from __future__ import annotations

from typing import Any

import click

from datafree import synthesis
from datafree.cli.display import Display, network, percent, resolved, table
from datafree.cli.methods import Kind, MethodCommand, read_config, resume, saved_and_given
from datafree.cli.options import given, run_flags
from datafree.config import TrainConfig

KIND = Kind(
    job="train",
    room=synthesis,
    common=TrainConfig,
    sections={
        "Teacher and images": ("teacher", "arch", "data", "shape", "classes", "mean", "std"),
        "Length": ("steps", "epochs", "budget"),
        "Student": (
            "student", "method", "preset", "source", "prior", "inherit", "criterion", "temperature", "attention",
            "augment", "flip", "batch_size", "lr", "optimizer", "momentum", "weight_decay", "gradient_clip", "schedule",
            "milestones", "ema",
        ),
    },
    flags=run_flags("train-METHOD"),
)  # fmt: skip


@click.command(cls=MethodCommand, kind=KIND)
def train(**values: Any) -> None:
    """Distil a teacher into a smaller student, without the teacher's data.

    Without --teacher it runs the embedded job: a small teacher is trained on scikit-learn's digits, the digits are
    forgotten, and a smaller student is distilled from the teacher alone.

    --arch and --student FILE.PY:FUNCTION run that file. Checkpoints are read without running code.
    """
    _, method_config = click.get_current_context().meta["method"]
    common, own = given(values, TrainConfig), given(values, method_config)
    out, quiet = values["out"], Display(values["quiet"]).quiet  # of several processes one prints the result
    if values["resume"]:
        others = [*common, *own, *(name for name in ("config", "force", "dry_run") if values[name])]
        _print_result(resume(KIND, "resume", out, others, quiet), quiet)
        return
    sha256 = chosen = None
    if values["config"] is not None:
        saved = read_config(values["config"], KIND)
        sha256 = None if "teacher" in common or saved.common.get("teacher") is None else saved.sha256
        common, own, chosen = saved_and_given(saved, (common, own), (("steps", "epochs", "budget"),))
    config = TrainConfig(**common)
    method_config(**own)  # an impossible value is an error before torch is loaded
    from datafree import jobs

    if values["dry_run"]:
        _print_plan(jobs.dry_run(config, teacher_sha256=sha256, set_by_user=chosen, **own))
        return
    with Display(quiet) as display:
        result = jobs.train(
            config, out=out, force=values["force"], teacher_sha256=sha256, set_by_user=chosen, say=display.say,
            show=display.show, **own,
        )  # fmt: skip
    _print_result(result, quiet)


def _print_result(result: Any, quiet: bool) -> None:
    if quiet or not result.metrics:
        return
    m = result.metrics
    rows = [
        ("teacher", f"{m['teacher']}  {percent(m['teacher_accuracy'])}"),
        ("student", f"{m['student']}  {percent(m['student_accuracy'])}"),
        ("agreement", percent(m["agreement"])),
        ("images synthesized", f"{m['images']:,}"),
        (
            "time",
            "{total_seconds:.0f} s (synthesis {synthesis_seconds:.0f}, distillation {distillation_seconds:.0f})".format(
                **m
            ),
        ),
        ("peak memory", f"{m['peak_rss_mb']:,.0f} MB"),
        ("report", str(result.path / "report.html")),
    ]
    click.echo(table(rows))


def _print_plan(plan: dict[str, Any]) -> None:
    rows = [*resolved(plan), *((role, network(plan[role])) for role in ("teacher", "student"))]
    rows.append(("memory expected", f"about {plan['expected_memory_mb']:,} MB"))
    rows += [("choice", line) for line in plan["choices"]]
    click.echo(table([*rows, *(("warning", line) for line in plan["warnings"])]))
