"""`evaluate` for condensed sets: networks trained on the set, beside networks trained on as many real images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.arguments import checked
from datafree.config import MachineConfig
from datafree.data import Data, get_split, load_data, validation_split
from datafree.data.condensed import FILE, CondensedSet, load_condensed
from datafree.data.sources import split_name
from datafree.data.wrapped import from_dataset
from datafree.domain import DOMAINS, Domain
from datafree.evaluation import ranking
from datafree.evaluation.condensed import class_counts, score_set
from datafree.evaluation.networks import Forward
from datafree.evaluation.protocols import Protocol, arch_for, named_protocol, tiles_for
from datafree.jobs.loading import load_teacher, normalised
from datafree.jobs.machine import find_device
from datafree.jobs.paths import base_name, check_there
from datafree.jobs.real_images import on_all_images, on_random_images
from datafree.jobs.same_data import check_same_data, left_out
from datafree.jobs.scoring import check_teacher_options
from datafree.jobs.set_labels import check_labels, probabilities
from datafree.models import build_model
from datafree.models.build import check_logits
from datafree.models.checkpoint import json_beside
from datafree.parallel import forked


def is_condensed(path: str) -> bool:
    """Whether a path names a condensed set: its folder or its file."""
    place = Path(path)
    return (place / FILE).is_file() or place.name == FILE


@checked("source", "data", "set_labels", "teacher")
def evaluate_set(
    source: str | Path | CondensedSet,
    data: str | Data | Sequence[Any] | None = None,
    *,
    protocol: str | Protocol = "default",
    archs: str | Sequence[str] = (),
    networks: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    validation: bool = False,
    whole: bool = False,
    set_labels: str = "own",
    rank: bool = False,
    teacher: str | nn.Module | None = None,
    teacher_arch: str | nn.Module | None = None,
    teacher_mean: Sequence[float] | None = None,
    teacher_std: Sequence[float] | None = None,
    device: str = "auto",
    precision: str | int = "32",
    download: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains networks on a condensed set and on random real subsets of as many stored images; tests both.

    The random subsets' figures are kept in the cache folder and found again by all they depend on.

    Args:
        source: a condensed set, or its folder or file.
        data: the data set whose test split is taken: a name, a `datafree.Data`, or (train, test), two data sets of
            (image, class number) items; default: what the set says it was made from.
        protocol: a name in `evaluation.protocols.PROTOCOLS`, or a protocol.
        archs: networks to train; default: the protocol's.
        networks: how many of each; default: the protocol's.
        lr: first rate of SGD on the set; default: the set's own where it has learned one, else the protocol's. Random
            real images are always trained on at the protocol's.
        seed: of everything random.
        validation: test on a part of the training data that is held out, for choosing settings. Sets made for that
            are condensed from the rest: `datafree condense --validation`. Of others `say` gets a warning.
        whole: train one network on all real images too, unless its figure is in the cache already.
        set_labels: "own", as the set has them (by protocol rded a teacher's, of the augmented images); "hard", the
            classes that its images were made for; "teacher", `teacher`'s probabilities of its images. The random images
            get `teacher`'s as well in the last case, else their class numbers.
        rank: with protocol ddranking, its four scores too (see `evaluation.ranking.rank`), of the first network. The
            accuracy on all real images that they need is that of `whole`.
        teacher: a checkpoint, where a teacher's labels are asked for: by the protocol, by `set_labels`, or by `rank`
            of a set with soft labels, whose random images it labels. Refused elsewhere.
        teacher_arch, teacher_mean, teacher_std: its architecture and normalisation, where its file does not say;
            default of the latter: that of the data, where these have a name.
        device, precision: where and how networks are trained.
        download: allow the data to be downloaded.
        say: called with each line worth telling, among them one a network.

    Returns:
        What `score_set` returns of the set ("seconds" are of its own networks, without the random images'), with "set",
        "data", "split", "left_out" (whether the set was made without the training images that it is tested on; None
        where it is tested on others, or where that is not known of the set or of a teacher), "lr" (the first rate on
        the set), "set_labels", "whole_accuracy" (None where it is not known) and the set's budget. With `rank` the
        scores, and "ranking_accuracies" behind them.

    Raises:
        ValueError: something a person can mend; one line.
        FileNotFoundError: the data are not there.
    """
    protocol_object = named_protocol(protocol) if isinstance(protocol, str) else protocol
    check_teacher_options(teacher, teacher_arch=teacher_arch, teacher_mean=teacher_mean, teacher_std=teacher_std)
    condensed = _as_set(source)
    check_labels(condensed, protocol, set_labels, ranked=rank, taught=teacher is not None)
    data = _as_data(data, condensed.domain.classes)
    machine = MachineConfig(device=device, precision=precision, seed=seed)  # type: ignore[arg-type]
    place, precision = find_device(machine.device), machine.precision
    if data is None:
        data = _own_data(condensed, source)
    name, held = _test_data(condensed, data, place, validation, download, say)
    domain = condensed.domain
    asked = [archs] if isinstance(archs, str) else archs
    named = [arch_for(domain) if arch == "auto" else arch for arch in asked or [protocol_object.arch]]
    archs = list(dict.fromkeys(named))
    rate = _rate(condensed, protocol_object, lr)
    held_out = left_out(condensed, teacher is not None, lambda line: say(f"warning: {line}")) if validation else None
    taught = None
    if teacher is not None:
        known = None if isinstance(data, Data) and name not in DOMAINS else name
        taught = load_teacher(
            teacher, arch=teacher_arch, data=known, shape=domain.shape, classes=domain.classes,
            mean=teacher_mean, std=teacher_std, device=place,
        ).teacher  # fmt: skip
        check_logits(taught(torch.full((1, *domain.shape), 0.5, device=place)), str(teacher))
    whitening = condensed.whitening

    def make(arch: str) -> nn.Module:
        network = build_model(arch, shape=domain.shape, classes=domain.classes)
        return normalised(network, domain, place, whitening)

    with forked(place):  # a network that cannot be made is told before the others are trained
        for arch in archs:
            make(arch)
    images, labels = condensed.decoded()
    count = protocol_object.networks if networks is None else networks
    say(
        f"training {count} network{'' if count == 1 else 's'} of {', '.join(archs)} on {len(images)} images, on {place}"
    )
    common: dict[str, Any] = {"networks": count, "seed": seed, "device": place, "precision": precision, "say": say}
    relabel: Forward | None = None
    if taught is not None and protocol_object.labels == "teacher":
        common["teacher"] = taught
    elif taught is not None and set_labels == "teacher":
        relabel = probabilities(taught, place)
        labels = relabel(images)
    elif set_labels == "hard":
        labels = condensed.made_for()
    result = score_set(
        images, labels, held, protocol, archs=archs, tiles=_tiles(condensed), lr=rate, make=make, **common
    )
    counts = stored_counts(condensed)
    held_counts = class_counts(get_split(held, "train")[1], domain.classes)
    if any(count > real for count, real in zip(counts, held_counts, strict=True)):
        say("warning: of some class the set has more images than there are real ones: the random images are fewer")
    for arch in archs:
        random = on_random_images(held, protocol, arch, counts, make, common, whitening, relabel)
        result["archs"][arch] |= random
        if arch == archs[0]:
            result |= random
    whole_accuracy = on_all_images(held, archs[0], make, place, precision, whitening, compute=whole or rank, say=say)
    if rank:
        assert whole_accuracy is not None
        say(f"training {15 * count + (0 if rate else 15)} networks of {archs[0]} more for DD-Ranking's scores")
        scores = ranking.rank(
            held, image_tensor=images, hard_labels=condensed.made_for(), networks=count, stored=counts, syn_lr=rate,
            soft_labels=labels if labels.is_floating_point() else None, full_accuracies=[whole_accuracy] * count,
            arch=archs[0], teacher=taught, seed=seed, device=place, precision=precision, make=make,
        )  # fmt: skip
        result |= {"ranking_accuracies": scores.pop("accuracies"), **scores}
    return {
        "set": str(source) if not isinstance(source, CondensedSet) else None,
        "data": name,
        "split": "validation" if validation else "test",
        "left_out": held_out,
        "lr": protocol_object.lr if rate is None else rate,
        **result,
        "set_labels": set_labels,
        "whole_accuracy": whole_accuracy,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "seed": seed,
        **condensed.budget(),
    }


