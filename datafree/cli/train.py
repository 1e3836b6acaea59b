"""`datafree train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from datafree.cli.display import Display, percent, table
from datafree.cli.options import given, option, options
from datafree.config import TrainConfig, fields_of, light_config
from datafree.synthesis import METHODS, method_spec


class MethodCommand(click.Command):
    """Adds the flags of the method that `--method` (or the saved run of `--config`) names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        name = _peek(args, "--method") or _saved_method(_peek(args, "--config")) or TrainConfig.method
        try:
            config = light_config(method_spec(name))
        except ValueError as error:
            raise click.BadParameter(str(error), ctx=ctx, param_hint="--method") from error
        ctx.meta["method"] = (name, config)
        explicit = any(arg.split("=")[0] == "--method" for arg in args)
        method_options = [option(field) for field in fields_of(config)]
        for each in method_options:
            each.hidden = not explicit
        self.params = [*self.base, *method_options]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            owners = [
                n for n, spec in METHODS.items() if error.option_name in {f.flag for f in fields_of(light_config(spec))}
            ]
            if owners:
                message = f"{error.option_name} belongs to --method {' or '.join(owners)}, not to {name}"
                raise click.UsageError(message, ctx=ctx) from error
            raise

    @property
    def base(self) -> list[click.Parameter]:
        return [*options(TrainConfig), *_JOB_OPTIONS]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        name, config = ctx.meta["method"]
        sections = {**_SECTIONS, f"Method {name}": tuple(field.name for field in fields_of(config))}
        named = {each for names in sections.values() for each in names}
        params = self.get_params(ctx)
        sections["Run"] = tuple(p.name for p in params if p.name and p.name not in named)
        for title, names in sections.items():
            records = [record for p in params if p.name in names and (record := p.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        name, _ = ctx.meta["method"]
        formatter.write_paragraph()
        formatter.write_text(
            f"The methods' own flags: datafree train --method {name} --help. Methods: {', '.join(METHODS)}."
        )


_SECTIONS = {
    "Teacher and images": ("teacher", "arch", "data", "shape", "classes", "mean", "std"),
    "Length": ("steps", "epochs", "budget"),
    "Student": (
        "student", "method", "criterion", "temperature", "augment", "batch_size", "lr", "optimizer", "momentum",
        "weight_decay", "schedule", "milestones", "ema",
    ),
}  # fmt: skip

_JOB_OPTIONS: list[click.Parameter] = [
    click.Option(["--out"], metavar="DIR", help="folder of the run  [default: a fresh runs/train-METHOD-N]"),
    click.Option(["--resume"], is_flag=True, help="go on with the run in --out; takes no other flag"),
    click.Option(["--config"], metavar="RUN.JSON", help="rerun a saved run; flags beside it override it"),
    click.Option(["--force"], is_flag=True, help="overwrite the run in --out"),
    click.Option(["--dry-run"], is_flag=True, help="print what would be run, and stop"),
    click.Option(["-q", "--quiet"], is_flag=True, help="print warnings and errors only"),
]


@click.command(cls=MethodCommand)
def train(**values: Any) -> None:
    """Distil a teacher into a smaller student, without the teacher's data.

    Without --teacher it runs the embedded job: a small teacher is trained on scikit-learn's digits, the digits are
    forgotten, and a smaller student is distilled from the teacher alone.

    --arch and --student FILE.PY:FUNCTION run that file. Checkpoints are read without running code.
    """
    _, method_config = click.get_current_context().meta["method"]
    common, own = given(values, TrainConfig), given(values, method_config)
    out, quiet = values["out"], values["quiet"]
    if values["resume"]:
        _resume(out, quiet, [*common, *own], values)
        return
    if values["config"] is not None:
        saved, saved_own = _read_config(values["config"])
        if "method" in common and common["method"] != saved.get("method"):
            saved_own = {}
        if {"steps", "epochs", "budget"} & set(common):
            saved = {k: v for k, v in saved.items() if k not in ("steps", "epochs", "budget")}
        common, own = {**saved, **common}, {**saved_own, **own}
    config = TrainConfig(**common)
    method_config(**own)  # an impossible value is an error before torch is loaded
    from datafree import jobs

    if values["dry_run"]:
        _print_plan(jobs.dry_run(config, **own))
        return
    with Display(quiet) as display:
        result = jobs.train(config, out=out, force=values["force"], say=display.say, show=display.show, **own)
    _print_result(result, quiet)


def _resume(out: str | None, quiet: bool, others: list[str], values: dict[str, Any]) -> None:
    if out is None:
        raise click.UsageError("--resume goes on with the run in a folder: name it with --out DIR")
    others += [name for name in ("config", "force", "dry_run") if values[name]]
    if others:
        raise click.UsageError(
            f"--resume takes the run as it is: leave out {', '.join('--' + o.replace('_', '-') for o in others)}"
        )
    if not (Path(out) / "run.json").is_file():
        raise ValueError(f"no run in {out} (it has no run.json): start one without --resume")
    _read_config(str(Path(out) / "run.json"))
    from datafree import jobs

    with Display(quiet) as display:
        result = jobs.resume(out, say=display.say, show=display.show)
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
    rows = [
        (name, _plain(value))
        for name, value in {**plan["config"], "device": plan["machine"]["device"], **plan["method_options"]}.items()
        if value is not None
    ]
    for role in ("teacher", "student"):
        about = plan[role]
        rows.append(
            (
                role,
                f"{about['arch']}: {about['parameters']:,} parameters, {about['multiply_adds']:,} multiply-adds",
            )
        )
    rows.append(("memory expected", f"about {plan['expected_memory_mb']:,} MB"))
    click.echo(
        table(
            [*rows, *(("choice", line) for line in plan["choices"]), *(("warning", line) for line in plan["warnings"])]
        )
    )


def _plain(value: Any) -> str:
    return ",".join(f"{v:g}" for v in value) if isinstance(value, tuple | list) else str(value)


def _peek(args: list[str], flag: str) -> str | None:
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return None


def _saved_method(path: str | None) -> str | None:
    return str(_read_config(path)[0].get("method", TrainConfig.method)) if path is not None else None


def _read_config(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the method's options that a run.json holds; each value of the type its field has."""
    try:
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items() if v is not None}
        own = {k: v for k, v in about["method_options"].items() if v is not None}
        job = about.get("job", "train")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no run.json of datafree train: give one that a run wrote") from error
    if job != "train":
        raise ValueError(f"{path} is of a {job} run: give the run.json of a datafree train")
    _check_saved(path, config, TrainConfig)
    _check_saved(path, own, light_config(method_spec(str(config.get("method", TrainConfig.method)))))
    return config, own


def _check_saved(path: str, values: dict[str, Any], config: type) -> None:
    kinds: dict[str, Any] = {field.name: field.type for field in fields_of(config)}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{path} holds {name!r}, which {config.__name__} does not know: remove it")
        wanted = (int, float) if kinds[name] is float else kinds[name]
        numbers = value if isinstance(value, tuple) else ()
        if not isinstance(value, wanted) or not all(isinstance(n, int | float) for n in numbers):
            raise ValueError(f"{path} holds {value!r} for {name!r}: give a {kinds[name].__name__}")
