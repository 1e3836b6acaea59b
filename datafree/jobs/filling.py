"""What a person left open, filled in: by a preset, the method, the teacher, the images and the length of the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from datafree import synthesis
from datafree.config import CondenseConfig, TrainConfig
from datafree.distillation.sources import RealImages
from datafree.domain import Domain
from datafree.fields import fields_of, flag, nearest, replace
from datafree.idle import METHOD, TRAIN, check_idle, idle_beside
from datafree.parallel import world_size
from datafree.synthesis import STUDENT_KNOWS, load_method
from datafree.teacher import Teacher
from datafree.training import USUAL, default_batch_size

EMBEDDED_BATCH = 64
BANK_BYTES = 250_000_000
# A student without normalisation layers: chosen on held-out training images of MNIST, see docs/methods/blend.md.
WITHOUT_NORM = {"optimizer": "adam", "lr": 3e-3, "weight_decay": 0.0, "batch_size": 64}
# SGD's rates are given for this many images a step; smaller batches take proportionally less.
RATE_BATCH = 128
# What a method's `STUDENT` says of the student's training, and `USUAL` where it does not.
METHODS_OWN = tuple(name for name in STUDENT_KNOWS if name != "batch_size")
# Where a person takes another optimiser than the method's.
RATES = {"sgd": 0.1, "adam": 1e-3}


def preset_values(config: TrainConfig, method: type[Any]) -> Mapping[str, Any]:
    """What --preset says, for the run and for the method; of real images, how that method's student is trained."""
    if config.preset is None:
        return {}
    real = method is RealImages
    method = load_method(config.method) if real else method
    presets: Mapping[str, Mapping[str, Any]] = getattr(method, "PRESETS", {})
    if config.preset not in presets:
        known = f"take {' or '.join(presets)}" if presets else "it has none"
        raise ValueError(f"--preset {config.preset}: unknown to --method {config.method}; {known}")
    values = presets[config.preset]
    # A rate is its optimiser's: it comes with it, and stays away where another is asked for.
    values = {"optimizer": method.STUDENT["optimizer"], **values} if "lr" in values else values
    run = {field.name for field in fields_of(TrainConfig)}
    return {name: value for name, value in values.items() if name in run} if real else values


def under_preset(
    config: TrainConfig, method: type[Any], preset: Mapping[str, Any]
) -> tuple[TrainConfig, dict[str, Any]]:
    """The run with the preset's values where a person gave none, and the preset's values of the method's options."""
    own = {f.name for f in dataclasses.fields(method.Config)}
    defaults = {f.name: f.default for f in fields_of(TrainConfig)}
    lengths = ("steps", "epochs", "budget")
    given = {name for name in defaults if getattr(config, name) != defaults[name]}
    given |= set(lengths) if given & set(lengths) else set()  # one length goes before any other
    if "lr" in preset and config.optimizer not in (None, preset["optimizer"]):
        given |= {"lr", "weight_decay"}
    run = {name: value for name, value in preset.items() if name not in own | given}
    return replace(config, run), {name: value for name, value in preset.items() if name in own}


def fit_terms(
    method: type[Any], method_config: Any, options: Mapping[str, Any], teacher: Teacher, warnings: list[str]
) -> Any:
    """Drops the terms that this teacher gives nothing to match to, and says what stands in for batch norm.

    A method's WITHOUT_STATISTICS are options that it takes then, where a person says nothing else.

    Raises:
        ValueError: what a person asked for has nothing to work on in this teacher.
    """
    needed = getattr(method, "NEEDS_STATISTICS", None)
    if not needed or teacher.has_statistics:
        return method_config
    weight = getattr(method_config, needed)
    if teacher.stand_ins:
        kinds = " and ".join(sorted({type(norm).__name__ for norm in teacher.stand_ins}))
        if weight:
            warnings.append(
                f"the teacher has no batch norm: the term {needed!r} matches the channels of its {kinds} layers with "
                "mean 0 and variance 1 instead"
            )
        return method_config
    if weight and needed in options:
        raise ValueError(f"--{needed} {weight:g}: the teacher has no batch norm, so nothing is matched; leave it out")
    dropped = dataclasses.replace(method_config, **{needed: 0.0})
    defaults = {f.name: f.default for f in fields_of(method.Config)}
    for name in options:
        value = getattr(method_config, name)
        if weight and value != defaults[name] and idle_beside(name, {needed: 0.0}, METHOD):
            raise ValueError(f"{flag(name)}: the teacher has no batch norm, so nothing is matched; leave it out")
    if weight:
        warnings.append(f"the teacher has no batch norm: the term {needed!r} has nothing to match and is dropped")
    instead = {n: v for n, v in getattr(method, "WITHOUT_STATISTICS", {}).items() if n not in options}
    if instead:
        words = ", ".join(f"{flag(name)} {value:g}" for name, value in instead.items())
        warnings.append(f"in its place: {words}" if weight else f"the teacher has no batch norm; in its place: {words}")
    return dataclasses.replace(dropped, **instead)


