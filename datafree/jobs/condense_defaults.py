"""What `condense` takes where nobody says anything, and which of its options anything reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from datafree.config import CondenseConfig
from datafree.fields import fields_of, flag
from datafree.idle import CONDENSE, RECORDED, check_idle

# What neither a person nor the method says.
DEFAULTS: dict[str, Any] = {
    "init": "real",
    "factor": 1,
    "augmentation": "none",
    "augmentation_mode": "single",
    "labels": "hard",
    "nets": "fresh",
    "net_pool": 10,
    "net_steps": 100,
    "zca": False,
    "optimizer": "sgd",
    "image_lr": 0.1,
    "image_momentum": 0.5,
    "label_lr": 1.0,
    "schedule": "constant",
    "clip": "step",
}
# Rates of the images and of learned labels where a person takes another optimiser than the method's, whose own mean
# nothing for it. Adam's are frepo's; 0.01 was best for dm too (digits, held-out, one set each: 0.003, 0.01, 0.03).
OTHER_RATES: dict[str, dict[str, float]] = {
    "sgd": {"image_lr": DEFAULTS["image_lr"], "label_lr": DEFAULTS["label_lr"]},
    "adam": {"image_lr": 0.01, "label_lr": 3e-3},
}
# What the loop reads for each method with steps, and what is read for one without: labels are made afterwards, and real
# images need no clipping. What a method reads beside it stands in its `READS`; "label_lr" is there where its terms
# depend on labels.
LOOP_READS = (
    "init", "factor", "labels", "optimizer", "image_lr", "image_momentum", "schedule", "image_ema", "clip",
)  # fmt: skip
SELECTION_READS = ("labels", "clip")
IPC = 10
FEW = 5  # images a class; below it a method's `FEW_IMAGES` stand in for its `LOOP`
LENGTH = {"budget": "10m"}
EMBEDDED_LENGTH = {"steps": 200}


def check_read(config: CondenseConfig, method: type[Any], options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Refuses an option that was given and that nothing reads. One given as the method has it anyway is none.

    Args:
        config: the run's options.
        method: the method.
        options: the method's own that were given, all of which it has.

    Raises:
        ValueError: names them all, or the other option that leaves one idle, or says that labels cannot be learned or
            soft.
    """
    defaults = {**DEFAULTS, "image_ema": CondenseConfig.image_ema, **method.LOOP}
    read = (*(LOOP_READS if hasattr(method, "terms") else SELECTION_READS), *method.READS)
    given = {name: getattr(config, name) for name in defaults if getattr(config, name) is not None}
    unread = [name for name, value in given.items() if name not in read and value != defaults[name]]
    if unread:
        flags = ", ".join(map(flag, unread))
        raise ValueError(f"{config.method} does not read {flags}: leave {_them(unread)} out")
    if config.labels == "learned" and "label_lr" not in method.READS:
        raise ValueError(
            f"--labels learned: no term of {config.method} depends on labels: they would stay as they are, "
            "give --labels soft or hard"
        )
    if config.labels == "soft" and not getattr(method, "SOFT", True):
        raise ValueError(f"--labels soft: {config.method} takes no network's labels: give --labels learned or hard")
    own = {field.name: field.default for field in fields_of(method.Config)}
    check_idle({**given, **options}, {**{n: v for n, v in defaults.items() if n in read}, **own}, CONDENSE)
    recorded = [name for name in RECORDED if name in options and options[name] != own[name]]
    if recorded and options.get("expert_folder"):
        flags = ", ".join(map(flag, recorded))
        raise ValueError(
            f"nothing reads {flags} with --expert-folder, whose experts are made already: leave {_them(recorded)} out"
        )


def looks_through(config: CondenseConfig, method: type[Any]) -> bool:
    """Whether anything looks through a network of --arch: the method does, or what `asks_trained` says."""
    return getattr(method, "NEEDS_NETWORK", True) or asks_trained(config, method)


def asks_trained(config: CondenseConfig, method: type[Any]) -> bool:
    """Whether a trained network of --arch is asked beside the method: by herding's first images, or for soft labels."""
    if not hasattr(method, "terms"):
        return config.labels == "soft" and method.LOOP.get("labels") != "soft"
    return config.init == "herding" or (config.labels != "hard" and not hasattr(method, "first_labels"))


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"
