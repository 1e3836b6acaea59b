"""run.json: what a run was, in enough detail to run it again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from datafree import parallel
from datafree.config import TrainConfig
from datafree.fields import as_config, replace
from datafree.jobs.planning import Networks, Plan, network_costs
from datafree.jobs.same_data import data_sha256
from datafree.models.memory import MEMORY, in_memory
from datafree.runs import environment
from datafree.teacher import Normalised

NETWORKS = ("teacher", "arch", "student")  # what may be a network in the place of a name


def split_options(config: TrainConfig, options: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """Parts keywords into fields of `TrainConfig` and the method's own; raises ValueError, one line."""
    config = as_config(config, TrainConfig, "datafree.train(teacher={})")
    common = {f.name for f in dataclasses.fields(TrainConfig)}
    config = replace(config, {k: v for k, v in options.items() if k in common})
    return config, {k: v for k, v in options.items() if k not in common}


def part_networks(options: Mapping[str, Any]) -> tuple[Networks, dict[str, Any]]:
    """Parts networks that stand for a name (`teacher`, `arch`, `student`) from the options; their names stay there.

    A result's `student` comes without its normalisation where it is to be trained, or read into: the run has its own.
    """
    networks = {k: v for k, v in options.items() if isinstance(v, nn.Module)}
    networks |= {k: v.network for k, v in networks.items() if k != "teacher" and isinstance(v, Normalised)}
    return networks, {**options, **{k: in_memory(v) for k, v in networks.items()}}


def check_networks(about: Mapping[str, Any], networks: Networks) -> None:
    """Raises ValueError unless the networks are those that the run of a manifest was given from memory."""
    names = {k: about["config"].get(k) for k in NETWORKS if str(about["config"].get(k)).startswith(MEMORY)}
    given = {k: in_memory(v) if isinstance(v, nn.Module) else type(v).__name__ for k, v in networks.items()}
    if given == names:
        return
    calls = ", ".join(f"{k}=..." for k in names)
    was = ", ".join(f"{k} {v.removeprefix(MEMORY)}" for k, v in names.items()) or "none"
    how = f"from Python: datafree.resume(folder, {calls})" if names else "leave them out"
    raise ValueError(f"networks that this run was given from memory: {was}; {how}")


@contextlib.contextmanager
def reading(job: str) -> Iterator[None]:
    """What a run.json lacks of that job's, read inside, is one line: a ValueError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"this is no run.json of datafree {job} ({what}): give one that a run wrote") from error


def from_manifest(about: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """Configuration and method options of a saved run."""
    with reading("train"):
        config: TrainConfig = replace(TrainConfig(), about["config"])
        about["teacher"]["sha256"], about["domain"]["shape"]  # what the jobs read besides
        return config, dict(about["method_options"])


def manifest(plan: Plan) -> dict[str, Any]:
    """run.json."""
    costs, loaded = network_costs(plan), plan.teacher.loaded
    teacher = {"source": loaded.source, "sha256": loaded.sha256, **costs["teacher"]}
    # The architecture and the embedded teacher are found again by the same rules; the rest is pinned.
    config = dataclasses.asdict(plan.config)
    if config["teacher"] is None:
        config.update(shape=None, classes=None, mean=None, std=None)
    return {
        "job": "train",
        **environment(plan.device),
        "config": config,
        "method_options": dataclasses.asdict(plan.method_config),
        "set_by_user": list(plan.set_by_user),
        "choices": plan.choices,
        "warnings": plan.warnings,
        "seed": plan.config.seed,
        "processes": parallel.world_size(),
        "teacher": teacher,
        "student": costs["student"],
        "domain": dataclasses.asdict(plan.domain),
        **({} if plan.real is None else {"data_sha256": data_sha256(plan.real)}),
    }
