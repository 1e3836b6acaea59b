"""The score of a condensed set: networks trained on it, beside networks trained on as many real images."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datafree.arguments import checked
from datafree.data.condensed import check_numbers
from datafree.data.loading import Data, get_split
from datafree.data.tensors import to_float
from datafree.domain import Domain
from datafree.evaluation.accuracy import evaluate
from datafree.evaluation.networks import Forward, forward_of, train_networks
from datafree.evaluation.protocols import Protocol, arch_for, for_tiles, named_protocol
from datafree.models import build_model
from datafree.teacher import Normalised

Make = Callable[[str], nn.Module]


@checked()
def score_set(
    images: Tensor,
    labels: Tensor,
    data: Data,
    protocol: str | Protocol = "default",
    *,
    archs: Sequence[str] = (),
    networks: int | None = None,
    tiles: int = 1,
    seed: int = 0,
    lr: float | None = None,
    device: str | torch.device = "cpu",
    precision: str = "32",
    teacher: Forward | None = None,
    make: Make | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Accuracy on `data`'s test split of networks trained on a set.

    For choosing anything, give `validation_split(data)` in the place of `data`.

    Args:
        images: (N, C, H, W), float in [0, 1] or uint8; of a multi-formation, the decoded ones.
        labels: class numbers (N,), or probabilities (N, classes).
        data: with a test split. Not changed.
        protocol: a name in `PROTOCOLS`, or a protocol.
        archs: the networks to train, in this order; the protocol's alone if empty.
        networks: how many of each; the protocol's number if None.
        tiles: crops a side of each of the set's images, for protocols that go by it (`for_tiles`).
        seed: of everything random.
        lr: the set's own rate, in the place of the protocol's.
        device, precision: see `train_networks`.
        teacher: images in [0, 1] to logits, for protocols that want its labels.
        make: from a network's name to an untrained one that takes images in [0, 1]; the zoo's behind the domain's
            normalisation if None.
        say: called with a line a network, once it is tested.

    Returns:
        Of the first network: "arch", "accuracies" (fractions of 1), "accuracy_mean", "accuracy_std" (of the sample,
        divisor n - 1), "interval_95" (of the mean: Student's t, [low, high], None for one network), and "seconds".
        Under "archs" these, for each network by name. Beside them "protocol" (its name, or "custom"), "networks",
        "images" (how many the set trains on) and "seconds" of all.
    """
    begin = time.monotonic()
    name, protocol = (protocol, named_protocol(protocol)) if isinstance(protocol, str) else ("custom", protocol)
    domain, count = data.domain, protocol.networks if networks is None else networks
    archs = tuple(archs) or (protocol.arch,)
    archs = tuple(arch_for(domain) if arch == "auto" else arch for arch in archs)
    images, labels = images.to(device), labels.to(device)
    _check(images, labels, domain)
    if count < 1:
        raise ValueError(f"{count} networks: give 1 or more")
    results = {}
    for arch in archs:
        since, rng = time.monotonic(), torch.Generator().manual_seed(seed)
        found = accuracies(
            data,
            arch,
            images,
            labels,
            for_tiles(protocol, tiles),
            rng,
            count=count,
            lr=lr,
            precision=precision,
            teacher=teacher,
            make=make,
            tested=_line_each(say, f"{arch} on the set", count),
        )
        results[arch] = {"arch": arch, **summary(found)}
        results[arch]["seconds"] = round(time.monotonic() - since, 2)
    return {
        "protocol": name,
        "networks": count,
        "images": len(images),
        **results[archs[0]],
        "archs": results,
        "seconds": round(time.monotonic() - begin, 2),
    }


