"""What a student learns from beside a synthesis method's own images: a condensed set, alone or mixed in; real data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datafree.config import StudentSteps
from datafree.data.augmentation import apply, draw, parse_augmentation
from datafree.data.condensed import FILE, CondensedSet
from datafree.data.tensors import to_float
from datafree.parallel import shard, world_size
from datafree.synthesis.setting import Batch, Setting

AUGMENTATION = ("color", "crop", "cutout", "flip", "scale", "rotate")
CROPS = ("crop", "flip")  # what the student's own augmentation is


@dataclass(frozen=True, kw_only=True)
class CondensedConfig:
    """A condensed set has no hyper-parameters of its own."""

    student_steps: StudentSteps = 1


class CondensedImages:
    """Images of a condensed set, drawn with replacement and augmented; stands where a synthesis method stands.

    The augmentation is that of networks which are trained on the set alone. It crops and, where labels allow, mirrors,
    so that the student's `augment` is off. The teacher labels what it sees, so the set's own labels are not used.

    Args:
        setting: the run's.
        condensed: the set.
        cropped: the student's images are cropped and mirrored after this; here all else is done.
    """

    Config = CondensedConfig
    STUDENT: Mapping[str, Any] = {
        "criterion": "kl",
        "temperature": 4.0,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": False,
    }
    NEEDS_GRADIENTS = False

    def __init__(self, setting: Setting, condensed: CondensedSet, *, cropped: bool = False) -> None:
        self.setting, self.config = setting, CondensedConfig()
        self.images = condensed.decoded()[0].to(setting.device)
        mean, std = setting.domain.pixels  # not the teacher's constants, which may be no more than a convention
        self.augmentation = parse_augmentation(
            "_".join(name for name in AUGMENTATION if not (cropped and name in CROPS)),
            mode="all",
            flip=setting.domain.flip,
            mean=mean,
            std=std,
        )
        self.made = 0

    def update(self) -> dict[str, float]:
        return {}

    def sample(self, n: int) -> Batch:
        rng, device = self.setting.rng, self.setting.device
        rows = torch.randint(len(self.images), (n,), generator=rng, device=device)
        draws = draw(self.augmentation, n, rng).shard()
        return Batch(apply(self.images[shard(rows)], draws, self.augmentation).clamp(0, 1))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class RealImages:
    """The training images themselves, the ceiling of a data-free row; stands where a synthesis method stands.

    The teacher labels what it sees: no label of the data is used. Images are drawn with replacement. The student is
    trained as the run's method would train it, so there are no defaults for it here.

    Args:
        setting: the run's.
        images: uint8 (N, C, H, W).
    """

    Config = CondensedConfig
    NEEDS_GRADIENTS = False
    FOLLOWS_PRIOR = False

    def __init__(self, setting: Setting, images: Tensor) -> None:
        self.setting, self.config, self.images, self.made = setting, CondensedConfig(), images, 0

    def update(self) -> dict[str, float]:
        return {}

    def sample(self, n: int) -> Batch:
        rows = torch.randint(len(self.images), (n,), generator=self.setting.rng, device=self.setting.device)
        return Batch(to_float(self.images[shard(rows)]))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Mixed:
    """A synthesis method's images with a condensed set's among them: every batch holds both, half and half.

    Of several processes each has its share of both halves; where they do not divide, the set's half is rounded down.

    Args:
        method: made by its class; rounds, terms and state are its own.
        condensed: as `CondensedImages` gives it.
    """

    def __init__(self, method: Any, condensed: CondensedImages) -> None:
        self.method, self.condensed = method, condensed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)  # all that is not here: update, the state, imaging

    @property
    def made(self) -> int:
        made: int = self.method.made
        return made

    @made.setter
    def made(self, made: int) -> None:
        self.method.made = made

    def sample(self, n: int) -> Batch:
        half = n // 2 // world_size() * world_size()
        theirs: Batch = self.method.sample(n - half)
        if not half:
            return theirs
        ours = self.condensed.sample(half).images
        weights = None if theirs.weights is None else torch.cat([theirs.weights, torch.ones_like(ours[:, 0, 0, 0])])
        return Batch(torch.cat([theirs.images, ours]), weights, theirs.extras)  # extras are of the first rows


def parse_source(source: str) -> tuple[str, str | None]:
    """ "condensed:PATH" or "condensed:PATH+METHOD" as path and method; "real", the data's own images, is not for here.

    A set of the whole name goes first: names may have a plus in them.

    Raises:
        ValueError: anything else.
    """
    kind, _, rest = source.partition(":")
    if kind != "condensed" or not rest:
        raise ValueError(f"--source {source}: give condensed:PATH, condensed:PATH+METHOD to mix, or real")
    whole = os.path.expanduser(rest)
    if os.path.isfile(whole) or os.path.isfile(os.path.join(whole, FILE)):
        return rest, None
    path, plus, method = rest.rpartition("+")
    return (path, method) if plus and method.isidentifier() else (rest, None)
