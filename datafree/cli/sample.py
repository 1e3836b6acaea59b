"""`datafree sample`."""

from __future__ import annotations

import click


@click.command()
@click.argument("run")
@click.option("--n", type=int, default=1000, show_default=True, metavar="N", help="how many images")
@click.option("--out", required=True, metavar="DIR", help="where images/*.png and labels.safetensors go")
@click.option("--teacher-arch", metavar="TEXT", help="the teacher's file.py:function, where the run was given one")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="seed of the latents")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ...")
@click.option("--force", is_flag=True, help="overwrite the samples in --out")
def sample(run: str, n: int, out: str, teacher_arch: str | None, seed: int, device: str, force: bool) -> None:
    """Write images of RUN's generator, and the teacher's logits and probabilities for them."""
    from datafree import jobs

    folder = jobs.sample(run, n, out=out, teacher_arch=teacher_arch, seed=seed, force=force, device=device)
    click.echo(f"{n:,} images and their soft labels are in {folder}")