def fit_bank(method_config: Any, options: Mapping[str, Any], domain: Domain, choices: list[str]) -> Any:
    """Keeps the bank (or `banks`) that nobody asked for within BANK_BYTES: large images get fewer places."""
    banks = getattr(method_config, "banks", 1)
    places = BANK_BYTES // (math.prod(domain.shape) * banks)
    holds = dataclasses.asdict(method_config)
    held = 0 if idle_beside("bank", holds, METHOD) else holds.get("bank", 0)
    if "bank" in options or held <= places:
        return method_config
    what = f"bank: {places:,} images" if banks == 1 else f"banks: {banks} of {places:,} images each"
    choices.append(f"{what} ({BANK_BYTES / 1e6:.0f} MB)")
    return dataclasses.replace(method_config, bank=places)


def cut_short(method_config: Any, steps: int | None) -> list[str]:
    """A line for each inner loop that a run of few student steps makes shorter than what was set, see `Pace.inner`."""
    holds = dataclasses.asdict(method_config)
    wanted = {name: holds.get(name, 0) for name in ("generator_steps", "pixel_steps", "memory_steps")}
    return [
        f"{name.replace('_', ' ')}: {steps} of {count} a round, no more than the run has student steps"
        for name, count in wanted.items()
        if steps is not None and count > steps and not idle_beside(name, holds, METHOD)
    ]


def method_options(
    name: str,
    method: type[Any],
    options: Mapping[str, Any],
    *,
    room: ModuleType = synthesis,
    preset: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The method's configuration: its defaults, over them its `preset`, over both the `options` that a person gave.

    Raises:
        ValueError: an option of another method of the `room` (the package), whose owners are named; one that nobody
            has, with the nearest of the method's and the job's; one that nothing reads; an impossible value.
    """
    defaults = {f.name: f.default for f in fields_of(method.Config)}
    for option in options:
        if option not in defaults:
            held = {n: {f.name for f in dataclasses.fields(room.load_method(n).Config)} for n in room.METHODS}
            owners = [n for n, names in held.items() if option in names]
            if owners:
                raise ValueError(f"{flag(option)} belongs to {', '.join(owners)}, not to --method {name}")
            job = fields_of(TrainConfig if room is synthesis else CondenseConfig)
            known = [*defaults, *(f.name for f in job)]
            raise ValueError(f"unknown option {option!r} with method {name}{nearest(option, known)}")
    config = replace(method.Config(), {**preset, **options})
    check_idle({option: getattr(config, option) for option in options}, defaults, METHOD, preset)
    return config


def fill_optimisation(
    config: TrainConfig,
    asked: TrainConfig,
    preset: Mapping[str, Any],
    student: Mapping[str, Any],
    domain: Domain,
    choices: list[str],
    length: Mapping[str, Any],
) -> TrainConfig:
    """`config` with every field of the student's training; `asked`: as before its `preset`, what a person gave."""
    values: dict[str, Any] = {}
    batch_size = config.batch_size
    if batch_size is None:
        batch_size = EMBEDDED_BATCH if config.teacher is None else default_batch_size(domain.shape)
        batch_size = min(batch_size, student.get("batch_size", batch_size))
        batch_size = -(-batch_size // world_size()) * world_size()
        choices.append(f"batch: {batch_size} images (by the size of the images)")
    if batch_size % world_size():
        raise ValueError(f"--batch-size {batch_size} does not divide among {world_size()} processes")
    values["batch_size"] = batch_size
    usual = {"momentum": TrainConfig.momentum, **{name: student.get(name, USUAL.get(name)) for name in METHODS_OWN}}
    held = {name: value for name in usual if (value := getattr(config, name)) is not None}
    given = {name: value for name in usual if (value := getattr(asked, name)) != getattr(TrainConfig, name)}
    check_idle(given, usual, TRAIN, preset)
    values |= {name: value for name, value in usual.items() if name not in held}
    if config.lr is None:
        optimizer = config.optimizer or student["optimizer"]
        rate = student["lr"] if optimizer == student["optimizer"] else RATES[optimizer]
        values["lr"] = rate * (min(1.0, batch_size / RATE_BATCH) if optimizer == "sgd" else 1.0)
        choices.append(f"rate: {values['lr']:g} ({optimizer}, {batch_size} images a step)")
    if config.steps is None and config.epochs is None and config.budget is None:
        values.update(length)
        words = f"{length['steps']} steps" if "steps" in length else f"{length['budget']} of wall clock"
        choices.append(f"length: {words} (--steps, --epochs or --budget sets another)")
    return dataclasses.replace(config, **values)
