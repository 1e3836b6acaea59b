"""From what a person asked `condense` for to what will be run, and what run.json says of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from datafree import condensation, parallel
from datafree.condensation import load_method
from datafree.condensation.gradient_matching import loops
from datafree.condensation.setting import Real, Setting
from datafree.condensation.synthetic import class_counts
from datafree.condensation.trained import is_checkpoint, load_checkpoint, needed_network
from datafree.config import CondenseConfig, GradientOptions
from datafree.data import Data, get_split, load_data, validation_split
from datafree.data.augmentation import Augmentation, parse_augmentation
from datafree.data.domains import mirrored
from datafree.data.formation import decode
from datafree.data.sources import cache_folder
from datafree.data.tensors import to_float
from datafree.data.whitening import Whitening
from datafree.domain import Domain, make_domain
from datafree.evaluation.cost import multiply_adds, parameters
from datafree.evaluation.protocols import arch_for
from datafree.fields import fields_of, flag, parse_duration, replace
from datafree.jobs.condense_defaults import (
    DEFAULTS,
    EMBEDDED_LENGTH,
    FEW,
    IPC,
    LENGTH,
    OTHER_RATES,
    asks_trained,
    check_read,
    looks_through,
)
from datafree.jobs.filling import method_options
from datafree.jobs.loading import normalised, own_data
from datafree.jobs.machine import autocast
from datafree.jobs.manifest import reading
from datafree.jobs.paths import absolute, absolute_data
from datafree.jobs.same_data import data_sha256
from datafree.models import Loaded, build_model
from datafree.runs import environment
from datafree.training import Clock


@dataclass(kw_only=True)
class CondensePlan:
    """A resolved run. `config` has no field left open that the run depends on.

    teacher_file: of a method whose teacher is a checkpoint: file, arch, sha256.
    """

    config: CondenseConfig
    method: type[Any]
    method_config: Any
    set_by_user: tuple[str, ...]
    data: Data
    domain: Domain
    arch: str
    costs: dict[str, Any]
    counts: list[int]
    device: torch.device
    choices: list[str]
    teacher_file: Mapping[str, Any] | None = None


def _check_start(asked: Mapping[str, Any], factor: int) -> None:
    """Raises ValueError where the first images that were asked for do not fit the multi-formation."""
    if asked.get("init") == "mosaic" and factor == 1:
        raise ValueError("--init mosaic fills a --factor of 2 or more: give one, or --init real")
    if asked.get("init") == "real" and factor > 1:
        raise ValueError(
            f"--init real takes whole images, which --factor {factor} would cut into parts: give --init mosaic, "
            "which are real ones scaled down, or --factor 1"
        )


def _check_pool(config: CondenseConfig, train_steps: int | None) -> None:
    """Raises ValueError where a pool's networks would be renewed before they are trained."""
    assert config.net_steps is not None
    if config.nets == "trained" and train_steps is not None and train_steps > config.net_steps:
        raise ValueError(
            f"--train-steps {train_steps} is more than --net-steps {config.net_steps}, after which networks are new: "
            "give a larger --net-steps or fewer --train-steps"
        )


def _check_loops(method_config: Any, images: int) -> None:
    """Raises ValueError where networks that are matched once are to be trained between two matches."""
    if not isinstance(method_config, GradientOptions):
        return
    outer, inner = loops(images, dataclasses.replace(method_config, inner=None))
    usual = {"inner": inner, "net_lr": GradientOptions.net_lr}
    for name, value in usual.items():
        if outer == 1 and getattr(method_config, name) not in (None, value):
            raise ValueError(
                f"nothing reads {flag(name)} where a network is matched once (--outer 1, as published for 1 image a "
                "class): leave it out, or give a larger --outer"
            )


def _images_a_class(config: CondenseConfig, domain: Domain) -> float:
    if config.images is not None:
        return config.images / domain.classes
    return float(IPC if config.ipc is None else config.ipc)


