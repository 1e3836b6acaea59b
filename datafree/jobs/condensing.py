"""`condense`: a real data set becomes a small synthetic one, from a configuration to a written run."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datafree import parallel
from datafree.arguments import checked
from datafree.condensation.loop import Steps
from datafree.config import CondenseConfig
from datafree.data import DATA, Data
from datafree.data.condensed import CondensedSet
from datafree.data.wrapped import from_dataset
from datafree.fields import as_config, replace
from datafree.jobs.condense_planning import (
    CondensePlan,
    beforehand,
    condense_plan,
    from_manifest,
    manifest,
    set_budget,
    set_info,
)
from datafree.jobs.condense_session import CondenseSession
from datafree.jobs.fresh import concluded, fresh_run
from datafree.jobs.machine import prepare
from datafree.jobs.paths import check_apart, data_path
from datafree.jobs.same_data import check_unchanged
from datafree.jobs.session import Interrupted, Say, Show, interruptible, silent
from datafree.jobs.writing import write_set
from datafree.runs import Run, peak_rss_mb, write_json
from datafree.training import run


@dataclass(frozen=True, kw_only=True)
class Condensed:
    """A finished run.

    Attributes:
        path: its folder.
        metrics: what result.json holds.
        set: the condensed set, as written.
    """

    path: Path
    metrics: dict[str, Any]
    set: CondensedSet


@checked("config")
def condense(
    config: CondenseConfig | None = None,
    *,
    data: Any = None,
    out: str | Path | None = None,
    force: bool = False,
    set_by_user: Collection[str] | None = None,
    say: Say = silent,
    show: Show = silent,
    **options: Any,
) -> Condensed:
    """Condenses a data set.

    Args:
        config: the run; or give its fields as keywords.
        data: a name, a `datafree.Data`, or any `torch.utils.data.Dataset` of (image, class number) items.
        out: folder of the run; default runs/condense-METHOD-N.
        force: overwrite a run that stands in `out`.
        set_by_user: as for `train`.
        say: called with each line worth telling.
        show: called with the measurements of the moment, about once a second.
        options: fields of `CondenseConfig` and of the method's configuration.

    Raises:
        ValueError: something a person can mend; one line.
        FileNotFoundError: the data are not there.
        TermError: a term became NaN or infinite.
        Interrupted: Ctrl-C, after saving.
    """
    plan = _plan(config, data, options, set_by_user)  # whatever is wrong is found before anything is written
    config, taught = plan.config, plan.teacher_file
    check_apart(out, {"--teacher": taught["file"] if taught else None, "--data": data_path(config.data)})
    name = f"condense-{config.method}"
    with fresh_run(out, name, force=force) as folder:
        for line in plan.choices:
            say(line)
        if parallel.rank() == 0:
            write_json(folder.path / "run.json", manifest(plan))
        return _execute(plan, folder, None, say, show)


def dry_run_condense(
    config: CondenseConfig | None = None,
    *,
    data: Any = None,
    set_by_user: Collection[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Resolves everything and makes nothing: what run.json would hold, the set's budget, what is made beforehand.

    Writes no file. Arguments as for `condense`; what a person can mend raises as there.
    """
    plan = _plan(config, data, options, set_by_user)
    return {**manifest(plan), "budget": set_budget(plan), "beforehand": beforehand(plan)}


def _plan(
    config: CondenseConfig | None, data: Any, options: Mapping[str, Any], set_by_user: Collection[str] | None = None
) -> CondensePlan:
    """The plan of `condense`'s arguments."""
    config = as_config(config, CondenseConfig, "datafree.condense(data={})")
    given = None
    if isinstance(data, str):
        config = replace(config, {"data": data})
    elif isinstance(data, Data):
        given, config = data, replace(config, {"data": data.domain.name})
    elif data is not None:
        given = from_dataset(data)
        config = replace(config, {"data": given.domain.name})
    common = {f.name for f in dataclasses.fields(CondenseConfig)}
    config = replace(config, {k: v for k, v in options.items() if k in common})
    own = {k: v for k, v in options.items() if k not in common}
    plan = condense_plan(config, own, prepare(config), given)
    if set_by_user is not None:
        plan.set_by_user = tuple(sorted(set_by_user))
    return plan


