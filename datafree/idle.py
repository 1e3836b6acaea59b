"""Options that nothing reads beside others: each names the values of the others that leave it idle."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from datafree.fields import flag

# By option, the reasons that leave it idle. A reason is some others' values that hold together; of those that a method
# does not have nothing is asked.
Idle = Mapping[str, tuple[Mapping[str, tuple[Any, ...]], ...]]

CONDENSE: Idle = {
    "augmentation_mode": ({"augmentation": ("none",)},),
    "net_pool": ({"nets": ("fresh", "reused")},),
    "net_steps": ({"nets": ("fresh",)},),
    "image_momentum": ({"optimizer": ("adam", "adamw")},),
    "label_lr": ({"labels": ("hard", "soft")},),
    # What follows is of methods.
    "sampler_lr": ({"sampler": ("normal",)},),
    "interpolate": ({"nets": ("fresh", "reused")},),
    "train_steps": ({"nets": ("fresh", "reused")},),
    "cutmix": ({"nets": ("fresh", "reused")},),
}
# How experts are made: those of a folder are as they are.
RECORDED = ("expert_epochs", "expert_images", "expert_every", "expert_lr", "expert_batch", "expert_rho")
TRAIN: Idle = {
    "momentum": ({"optimizer": ("adam",)},),
    "milestones": ({"schedule": ("cosine", "constant")},),
    "temperature": ({"criterion": ("l1", "mse")},),
    "flip": ({"augment": (False,)},),
}
METHOD: Idle = {
    "bank": ({"feed": ("fresh", "last")}, {"distribution": ("normal", "uniform")}),
    "eviction": ({"feed": ("fresh", "last")},),
    "priority": ({"feed": ("fresh", "last")},),
    "correction": ({"feed": ("fresh", "last")}, {"priority": (0,)}),
    "sample_mode": ({"feed": ("bank", "last"), "copies": (0,)}, {"copy_share": (1,)}),
    # Below 0, the curriculum's `easy` asks for agreement.
    "distance": ({"adv": (0,), "easy": (0,)}, {"adaptive": (False,)}),
    "student_mode": ({"adv": (0,), "easy": (0,)}, {"adaptive": (False,)}),
    "masked": ({"adv": (0,)}, {"adaptive": (False,)}),
    "begin": ({"adv": (0,), "easy": (0,)},),
    "end": ({"adv": (0,), "easy": (0,)},),
    "adv": ({"adaptive": (False,)},),
    "bn_momentum": ({"bn": (0,)},),
    "first_bn": ({"bn": (0,)},),
    "contrast_bank": ({"contrast": (0,)},),
    "contrast_temperature": ({"contrast": (0,)},),
    "negatives": ({"contrast": (0,)},),
    "meta_lr": ({"meta": ("none",)},),
    "diversity": ({"balance": (0,)},),
    "copy_momentum": ({"copy_share": (0,)},),
    "divergence": ({"replay": (0,)},),
    "memory_lr": ({"replay": (0,)},),
    "memory_steps": ({"replay": (0,)},),
    "mix": ({"copies": (0,)},),
}
# What an option that is idle amounts to, where that is not its default: one that says so is none.
AMOUNTS_TO = {"flip": False}


def idle_beside(name: str, holds: Mapping[str, Any], table: Idle) -> tuple[str, ...]:
    """The others whose values leave an option without a reader; none where it is read.

    Args:
        name: the option.
        holds: the values of all options that there are.
        table: by option, the reasons.
    """
    for reason in table.get(name, ()):
        others = tuple(other for other in reason if other in holds)
        if others and all(holds[other] in reason[other] for other in others):
            return others
    return ()


def check_idle(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    table: Idle,
    preset: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuses an option that others leave without a reader. One given as it is anyway is none.

    Args:
        given: what a person said, by name.
        defaults: what holds where a person says nothing, of all options that are read. One whose partners are not among
            them is let through.
        table: by option, the reasons.
        preset: what holds before the defaults, where a person says nothing.

    Raises:
        ValueError: names the option and the others.
    """
    given = {name: value for name, value in given.items() if name in defaults}
    holds = {**defaults, **{name: value for name, value in preset.items() if name in defaults}, **given}
    for name, value in given.items():
        others = idle_beside(name, holds, table)
        usual = AMOUNTS_TO.get(name, defaults[name])
        if others and value not in (usual, preset.get(name, usual)):
            beside = " and ".join(_said(other, holds[other]) for other in others)
            instead = _said(others[0], True) if holds[others[0]] is False else f"{flag(others[0])} another"
            raise ValueError(f"nothing reads {flag(name)} with {beside}: leave it out, or give {instead}")


def _said(name: str, value: Any) -> str:
    """An option with its value, as on the command line."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {value:g}" if isinstance(value, float) else f"{flag(name)} {value}"