def stored_counts(condensed: CondensedSet) -> list[int]:
    """Stored images a class: what a random subset of the same budget has."""
    return class_counts(condensed.made_for()[: len(condensed.images)], condensed.domain.classes)


def _as_set(source: Any) -> CondensedSet:
    """The set that was given, or whose folder or file was."""
    if isinstance(source, CondensedSet):
        return source
    if isinstance(source, str | os.PathLike):
        return load_condensed(os.fspath(source))
    if isinstance(getattr(source, "set", None), CondensedSet):
        raise ValueError(f"a {type(source).__name__} holds a set and is none: give result.set")
    raise ValueError(
        f"a {type(source).__name__} is no condensed set: give a set, its folder or its file; tensors as "
        "CondensedSet(images=..., labels=..., domain=...), or in a file by datafree evaluate --images"
    )


def _as_data(data: Any, classes: int) -> str | Data | None:
    """The data that were given, two torch data sets as one `Data`."""
    if data is None or isinstance(data, str | Data):
        return data
    if isinstance(data, tuple | list) and len(data) == 2:
        return from_dataset(*data, classes=classes)
    raise ValueError(
        f"data is a {type(data).__name__}: give a name, a datafree.Data, or (train, test), two data sets of (image, "
        "class number) items"
    )


def _test_data(
    condensed: CondensedSet,
    data: str | Data,
    place: torch.device,
    validation: bool,
    download: bool,
    say: Callable[[str], None],
) -> tuple[str, Data]:
    """The data that a set is tested on and their name; their domain is the set's, and so its normalisation."""
    if isinstance(data, Data):
        name, held = data.domain.name, data.to(place)
    else:
        name, held = data, load_data(data, download=download, device=place)
    _check_fit(condensed, held.domain, name, say)
    if validation:
        held = validation_split(held)
    for split in ("train", "test"):  # random images come from the first: told before anything is trained
        get_split(held, split)
    return name, dataclasses.replace(held, domain=condensed.domain)