def condense_plan(
    config: CondenseConfig, options: Mapping[str, Any], device: torch.device, data: Data | None
) -> CondensePlan:
    """Loads the data and resolves everything that was left open.

    Raises:
        ValueError: one line that says what to do.
        FileNotFoundError: the data are not there.
    """
    set_by_user = tuple(f.name for f in fields_of(CondenseConfig) if getattr(config, f.name) != f.default)
    method = load_method(config.method)
    method_config = method_options(config.method, method, options, room=condensation)
    check_read(config, method, {name: getattr(method_config, name) for name in options})
    named = data is None or config.data.startswith(("npz:", "imagefolder:"))
    if data is None:
        data = load_data(config.data, download=config.download, device=device, splits=("train",))
    data = data.to(device)
    domain = mirrored(make_domain(base=data.domain, mean=config.mean, std=config.std), config.flip)
    choices = own_data(data, domain)
    if config.validation:
        data = validation_split(data)
    _, labels = get_split(data, "train")
    asked_arch = arch = absolute(config.arch) or ""
    if arch == "auto":
        arch = arch_for(domain)
    loop, length = _loop(config, method, domain, choices), _length(config, method, choices)
    if config.ipc is None and config.images is None:
        length["ipc"] = IPC
        choices.append(f"images: {IPC} a class (--ipc or --images sets another number)")
    if named:
        length["data"] = absolute_data(config.data)
    known: dict[str, Any] = {"mean": domain.mean, "std": domain.std, "flip": domain.flip}
    config = dataclasses.replace(config, **loop, **length, **known, arch=arch)
    _check_pool(config, getattr(method_config, "train_steps", None))
    if asked_arch == "auto" and looks_through(config, method):
        choices.insert(0, f"networks: {arch} (by the size of the images; --arch names others)")
    method_config, teacher = _own_files(method_config, domain, choices)
    assert config.factor is not None
    decode(torch.zeros(1, *domain.shape), config.factor)
    _augmentation(config, domain)
    if asked_arch not in ("auto", arch_for(domain)) and not looks_through(
        config, method
    ):  # no error: scripts give all methods one network
        through = " but through --teacher" if hasattr(method_config, "teacher") else ""
        choices.append(f"networks: {config.method} looks through none of --arch{through}: {asked_arch} is not used")
    costs = _costs(config, method, method_config, teacher, domain)
    sizes = torch.bincount(labels.cpu(), minlength=domain.classes).tolist()
    counts = class_counts(sizes, config.ipc, config.images, allow_fewer=config.allow_fewer)
    _check_loops(method_config, round(sum(counts) / domain.classes))
    teacher_file = None
    if teacher is not None:
        teacher_file = {"file": method_config.teacher, "arch": teacher.arch, "sha256": teacher.sha256}
    return CondensePlan(
        config=config,
        method=method,
        method_config=method_config,
        set_by_user=(*set_by_user, *options),
        data=data,
        domain=domain,
        arch=costs["arch"],
        costs=costs,
        counts=counts,
        device=device,
        choices=choices,
        teacher_file=teacher_file,
    )


def _loop(config: CondenseConfig, method: type[Any], domain: Domain, choices: list[str]) -> dict[str, Any]:
    """The loop's options: what was asked for, else the method's own defaults, else those of all methods."""
    values = {**DEFAULTS, **method.LOOP}
    asked = {name: getattr(config, name) for name in values if getattr(config, name) is not None}
    few = hasattr(method, "FEW_IMAGES") and _images_a_class(config, domain) < FEW and min(domain.shape[1:]) >= 16
    if few and "factor" not in asked and asked.get("init") != "real":
        values |= method.FEW_IMAGES
        choices.append(f"factor: {values['factor']} (fewer than {FEW} images a class; --factor sets another)")
    if _kind(asked.get("optimizer", values["optimizer"])) != _kind(values["optimizer"]):
        values |= OTHER_RATES[_kind(asked["optimizer"])]
        learned = {**values, **asked}["labels"] == "learned"
        rates = [n for n in (("image_lr", "label_lr") if learned else ("image_lr",)) if n not in asked]
        choices += [f"{n}: {values[n]:g} for {asked['optimizer']} ({flag(n)} sets another)" for n in rates]
    factor = {**values, **asked}["factor"]
    if factor > 1 and "init" not in asked and values["init"] == "real":
        values["init"] = "mosaic"
        choices.append("init: mosaic (real images scaled down to fill --factor)")
    if factor == 1 and values["init"] == "mosaic":
        values["init"] = "real"
    if asked.get("zca") and domain.shape[0] == 1:
        raise ValueError("--zca is for colour images: whitening grey ones is not done in the field; leave it out")
    if domain.shape[0] == 1:
        values["zca"] = False
    _check_start(asked, factor)
    return {**values, **asked}


