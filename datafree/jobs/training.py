"""`train`: a teacher is distilled without its data, from a configuration to a written run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from datafree import parallel
from datafree.arguments import checked
from datafree.config import TrainConfig
from datafree.distillation import distill
from datafree.distillation.sources import parse_source
from datafree.evaluation.cost import parameters
from datafree.jobs.condensing import resume_condense
from datafree.jobs.fresh import concluded, fresh_run
from datafree.jobs.loading import load_student
from datafree.jobs.machine import prepare
from datafree.jobs.manifest import check_networks, from_manifest, manifest, part_networks, split_options
from datafree.jobs.paths import check_apart, data_path
from datafree.jobs.planning import Networks, Plan, expected_memory_mb, make_plan
from datafree.jobs.pretraining import embedded_teacher, resume_pretrain, untrained_teacher
from datafree.jobs.same_data import check_unchanged
from datafree.jobs.session import Interrupted, Say, Session, Show, finish, interruptible, silent
from datafree.runs import Run, write_json

TEACHER = "teacher.safetensors"  # of the embedded job, in the run's folder


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Attributes:
        path: its folder.
        metrics: what result.json holds.
        student: takes images in [0, 1], in evaluation mode.
    """

    path: Path
    metrics: dict[str, Any]
    student: nn.Module


@checked("config")
def train(
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    force: bool = False,
    teacher_sha256: str | None = None,
    set_by_user: Collection[str] | None = None,
    say: Say = silent,
    show: Show = silent,
    **options: Any,
) -> Result:
    """Distils a teacher data-free.

    Args:
        config: the run; or give its fields as keywords.
        out: folder of the run; default runs/NAME-N.
        force: overwrite a run that stands in `out`.
        teacher_sha256: what the teacher's file had when the run was made that this one repeats; another is a warning.
        set_by_user: the options that a person set, where this run repeats another, which holds them all; default: those
            that are not as by default.
        say: called with each line worth telling (choices, warnings).
        show: called with the measurements of the moment, about once a second.
        options: fields of `TrainConfig` and of the method's configuration. `teacher` and `student` may be networks
            (`torch.nn.Module`, from normalised images (N, C, H, W) to logits) in the place of names, and `arch` a
            network that the teacher's file is for. They are copied with their weights, never changed.

    Raises:
        ValueError: something a person can mend; one line.
        TermError: a term became NaN or infinite.
        Interrupted: Ctrl-C, after saving.
    """
    networks, options = part_networks(options)
    config, options = split_options(config or TrainConfig(), options)
    device = prepare(config)
    taught = None if config.source in (None, "real") else parse_source(str(config.source))[0]
    check_apart(out, {"--teacher": config.teacher, "--source": taught, "--data": data_path(config.data)})
    plan = _first_plan(config, options, device, networks)  # whatever is wrong is found before anything is written
    name = f"train-{config.method}"
    with fresh_run(out, name, force=force) as run:
        if config.teacher is None:
            file = embedded_teacher(config, run.path / TEACHER, device, say)
            plan = make_plan(config, options, device, networks=networks, embedded_teacher=file)
        _repeat(plan, teacher_sha256, set_by_user)
        for line in plan.choices:
            say(line)
        for line in plan.warnings:
            say(f"warning: {line}")
        if parallel.rank() == 0:
            write_json(run.path / "run.json", manifest(plan))
        return _execute(plan, run, None, say, show)


