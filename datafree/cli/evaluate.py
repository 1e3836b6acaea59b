"""`datafree evaluate`."""

from __future__ import annotations

import json

import click

from datafree.cli.display import percent, table


@click.command()
@click.argument("student")
@click.option("--data", metavar="NAME", help="data whose test split is taken  [default: the student's own]")
@click.option("--arch", metavar="TEXT", help="the student's architecture, where its file does not say")
@click.option("--teacher", metavar="TEXT", help="measure agreement with this teacher  [default: the run's]")
@click.option("--teacher-arch", metavar="TEXT", help="the teacher's architecture, where its file does not say")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ...")
@click.option("--download", is_flag=True, help="allow the data to be downloaded")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def evaluate(
    student: str,
    data: str | None,
    arch: str | None,
    teacher: str | None,
    teacher_arch: str | None,
    device: str,
    download: bool,
    as_json: bool,
) -> None:
    """Test STUDENT (a run folder or a file): accuracy, and fidelity to its teacher where that is known."""
    from datafree import jobs

    scores = jobs.evaluate(
        student, data, arch=arch, teacher=teacher, teacher_arch=teacher_arch, device=device, download=download
    )
    if as_json:
        click.echo(json.dumps(scores))
        return
    rows = [("accuracy", f"{percent(scores['accuracy'])} on {scores['images']:,} images of {scores['data']}")]
    if scores["agreement"] is not None:
        rows += [("teacher", percent(scores["teacher_accuracy"])), ("agreement", percent(scores["agreement"]))]
        rows += [("KL", f"{scores['kl']:.4f} nats")]
    click.echo(table(rows))