def random_part(
    data: Data,
    protocol: str | Protocol,
    arch: str,
    *,
    counts: Sequence[int],
    networks: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str = "32",
    teacher: Forward | None = None,
    relabel: Forward | None = None,
    make: Make | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """What `score_set` says of a set, with "random_" in front of its keys, of random real images that are whole.

    Each network is trained on a choice of its own, with class numbers (or the teacher's labels, by the protocol) and
    the protocol's own rate. It depends on no set, so that whoever scores several can keep it. `counts` are the images
    of each class, `arch` is a network's name. `relabel` gives the real images (in [0, 1]) probabilities in the place of
    their class numbers: a teacher's, where the set has a teacher's labels. The other arguments are those of
    `score_set`.
    """
    protocol = named_protocol(protocol) if isinstance(protocol, str) else protocol
    count = protocol.networks if networks is None else networks
    tested = _line_each(say, f"{arch} on random real images", count)
    score = partial(accuracies, data, arch, precision=precision, teacher=teacher, make=make, tested=tested)
    rng, found = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        rows = random_rows(get_split(data, "train")[1], counts, rng)
        x, y = (part[rows.to(part.device)].to(device) for part in get_split(data, "train"))
        y = y if relabel is None else relabel(to_float(x))
        found += score(x, y, protocol, rng, count=1)
    return {f"random_{key}": value for key, value in summary(found).items()}


def accuracies(
    data: Data,
    arch: str,
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    generator: torch.Generator,
    *,
    count: int,
    lr: float | None = None,
    precision: str = "32",
    teacher: Forward | None = None,
    make: Make | None = None,
    tested: Callable[[float], None] = lambda _: None,
) -> list[float]:
    """Test accuracies, fractions of 1, of `count` networks trained on a set, one after the other.

    `tested` is called with each as it is known. The other arguments are those of `score_set`.
    """
    domain, found = data.domain, list[float]()

    def build() -> nn.Module:
        if make is not None:
            return make(arch)
        network = build_model(arch, shape=domain.shape, classes=domain.classes)
        return Normalised(network, domain.mean, domain.std)

    x, y = (part.to(images.device) for part in get_split(data, "test"))
    for _ in range(count):
        (network,) = train_networks(
            build,
            images,
            labels,
            protocol,
            domain,
            generator,
            count=1,
            lr=lr,
            precision=precision,
            teacher=teacher,
        )
        found.append(evaluate(forward_of(network, precision), x, y).accuracy)
        tested(found[-1])
    return found


def _line_each(say: Callable[[str], None], what: str, count: int) -> Callable[[float], None]:
    """Says of each network in turn how it did."""
    numbers = itertools.count(1)
    return lambda accuracy: say(f"{what}, network {next(numbers)} of {count}: {100 * accuracy:.2f} %")


def summary(fractions: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and 95 % interval of the mean (Student's t); see `score_set`."""
    mean = statistics.fmean(fractions)
    result: dict[str, Any] = {"accuracies": list(fractions), "accuracy_mean": mean, "accuracy_std": 0.0}
    if len(fractions) < 2:
        return {**result, "interval_95": None}
    from scipy.special import stdtrit  # a tenth of what a command takes to start, and few score sets

    spread = statistics.stdev(fractions)
    half = float(stdtrit(len(fractions) - 1, 0.975)) * spread / math.sqrt(len(fractions))
    return {**result, "accuracy_std": spread, "interval_95": [mean - half, mean + half]}


def class_counts(labels: Tensor, classes: int) -> list[int]:
    """How many labels there are of each class; of probabilities, the most likely class counts."""
    numbers = labels.argmax(1) if labels.is_floating_point() else labels
    return [int(n) for n in torch.bincount(numbers, minlength=classes)]


def random_rows(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Rows of `counts[c]` images of each class c, without replacement (all of a class that has fewer), by class."""
    labels, rows = labels.cpu(), []
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().flatten()
        rows.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(rows)


def without_augmentation(protocol: Protocol) -> Protocol:
    """The protocol on the images as they are."""
    return replace(protocol, augmentation="none", cutmix=0.0, patches=1, smallest_crop=1.0, tiled=False)


def _check(images: Tensor, labels: Tensor, domain: Domain) -> None:
    if images.dim() != 4 or tuple(images.shape[1:]) != domain.shape:
        raise ValueError(f"images of the shape {tuple(images.shape)}, test images {domain.shape}: give data that fit")
    if not len(images):
        raise ValueError("there is no image: give one or more")
    if labels.is_floating_point():
        check_probabilities("labels", labels, len(images), domain.classes)
    else:
        check_numbers("labels", labels, len(images), domain.classes)


def check_probabilities(name: str, soft: Tensor, images: int, classes: int) -> None:
    """Raises ValueError unless `soft` are probabilities (images, classes)."""
    if tuple(soft.shape) != (images, classes) or not soft.is_floating_point():
        shape, wanted = tuple(soft.shape), (images, classes)
        raise ValueError(f"{name} of the shape {shape}, {soft.dtype}: give probabilities, floats {wanted}")
    if not bool(((soft >= 0).all(1) & ((soft.sum(1) - 1).abs() < 1e-2)).all()):
        raise ValueError(f"{name} are no probabilities: give {name}.softmax(1) where they are logits")