def _kind(optimizer: str) -> str:
    """AdamW's rates are Adam's."""
    return "adam" if optimizer == "adamw" else optimizer


def _length(config: CondenseConfig, method: type[Any], choices: list[str]) -> dict[str, Any]:
    """How long the loop runs where nobody said it; nothing for a method that has no loop."""
    asked = config.steps is not None or config.budget is not None
    looped, trained = hasattr(method, "terms"), looks_through(config, method) or hasattr(method.Config, "teacher")
    if asked and not looped and not trained:  # no error: scripts give all methods one length
        choices.append(f"length: {config.method} makes its set at once: --steps and --budget are not used")
    if asked or not looped:
        return {}
    length: dict[str, Any] = dict(EMBEDDED_LENGTH if config.data == "digits" else LENGTH)
    words = f"{length['steps']} steps" if "steps" in length else f"{length['budget']} of wall clock"
    choices.append(f"length: {words} (--steps or --budget sets another)")
    return length


def _costs(
    config: CondenseConfig, method: type[Any], method_config: Any, teacher: Loaded | None, domain: Domain
) -> dict[str, Any]:
    """The network that is looked through: that of --arch, else the method's teacher, else none.

    Raises:
        ValueError: it cannot be built.
    """
    name, own, used = config.arch, getattr(method_config, "teacher", None), looks_through(config, method)
    if not used and own is None:
        return {"arch": "none", "parameters": 0, "multiply_adds": 0}
    if not used and teacher is not None:
        name, network = teacher.arch, teacher.network
    else:
        name = name if used else str(own)
        network = build_model(name, shape=domain.shape, classes=domain.classes)
    return {"arch": name, "parameters": parameters(network), "multiply_adds": multiply_adds(network, domain.shape)}


def _own_files(method_config: Any, domain: Domain, choices: list[str]) -> tuple[Any, Loaded | None]:
    """The method's options with files by their absolute paths, and the teacher of a checkpoint."""
    options = {n: v for n in ("teacher", "teacher_arch", "expert_folder") if (v := getattr(method_config, n, None))}
    teacher, arch = options.get("teacher", ""), options.get("teacher_arch")
    given = is_checkpoint(teacher)
    paths = {"teacher": given, "expert_folder": True}
    options = {name: absolute(value, is_path=paths.get(name, False)) for name, value in options.items()}
    method_config = dataclasses.replace(method_config, **options)
    if not given:
        if arch is not None:
            raise ValueError(
                f"--teacher-arch {arch} goes with a checkpoint, and --teacher {teacher} is none: leave it out"
            )
        return method_config, None
    loaded = load_checkpoint(teacher, arch, domain)
    entry = "its own" if loaded.mean is not None else "the data's"
    choices.append(f"teacher: {loaded.arch} from {teacher}, with {entry} normalisation; it is not trained")
    choices += [f"teacher's {line}" for line in loaded.choices]
    return method_config, loaded


def run_clock(config: CondenseConfig) -> Clock:
    """The clock of a run; a selection has one step."""
    seconds = parse_duration(config.budget) if config.budget is not None else None
    return Clock(steps=(config.steps or 1) if seconds is None else None, seconds=seconds)