@checked()
def resume(out: str | Path, *, data: Any = None, say: Say = silent, show: Show = silent, **networks: nn.Module) -> Any:
    """Goes on with the run in `out` from its last whole checkpoint; a finished run is returned as it is.

    Args:
        out: the run's folder.
        data: what `condense` was given, where that was no name.
        say: as for `train`.
        show: likewise.
        networks: `teacher`, `arch`, `student`, where the run was given networks in the place of names.

    Returns:
        What the run's own job returns: a `Result` of `train`, a `Condensed` of `condense`, the result of `pretrain`.

    Raises:
        ValueError: no run is there, it is being written by another process, its teacher or its data have changed, or
            what it was given in the place of a name is missing here.
    """
    run = Run.open(out)
    about = run.manifest()
    networks |= part_networks(networks)[0]
    if networks and about.get("job") != "train":
        raise ValueError(f"{run.path} holds a {about.get('job')} run, which was given no networks: leave them out")
    if about.get("job") == "condense":
        return resume_condense(out, data=data, say=say, show=show)
    if data is not None:
        raise ValueError(
            f"{run.path} holds a {about.get('job')} run, which finds its data by their name: leave data out"
        )
    if about.get("job") == "pretrain":
        return resume_pretrain(out, say=say, show=show)
    if about.get("job") != "train":
        raise ValueError(f"{run.path} holds a {about.get('job')} run, which is not resumed: start that again")
    config, options = from_manifest(about)
    check_networks(about, networks)
    device = prepare(config)
    finished = run.result()
    with run.lock() if finished is None and parallel.rank() == 0 else run:
        file = None
        if config.teacher is None:
            file = embedded_teacher(config, run.path / TEACHER, device, say)
        plan = make_plan(config, options, device, networks=networks, embedded_teacher=file)
        source = plan.teacher.loaded.source
        if about["teacher"]["sha256"] != plan.teacher.loaded.sha256:
            raise ValueError(f"{source} has changed since the run began: start anew with another --out")
        if about["student"]["parameters"] != parameters(plan.network):
            raise ValueError(
                "the student is another network than the run's: give that, or start anew with another --out"
            )
        if finished is not None:
            say(f"the run in {run.path} is finished")
            student = load_student(str(run.path), arch=networks.get("student", config.student), device=device)[0]
            return Result(path=run.path, metrics=finished, student=student)
        check_unchanged(about, plan.real)
        return _execute(plan, run, run.last_checkpoint(say), say, show)


@checked("config")
def dry_run(
    config: TrainConfig | None = None,
    *,
    teacher_sha256: str | None = None,
    set_by_user: Collection[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Resolves everything and computes nothing: configuration, networks, the memory expected (MB). Writes no file.

    Without a teacher (the embedded digits job) an untrained network stands in for it. Arguments as of `train`.
    """
    networks, options = part_networks(options)
    config, options = split_options(config or TrainConfig(), options)
    plan = _first_plan(config, options, prepare(config), networks)
    _repeat(plan, teacher_sha256, set_by_user)
    return {**manifest(plan), "expected_memory_mb": expected_memory_mb(plan)}


def _repeat(plan: Plan, sha256: str | None, set_by_user: Collection[str] | None) -> None:
    """What only the run knows that this one repeats: its teacher's hash, and what a person had set of it."""
    loaded = plan.teacher.loaded
    if set_by_user is not None:
        plan.set_by_user = tuple(sorted(set_by_user))
    if sha256 is not None and loaded.sha256 != sha256:
        plan.warnings.append(f"{loaded.source} has changed since the run was made that this one repeats")


def _first_plan(config: TrainConfig, options: Mapping[str, Any], device: torch.device, networks: Networks) -> Plan:
    """The plan before anything is written, with an untrained stand-in for the embedded teacher."""
    if config.teacher is not None:
        return make_plan(config, options, device, networks=networks)
    with TemporaryDirectory() as folder:
        stand_in = untrained_teacher(Path(folder) / TEACHER)
        return make_plan(config, options, device, networks=networks, embedded_teacher=stand_in)


def _execute(plan: Plan, run: Run, state: Mapping[str, Any] | None, say: Say, show: Show) -> Result:
    with interruptible() as stop:
        session = Session(plan, run, show, stop)
        if state is not None:
            session.load_state_dict(state)
        if state is None and plan.config.teacher is not None:  # the embedded one's accuracy has just been said
            session.try_teacher(say)
        if session.main:
            run.start_log(int(state["metrics_bytes"]) if state else 0, session.clock.step)
        with concluded(run):
            ended = distill(
                session.alternation,
                session.trainer,
                session.clock,
                seconds=session.seconds,
                autocast=session.autocast,
                after_step=session.after_step,
            )
            if not ended:
                raise Interrupted(run.path)
            session.save()
            metrics = finish(session, say)
    return Result(path=run.path, metrics=metrics, student=session.trainer.result.eval())
