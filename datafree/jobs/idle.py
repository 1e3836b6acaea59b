"""Options that nothing reads beside another one: each names the values of the other that leave it idle."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Idle = Mapping[str, tuple[str, tuple[str, ...]]]

CONDENSE: Idle = {
    "augmentation_mode": ("augmentation", ("none",)),
    "net_pool": ("nets", ("fresh", "reused")),
    "net_steps": ("nets", ("fresh",)),
    "image_momentum": ("optimizer", ("adam", "adamw")),
    "label_lr": ("labels", ("hard", "soft")),
}
TRAIN: Idle = {
    "momentum": ("optimizer", ("adam",)),
    "milestones": ("schedule", ("cosine", "constant")),
    "temperature": ("criterion", ("l1", "mse")),
}
METHOD: Idle = {
    "bank": ("feed", ("fresh", "last")),
    "eviction": ("feed", ("fresh", "last")),
    "sample_mode": ("feed", ("bank", "last")),
}


def check_idle(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    table: Idle,
    preset: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuses an option that another one leaves without a reader. One given as it is anyway is none.

    Args:
        given: what a person said, by name.
        defaults: what holds where a person says nothing, of all options that are read. One whose partner is not among
            them is let through.
        table: by option, the other one and its values that leave it idle.
        preset: what holds before the defaults, where a person says nothing.

    Raises:
        ValueError: names both.
    """
    given = {name: value for name, value in given.items() if name in defaults}
    holds = {**defaults, **{name: value for name, value in preset.items() if name in defaults}, **given}
    for name, value in given.items():
        other, values = table.get(name, ("", ()))
        if holds.get(other) in values and value not in (defaults[name], preset.get(name, defaults[name])):
            flag, partner = (f"--{n.replace('_', '-')}" for n in (name, other))
            raise ValueError(
                f"nothing reads {flag} with {partner} {holds[other]}: leave it out, or give {partner} another"
            )