def make_setting(plan: CondensePlan, clock: Clock, say: Callable[[str], None], stop: Callable[[], bool]) -> Setting:
    """What the method is given."""
    config, domain, data, device = plan.config, plan.domain, plan.data, plan.device
    assert data.x_train is not None and data.y_train is not None
    assert config.net_pool is not None and config.net_steps is not None and config.nets is not None
    whitening = None
    if config.zca:
        whitening = Whitening.fit(to_float(data.x_train))

    def new_network() -> torch.nn.Module:
        network = build_model(plan.arch, shape=domain.shape, classes=domain.classes)
        return normalised(network, domain, device, whitening)

    return Setting(
        real=Real(data.x_train, data.y_train, domain.classes),
        domain=domain,
        new_network=new_network,
        arch=plan.arch,
        augmentation=_augmentation(config, domain),
        whitening=whitening,
        rng=torch.Generator(device).manual_seed(config.seed),
        device=device,
        clock=clock,
        cast=autocast(device, config.precision),
        cache=cache_folder() / "networks",
        say=say,
        nets=config.nets,
        net_pool=config.net_pool,
        net_steps=config.net_steps,
        stopping=stop,
    )


def _augmentation(config: CondenseConfig, domain: Domain) -> Augmentation | None:
    assert config.augmentation is not None and config.augmentation_mode is not None
    if config.augmentation == "none":
        return None
    return parse_augmentation(
        config.augmentation, mode=config.augmentation_mode, flip=domain.flip, mean=domain.mean, std=domain.std
    )


def set_budget(plan: CondensePlan) -> dict[str, int]:
    """What the set will cost, as `CondensedSet.budget` says it of the one that is made."""
    config, domain, stored = plan.config, plan.domain, sum(plan.counts)
    assert config.factor is not None
    decoded = stored * config.factor**2
    return {
        "stored_floats": stored * math.prod(domain.shape),
        "stored_images": stored,
        "decoded_images": decoded,
        "label_bytes": decoded * domain.classes * 4 if config.labels != "hard" else stored * 8,
    }


def beforehand(plan: CondensePlan) -> list[str]:
    """A line on everything that is made before the first step: what it is, and whether it is kept from before."""
    config, method = plan.config, plan.method
    setting = make_setting(plan, run_clock(config), lambda _: None, lambda: False)
    stated = getattr(method, "beforehand", None)
    lines: list[str] = [] if stated is None else stated(setting, plan.method_config)
    if asks_trained(config, method):
        lines.append(needed_network(setting, selecting=not hasattr(method, "terms")))
    return list(dict.fromkeys(lines))


def set_info(plan: CondensePlan) -> dict[str, Any]:
    """What a condensed set says of its origin."""
    import datafree

    config = plan.config
    return {
        "method": config.method,
        "data": config.data,
        "arch": plan.arch,
        "seed": config.seed,
        "validation": config.validation,
        "images_per_class": plan.counts,
        "options": dataclasses.asdict(plan.method_config),
        "clip": config.clip,
        **({"init": config.init} if hasattr(plan.method, "terms") else {}),
        **_teacher_file(plan),
        "datafree": datafree.__version__,
    }


def _teacher_file(plan: CondensePlan) -> dict[str, Any]:
    return {} if plan.teacher_file is None else {"teacher_file": plan.teacher_file}


def from_manifest(about: Mapping[str, Any]) -> tuple[CondenseConfig, dict[str, Any]]:
    """Configuration and method options of a saved run."""
    with reading("condense"):
        config: CondenseConfig = replace(CondenseConfig(), about["config"])
        return config, dict(about["method_options"])


def manifest(plan: CondensePlan) -> dict[str, Any]:
    """run.json."""
    return {
        "job": "condense",
        **environment(plan.device),
        "config": dataclasses.asdict(plan.config),
        "method_options": dataclasses.asdict(plan.method_config),
        "set_by_user": list(plan.set_by_user),
        "choices": plan.choices,
        "warnings": [],
        "seed": plan.config.seed,
        "processes": parallel.world_size(),
        "networks": plan.costs,
        **_teacher_file(plan),
        "images_per_class": plan.counts,
        "domain": dataclasses.asdict(plan.domain),
        "data_sha256": data_sha256(plan.data),
    }