def _own_data(condensed: CondensedSet, source: str | Path | CondensedSet) -> str:
    """The data that a set says it was made from. Where they lie, the run.json beside its file says."""
    name = str(condensed.info.get("data", condensed.domain.name))
    if not isinstance(source, CondensedSet):
        place = Path(os.path.expanduser(source))
        config = json_beside(place / FILE if place.is_dir() else place, "run.json").get("config")
        kept = config.get("data") if isinstance(config, dict) else None
        if isinstance(kept, str) and base_name(kept) == name:
            name = kept
    try:
        split_name(name)
    except ValueError:
        raise ValueError(
            f"this set was made from {name!r}, which has no name here: give data=, the data it was made from (--data)"
        ) from None
    check_there(name, "this set")
    return name


def _check_fit(condensed: CondensedSet, domain: Domain, name: str, say: Callable[[str], None]) -> None:
    own = condensed.domain
    if own.shape != domain.shape or own.classes != domain.classes:
        raise ValueError(
            f"the set has {own.classes} classes of {own.shape} images, {name} has {domain.classes} of {domain.shape}: "
            "give the data it was made from"
        )
    for warning in check_same_data(own, domain, "the test images are of"):
        say(f"warning: {warning}")


def _rate(condensed: CondensedSet, protocol: Protocol, given: float | None) -> float | None:
    """The rate that takes the place of the protocol's: the one given, else the set's own, which is one of SGD."""
    if given is not None and not given > 0:
        raise ValueError(f"--set-lr is {given:g}: give a number above 0")
    if protocol.optimizer == "sgd":
        return condensed.learning_rate if given is None else given
    if given is not None:
        raise ValueError("--set-lr is a rate of SGD, and this protocol trains with AdamW: leave it out")
    return None


def _tiles(condensed: CondensedSet) -> int:
    """Crops a side of each image: `rded`'s sets may have several."""
    if condensed.info.get("method") != "rded":
        return 1
    said = (condensed.info.get("options") or {}).get("tiles")
    return int(said) if said else tiles_for(condensed.domain)
