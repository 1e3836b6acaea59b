"""How a condensed set is judged: what is trained on it, how long, with which augmentation.

A protocol is a row of `PROTOCOLS`. The default one is this package's; the others are the field's, as their releases
compute them, and exist so that numbers can be compared with published ones. All of them give the last iterate. Releases
that report the best accuracy seen on the test set say more than these do; `note` tells which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args, get_origin, get_type_hints

from datafree.domain import Domain
from datafree.fields import nearest

DSA = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How networks are trained on a set.

    arch: a network's name; "auto" is the ConvNet of the domain's image size.
    networks: how many are trained, each from weights of its own.
    epochs: passes over the set; or
    steps: of the optimiser, rounded up to whole passes. One of the two is given.
    batch_size: the last batch of a pass is smaller where the set does not divide.
    optimizer: "sgd", or "adamw" with the usual betas.
    lr: first rate; the caller may give a set's own (learned) rate in its place, which is one of SGD.
    momentum: SGD's.
    weight_decay: on every parameter; with "adamw" on matrices and kernels alone (as RDED's release).
    schedule: of the rate, constant within a pass.
        "constant"; "cosine" to 0; "half-cosine" to a half;
        "steps": `decay` times at each of `milestones` (shares of the passes);
        "restart": one pass more than `epochs`; after pass number epochs // 2 + 1 (from 0) the optimiser is made anew
        with `decay` times the rate, so that momentum is lost.
    augmentation, mode: see `datafree.data.augmentation`; an image's own parameters, drawn at every step.
    cutmix: probability that a batch is mixed.
    patches: strips a side that are shuffled (1: none).
    smallest_crop: least part of the area of a random crop (1: none).
    tiled: whether these two follow from the set, where its images hold several crops each; see `for_tiles`.
    labels: "own" (as the set has them), "hard" (the most likely class), or "teacher" (a teacher's probabilities of the
        augmented images; needs the teacher at evaluation).
    temperature: of teacher and network where labels are the teacher's; the loss is not multiplied by its square.
    note: the source, and where this differs from it.
    """

    arch: str = "auto"
    networks: int = 5
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "half-cosine", "steps", "restart"] = "constant"
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    augmentation: str = "none"
    mode: Literal["single", "all", "idc"] = "single"
    cutmix: float = 0.0
    patches: int = 1
    smallest_crop: float = 1.0
    tiled: bool = False
    labels: Literal["own", "hard", "teacher"] = "own"
    temperature: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a protocol has either epochs or steps: give one of them")
        for name in ("epochs", "steps", "networks", "batch_size", "lr", "temperature", "patches"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"the protocol's {name} is {value}: give a number greater than 0")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and (value := getattr(self, name)) not in get_args(hint):
                raise ValueError(f"the protocol's {name} is {value!r}: take {' or '.join(get_args(hint))}")

    def passes(self, images: int) -> int:
        """How often a set of so many images is gone through."""
        if self.epochs is None:
            assert self.steps is not None
            return math.ceil(self.steps / math.ceil(images / self.batch_size))
        return self.epochs + 1 if self.schedule == "restart" else self.epochs

    def rate(self, epoch: int, images: int) -> float:
        """The factor on the first rate during pass `epoch`, counted from 0."""
        total = self.passes(images)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / total))
        if self.schedule == "half-cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / (2 * total)))
        if self.schedule == "steps":
            return float(self.decay ** sum(epoch >= int(share * total) for share in self.milestones))
        if self.schedule == "restart":
            return self.decay if epoch > self.restarts(images) else 1.0
        return 1.0

    def restarts(self, images: int) -> int:
        """The pass after which the optimiser is made anew; -1 for never."""
        return (self.passes(images) - 1) // 2 + 1 if self.schedule == "restart" else -1


PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol(
        steps=1000,
        batch_size=128,
        lr=0.02,
        schedule="cosine",
        augmentation=DSA,
        note="This package's own: as many steps whatever the size of the set, so that small and large sets cost alike.",
    ),
    "vico": Protocol(
        epochs=1000,
        schedule="restart",
        augmentation=DSA,
        note="Zhao, Bilen (DC, DSA, DM), release, with augmentation. Its tables are of 5 sets, 20 networks each.",
    ),
    "vico-noaug": Protocol(
        epochs=300,
        schedule="restart",
        note="Zhao, Bilen (DC), release. Its MNIST rows are with crops, scaling and rotation instead: use vico there.",
    ),
    "mtt": Protocol(
        epochs=1000,
        schedule="restart",
        augmentation=DSA,
        note="Cazenavette et al. 2022, release: vico at the set's learned rate; 0.01 where the set has none. Published "
        "numbers are the best checkpoint's on the test set. Augmented before whitening here, after it there.",
    ),
    "idc": Protocol(
        epochs=1000,
        batch_size=64,
        schedule="steps",
        milestones=(2 / 3, 5 / 6),
        decay=0.2,
        augmentation="color_crop_flip_scale_rotate",
        mode="idc",
        cutmix=0.5,
        note="Kim et al. 2022, release, below 64 px; on the decoded images. There: no CutMix on MNIST with a factor of "
        "2 or more, nor on SVHN with factor 1 and one image a class, where cutout takes its place; CIFAR-100 has crops "
        "and mirror images alone in the place of this augmentation.",
    ),
    "rded": Protocol(
        networks=3,
        epochs=300,
        batch_size=100,
        optimizer="adamw",
        lr=0.001,
        weight_decay=0.01,
        schedule="half-cosine",
        augmentation="flip",
        mode="all",
        cutmix=1.0,
        tiled=True,
        labels="teacher",
        temperature=20.0,
        note="Sun et al. 2024, release, ConvNet: a teacher's CutMix labels. Images of several tiles are shuffled and "
        "cropped, whole ones are neither. There: ConvNet has batch norm, ours instance norm; batches of 10, 50 and 100 "
        "for 1, 10 and 50 images a class; published numbers are the best of the last fifth on the test set; a further "
        "pass of the network in training mode moves batch-norm statistics.",
    ),
    "ddranking": Protocol(
        epochs=300,
        schedule="steps",
        milestones=(0.5,),
        cutmix=1.0,
        note="DD-Ranking 0.2.0, the package's defaults; it leaves the schedule's step open: the rate "
        "drops once, at half, here. There: the best accuracy seen on the test set, and the rate chosen on it.",
    ),
}


def named_protocol(name: str) -> Protocol:
    """The protocol of that name; ValueError with the nearest name where there is none."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    raise ValueError(f"unknown protocol {name!r}{nearest(name.lower(), list(PROTOCOLS))}")


def for_tiles(protocol: Protocol, tiles: int) -> Protocol:
    """The protocol for images that hold tiles x tiles crops each; the same where it is not `tiled` or they are whole.

    As RDED's release (Sun et al. 2024): the tiles' rows and columns are shuffled, and a random crop takes 1 / tiles to
    all of the area.
    """
    if tiles < 1:
        raise ValueError(f"{tiles} tiles a side: give 1 or more")
    if not protocol.tiled or tiles == 1:
        return protocol
    return replace(protocol, patches=tiles, smallest_crop=1 / tiles)


def tiles_for(domain: Domain) -> int:
    """How many tiles a side an image of RDED has, where nobody says: 2 from 64 px, 1 below."""
    return 2 if min(domain.shape[1:]) >= 64 else 1


def arch_for(domain: Domain) -> str:
    """The field's ConvNet for the size of the images: 3 blocks below 64 px, 4 below 128 px, else 5."""
    side = min(domain.shape[1:])
    return "convnet5" if side >= 128 else "convnet4" if side >= 64 else "convnet3"
