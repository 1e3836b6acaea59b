"""Commands whose flags depend on a method, and the saved configurations that they rerun."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click

from datafree.cli.display import Display
from datafree.cli.options import option, options
from datafree.config import light_config
from datafree.fields import fields_of, flag

# What a run reads off its teacher and data where a person says nothing; the last four are a method's: a term that the
# teacher gives nothing to match to, what stands in for it, and what memory allows. A saved run holds the old values.
OF_DATA = ("arch", "shape", "classes", "mean", "std", "flip", "zca", "bn", "shapes", "student_steps", "bank")
# What follows from what a run trains, and how, likewise.
OF_STUDENT = ("batch_size", "optimizer", "lr", "weight_decay")
# The embedded digits job is short, any other takes its time.
LENGTHS = ("steps", "epochs", "budget")
READ_OFF: Mapping[str, tuple[str, ...]] = {
    "teacher": (*OF_DATA, *OF_STUDENT, *LENGTHS, "data", "student"),
    "data": (*OF_DATA, *OF_STUDENT, *LENGTHS, "student", "factor", "init"),
    "shape": (*OF_DATA, *OF_STUDENT, "student"),
    "student": OF_STUDENT,
    "optimizer": ("lr", "weight_decay"),
    "batch_size": ("lr",),
    "ipc": ("factor", "init"),
    "images": ("factor", "init"),
    "factor": ("init",),
    "init": ("factor",),
    "shapes": ("bank",),
}

RESUMED = ("train", "condense", "pretrain")  # commands that have --resume


class Kind(NamedTuple):
    """A kind of job that has methods.

    job: the command's name.
    room: the package of its methods.
    common: the configuration beside the methods'.
    sections: of the help, with the fields that each holds.
    flags: what no configuration holds.
    """

    job: str
    room: ModuleType
    common: Any
    sections: Mapping[str, tuple[str, ...]]
    flags: list[click.Parameter]


class Saved(NamedTuple):
    """A saved run: its configuration, its method's options, and the names of those that a person had set.

    sha256: of its teacher, where it says.
    """

    common: dict[str, Any]
    own: dict[str, Any]
    chosen: frozenset[str]
    sha256: str | None = None


class MethodCommand(click.Command):
    """Adds the flags of the method that `--method` (or the saved run of `--config`) names."""

    def __init__(self, *args: Any, kind: Kind, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kind = kind

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        name = _peek(args, "--method") or self._saved_method(_peek(args, "--config")) or self.kind.common.method
        try:
            config = light_config(self.kind.room.method_spec(name))
        except ValueError as error:
            raise click.BadParameter(str(error), ctx=ctx, param_hint="--method") from error
        ctx.meta["method"] = (name, config)
        explicit = any(arg.split("=")[0] == "--method" for arg in args)
        method_options = [option(field) for field in fields_of(config)]
        for each in method_options:
            each.hidden = not explicit
        self.params = [*options(self.kind.common), *self.kind.flags, *method_options]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            owners = [
                n
                for n, spec in self.kind.room.METHODS.items()
                if error.option_name in {f.flag for f in fields_of(light_config(spec))}
            ]
            if owners:
                message = f"{error.option_name} belongs to --method {' or '.join(owners)}, not to {name}"
                raise click.UsageError(message, ctx=ctx) from error
            raise

    def _saved_method(self, path: str | None) -> str | None:
        if path is None:
            return None
        return str(read_config(path, self.kind).common.get("method", self.kind.common.method))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        name, config = ctx.meta["method"]
        sections = {**self.kind.sections, f"Method {name}": tuple(field.name for field in fields_of(config))}
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
            f"The methods' own flags: datafree {self.kind.job} --method {name} --help. "
            f"Methods: {', '.join(self.kind.room.METHODS)}."
        )


def _peek(args: list[str], flag: str) -> str | None:
    """The value that click will take: of a flag that is given twice, the last."""
    value = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"{flag}="):
            value = arg.partition("=")[2]
    return value


def read_config(path: str, kind: Kind) -> Saved:
    """What a run.json holds, or a table's result file, whose "run" is one; each value of the type its field has.

    Of a run's own result.json, the run.json beside it is read.

    Raises:
        ValueError: it cannot be read, is another job's, or holds what no field takes.
    """
    try:
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        beside = Path(path).with_name("run.json")
        if not {"run", "config"} & set(about) and beside.is_file():
            about = json.loads(beside.read_text(encoding="utf-8"))
        about = about.get("run", about)
        config, own = _values(about["config"]), _values(about["method_options"])
        chosen = frozenset(about.get("set_by_user", (*config, *own)))
        found = about.get("job", "train")
        sha256 = (about.get("teacher") or {}).get("sha256")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no run.json of datafree {kind.job}: give one that a run wrote") from error
    if found != kind.job:
        raise ValueError(f"{path} is of a {found} run: give the run.json of a datafree {kind.job}")
    _check_saved(path, config, kind.common, kind.job)
    method = str(config.get("method", kind.common.method))
    _check_saved(path, own, light_config(kind.room.method_spec(method)), f"method {method}")
    return Saved(config, own, chosen, sha256)


def saved_and_given(
    saved: Saved,
    given: tuple[dict[str, Any], dict[str, Any]],
    alternatives: tuple[tuple[str, ...], ...],
) -> tuple[dict[str, Any], dict[str, Any], frozenset[str]]:
    """A saved run with flags over it. Of `alternatives`, which exclude each other, a given one ousts a saved one.

    With another method, preset or source the saved run's has no say: what a person had set stays, what that made of the
    rest goes. So it is with what was read off the teacher or the data, where another one is given.

    Returns:
        The configuration, the method's options, and the names of all that a person has set, then or now.
    """
    (common, own, chosen, _), (new, new_own) = saved, given
    other = {name for name in ("method", "preset", "source") if name in new and new[name] != common.get(name)}
    if other:
        common, own = ({k: v for k, v in each.items() if k in chosen} for each in (common, own))
    if "method" in other:
        common.pop("preset", None)
        own = {}
    for name in set(READ_OFF) & {*new, *new_own}:
        common, own = (
            {k: v for k, v in each.items() if k in chosen or k not in READ_OFF[name]} for each in (common, own)
        )
    for names in alternatives:
        if set(names) & set(new):
            common = {k: v for k, v in common.items() if k not in names}
    return {**common, **new}, {**own, **new_own}, chosen & {*common, *own} | {*new, *new_own}


def resume(kind: Kind, job: str, out: str | None, others: list[str], quiet: bool) -> Any:
    """Goes on with the run in `out` by the function `job` of `datafree.jobs`; `others` are flags given beside --resume.

    Raises:
        click.UsageError: no folder, or other flags.
        ValueError: no run of this kind is there.
    """
    folder = folder_to_resume(out, others)
    check_job(folder, kind)
    read_config(str(folder / "run.json"), kind)
    from datafree import jobs

    with Display(quiet) as display:
        return getattr(jobs, job)(folder, say=display.say, show=display.show)


def check_job(folder: Path, kind: Kind) -> None:
    """Raises ValueError where the run in the folder is another command's; says which one goes on with it."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("job", "train")
    except (OSError, ValueError, AttributeError):
        return  # `read_config` says what is wrong with it
    if found != kind.job and found in RESUMED:
        raise ValueError(f"{folder} holds a {found} run: resume it with datafree {found} --resume")
    if found != kind.job:
        raise ValueError(f"{folder} holds a {found} run, which is not resumed: start that again")


def folder_to_resume(out: str | None, others: list[str]) -> Path:
    """`out`, where it holds a run; raises as `resume`."""
    if out is None:
        raise click.UsageError("--resume goes on with the run in a folder: name it with --out DIR")
    if others:
        raise click.UsageError(f"--resume takes the run as it is: leave out {', '.join(map(flag, others))}")
    if not (Path(out) / "run.json").is_file():
        raise ValueError(f"no run in {out} (it has no run.json): start one without --resume")
    return Path(out)


def _values(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are set, as configurations hold them: lists as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if v is not None}


def _check_saved(path: str, values: dict[str, Any], config: type, whose: str) -> None:
    kinds: dict[str, Any] = {field.name: field.type for field in fields_of(config)}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{path} holds {name!r}, which is no option of {whose}: remove it")
        wanted = (int, float) if kinds[name] is float else kinds[name]
        numbers = value if isinstance(value, tuple) else ()
        if not isinstance(value, wanted) or not all(isinstance(n, int | float) for n in numbers):
            raise ValueError(f"{path} holds {value!r} for {name!r}: give a {kinds[name].__name__}")
