"""What a student learns from and begins with, as a person asked for it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.config import TrainConfig
from datafree.data import Data, load_data, validation_split
from datafree.data.condensed import CondensedSet, load_condensed
from datafree.distillation.sources import CondensedImages, RealImages, parse_source
from datafree.domain import DOMAINS, Domain
from datafree.jobs.same_data import check_same_data
from datafree.synthesis import load_method

# The method to which the teacher gives answers alone.
BLACK_BOX = "blackbox"


def student_source(config: TrainConfig, choices: list[str]) -> tuple[TrainConfig, type[Any], CondensedSet | None]:
    """What --source says: the configuration with its method, the class that makes images, the condensed set."""
    if config.source is None:
        return config, load_method(config.method), None
    if config.source == "real":
        choices.append(f"method: none, the student of {config.method} learns from the data's training images")
        return config, RealImages, None
    path, name = parse_source(config.source)
    if name is None and config.method != TrainConfig.method:
        raise ValueError(
            f"--method {config.method} makes no image with --source {config.source}: leave it out, or mix the two by "
            f"--source {config.source}+{config.method}"
        )
    condensed = load_condensed(path)
    if config.flip is None and not condensed.domain.flip:
        config = dataclasses.replace(config, flip=False)  # as the set was made
    if name is None:
        choices.append("method: none, the student learns from the condensed set alone")
        return config, CondensedImages, condensed
    if config.method not in (name, TrainConfig.method):
        raise ValueError(f"--method {config.method} and --source ...+{name}: give one method")
    return dataclasses.replace(config, method=name), load_method(name), condensed


def student_defaults(config: TrainConfig, method: type[Any]) -> dict[str, Any]:
    """How the student is trained where a person says nothing; on real data as the method would train it.

    So `--source real` bounds what the same student can reach on that method's images.
    """
    return dict(load_method(config.method).STUDENT if method is RealImages else method.STUDENT)


def check_black_box(config: TrainConfig, method: type[Any]) -> None:
    """Raises ValueError where a student of a black box asks for more than its answers, which `queries` count."""
    if method is not load_method(BLACK_BOX):
        return
    for flag, asked, what in (
        ("--inherit", config.inherit, "the teacher's weights"),
        ("--attention", config.attention, "the teacher's activations"),
    ):
        if asked:
            raise ValueError(f"{flag} with --method {BLACK_BOX}: a black box shows none of {what}; leave {flag} out")


def inherit(student: nn.Module, teacher: nn.Module) -> str:
    """Copies into the student what the teacher has under the same name in the same shape; a line that says so."""
    own, theirs = student.state_dict(), teacher.state_dict()
    same = {name: theirs[name] for name in own if name in theirs and theirs[name].shape == own[name].shape}
    student.load_state_dict({**own, **same})
    what = f"{len(same)} of {len(own)} tensors of the teacher, by name and shape" if same else "nothing of the teacher"
    return f"student: begins with {what} (--no-inherit: drawn anew)"


def training_data(config: TrainConfig, domain: Domain, device: torch.device) -> Data:
    """The training images that --source real distils on."""
    if config.data is None and domain.name not in DOMAINS:
        raise ValueError("--source real needs --data NAME: the data whose training images the student learns from")
    data = load_data(config.data or domain.name, download=config.download, device=device, splits=("train",))
    if data.domain.shape != domain.shape:
        raise ValueError(f"--source real: the data's images are {data.domain.shape}, the teacher takes {domain.shape}")
    return validation_split(data) if config.validation else data


def check_condensed(condensed: CondensedSet, domain: Domain, source: str) -> list[str]:
    """Warnings on a set that may be of other data than the teacher's; ValueError where it is, or cannot be learned."""
    have, want = condensed.domain, domain
    if have.shape != want.shape or have.classes != want.classes:
        raise ValueError(
            f"{source} has {have.classes} classes of {have.shape} images, the teacher takes {want.classes} of "
            f"{want.shape}: give a set of the teacher's data"
        )
    return check_same_data(have, want, "the teacher is of")


def absolute_source(source: str | None) -> str | None:
    if source is None or source == "real":
        return source
    path, method = parse_source(source)
    return f"condensed:{Path(os.path.expanduser(path)).resolve()}" + (f"+{method}" if method else "")
