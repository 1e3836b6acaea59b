"""`record_experts`: trajectories of networks trained on real data, recorded ahead of condensing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datafree.arguments import checked
from datafree.condensation.expert_files import INDEX
from datafree.condensation.experts import make_recipe, record
from datafree.config import CondenseConfig, ExpertsConfig, MachineConfig
from datafree.data import Data
from datafree.fields import as_config, replace
from datafree.jobs.condense_planning import condense_plan, make_setting
from datafree.jobs.machine import prepare
from datafree.jobs.paths import check_apart, check_folder, data_path
from datafree.jobs.session import interruptible
from datafree.training import Clock


@checked("config")
def record_experts(
    config: ExpertsConfig | None = None,
    *,
    data: str | Data | None = None,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> dict[str, Any]:
    """Records experts in `out`, or in the cache, where `condense` finds those of its own recipe. What is there stays.

    Args:
        config: the experts; or give its fields as keywords.
        data: the data set or its name, instead of the one that `config.data` names.
        out: folder of the experts, for `--expert-folder`.
        say: called with each line worth telling.
        options: fields of `ExpertsConfig`.

    Returns:
        folder, experts, records (of each), seconds (of recording them, in all), bytes.

    Raises:
        ValueError: something a person can mend; one line.
        FileNotFoundError: the data are not there.
        TermError: an expert diverged; those before it are kept.
        KeyboardInterrupt: Ctrl-C; the experts that are finished are kept.
    """
    config = replace(as_config(config, ExpertsConfig, "record_experts(data={})"), options)
    if isinstance(data, str):
        config, data = replace(config, {"data": data}), None
    if out is not None:
        check_apart(out, {"--data": data_path(config.data)})
        _check_folder(Path(out))
    names = ("data", "validation", "arch", "mean", "std", "flip", "zca", "augmentation", "augmentation_mode")
    machine = [f.name for f in dataclasses.fields(MachineConfig)]
    # What the networks see is settled as for a condensation, so that one finds these experts.
    shared = CondenseConfig(
        method="mtt", ipc=1, steps=1, **{name: getattr(config, name) for name in (*names, *machine)}
    )
    device = prepare(shared)
    plan = condense_plan(shared, {}, device, data)
    for line in plan.choices:
        say(line)
    with interruptible() as stop:
        setting = make_setting(plan, Clock(steps=1), say, stop)
        own = ("count", "epochs", "images", "every", "lr", "batch_size", "rho", "seed")
        recipe = make_recipe(available=len(setting.real.x), **{name: getattr(config, name) for name in own})
        experts = record(setting, recipe, None if out is None else Path(out))
    if experts.count < recipe.count:
        raise KeyboardInterrupt("interrupted; finished experts are kept: the same command goes on")
    size = sum(file.stat().st_size for file in experts.folder.iterdir())
    return {
        "folder": str(experts.folder),
        "experts": experts.count,
        "records": experts.records,
        "seconds": experts.seconds,
        "bytes": size,
    }


def _check_folder(path: Path) -> None:
    """Refuses what is no folder for experts: theirs are told from others' files by the index."""
    check_folder(path)
    held = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
    if held and INDEX not in held:
        raise ValueError(f"{path} holds no experts, but other things ({held[0]}): give another --out")