@checked()
def resume_condense(out: str | Path, *, data: Any = None, say: Say = silent, show: Show = silent) -> Condensed:
    """Goes on with the condensation in `out`; a finished one is returned as it is. `data` as for `condense`.

    Raises:
        ValueError: no such run is there, it is being written by another process, or its data are not those that it
            began with.
    """
    from datafree.data.condensed import load_condensed

    folder = Run.open(out)
    about = folder.manifest()
    if about.get("job") != "condense":
        raise ValueError(f"{folder.path} holds a {about.get('job')} run: resume it with its own command")
    config, own = from_manifest(about)
    finished = folder.result()
    if finished is not None:
        say(f"the run in {folder.path} is finished")
        return Condensed(path=folder.path, metrics=finished, set=load_condensed(folder.path))
    device = prepare(config)
    given = data if isinstance(data, Data) or data is None else from_dataset(data)
    again = f"give what it was given, from Python: datafree.resume({str(folder.path)!r}, data=...)"
    if given is None and config.data not in DATA and not config.data.startswith(("npz:", "imagefolder:")):
        raise ValueError(f"no data are called {config.data!r}, of which the run in {folder.path} makes a set: {again}")
    with folder.lock() if parallel.rank() == 0 else folder:
        plan = condense_plan(config, own, device, given)
        check_unchanged(about, plan.data, f"put the run's own back, or {again}")
        was, now = ((held or {}).get("sha256") for held in (about.get("teacher_file"), plan.teacher_file))
        if was != now:
            raise ValueError(f"{own.get('teacher')} has changed since the run began: start anew with another --out")
        return _execute(plan, folder, folder.last_checkpoint(say), say, show)


def _execute(plan: CondensePlan, folder: Run, state: Mapping[str, Any] | None, say: Say, show: Show) -> Condensed:
    with interruptible() as stop:
        session = CondenseSession(plan, folder, say, show, stop)
        if session.main:
            folder.start_log(int(state["metrics_bytes"]) if state else 0, state["clock"]["step"] if state else 0)
        with concluded(folder):
            if not hasattr(plan.method, "terms"):
                result = _select(session)
            else:
                session.start()
                if state is not None:
                    session.load_state_dict(state)
                elif plan.config.init == "noise":
                    session.picture()
                ended = not stop() and run(
                    session.trainer,
                    Steps(session.objective, session.synthetic),
                    session.clock,
                    seconds=session.seconds,
                    autocast=nullcontext,  # objectives set the arithmetic of their passes themselves
                    after_step=session.after_step,
                )
                if not ended:
                    raise Interrupted(folder.path, "condense")
                session.save()
                session.conclude()
                session.picture()
                result = session.result_set()
            metrics = _finish(session, result)
    return Condensed(path=folder.path, metrics=metrics, set=result)


def _select(session: CondenseSession) -> CondensedSet:
    """The set of a method that makes it in one go. Training networks for it is preparation, and told apart."""
    plan, trained = session.plan, list[float]()
    setting = dataclasses.replace(session.setting, prepared=trained.append)
    session.clock.start()
    images, labels = plan.method(setting, plan.method_config).build(plan.counts)
    if plan.config.labels == "soft" and not labels.is_floating_point():
        from datafree.condensation.trained import in_batches, trained_network

        labels = in_batches(trained_network(setting, selecting=True), images)
    elif plan.config.labels == "hard" and labels.is_floating_point():
        # The classes that the images were made for: the teacher may see others in them.
        labels = torch.arange(len(plan.counts)).repeat_interleave(torch.tensor(plan.counts))
    session.clock.pause()
    session.preparation = sum(trained)
    session.clock.spent -= session.preparation
    return CondensedSet(
        images=images.clamp(0, 1).float().cpu(), labels=labels.cpu(), domain=plan.domain,
        factor=1, info=set_info(plan),
    )  # fmt: skip


def _finish(session: CondenseSession, result: CondensedSet) -> dict[str, Any]:
    """The set's files and result.json."""
    plan, clock = session.plan, session.clock
    config = plan.config
    metrics = {
        **result.budget(),
        "steps": clock.step,
        "preparation_seconds": round(session.preparation, 2),
        "total_seconds": round(clock.elapsed, 2),
        "peak_rss_mb": peak_rss_mb(),
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "processes": parallel.world_size(),
        "seed": config.seed,
        "method": config.method,
        "arch": plan.arch,
        "data": config.data,
        "learning_rate": result.learning_rate,
    }
    if session.main:
        write_set(session.run.path, result, metrics)
        write_json(session.run.path / "result.json", metrics)
    return metrics
