"""DD-Ranking's scores: how much of a set's accuracy is the images', and how much labels and augmentation add.

Source: DD-Ranking (NUS-HPC-AI-Lab), documentation and release 0.2.0, whose names these are. Accuracies are fractions of
1 here; that release puts percentages into the exponential, which gives other numbers altogether.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.arguments import checked
from datafree.data.condensed import check_images, check_numbers
from datafree.data.folders import folder_name, list_classes, read_images
from datafree.data.loading import Data, get_split, validation_split
from datafree.data.tensors import to_float
from datafree.domain import Domain
from datafree.evaluation.condensed import (
    Make,
    accuracies,
    check_probabilities,
    class_counts,
    random_rows,
    without_augmentation,
)
from datafree.evaluation.networks import Forward
from datafree.evaluation.protocols import Protocol, arch_for, named_protocol

# The rates that the package chooses from.
RATES = (0.001, 0.005, 0.01, 0.05, 0.1)
# What the package trains on the whole of CIFAR, whatever the set's own protocol is.
WHOLE = Protocol(epochs=200, batch_size=512, schedule="steps", milestones=(0.5,))


def hard_label_recovery(full_hard: float, synthetic_hard: float) -> float:
    """HLR: how far class numbers alone fall behind the whole data; lower is better. Accuracies in [0, 1]."""
    _fractions(full_hard, synthetic_hard)
    return full_hard - synthetic_hard


def improvement_over_random(synthetic: float, random: float) -> float:
    """IOR: what the set gains over as many random real images with labels of the same kind; higher is better."""
    _fractions(synthetic, random)
    return synthetic - random


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    """LRS in [0, 1]: (e^a - 1/e) / (e - 1/e) with a = weight IOR - (1 - weight) HLR."""
    return _score(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(
    synthetic: float,
    random: float,
    synthetic_unaugmented: float,
    random_unaugmented: float,
    weight: float = 0.5,
) -> float:
    """ARS in [0, 1]: the same map of weight (synthetic - random) + (1 - weight) (the same without augmentation)."""
    with_it = improvement_over_random(synthetic, random)
    without = improvement_over_random(synthetic_unaugmented, random_unaugmented)
    return _score(weight * with_it + (1 - weight) * without)


def _score(advantage: float) -> float:
    return (math.exp(advantage) - math.exp(-1)) / (math.e - math.exp(-1))


def _fractions(*accuracies: float) -> None:
    if not all(0 <= accuracy <= 1 for accuracy in accuracies):
        raise ValueError(f"accuracies {', '.join(f'{a:g}' for a in accuracies)}: give fractions of 1, not percentages")


@checked()
def rank(
    data: Data,
    *,
    image_tensor: Tensor | None = None,
    image_path: str | Path | None = None,
    hard_labels: Tensor | None = None,
    soft_labels: Tensor | None = None,
    syn_lr: float | None = None,
    protocol: str | Protocol = "ddranking",
    arch: str | None = None,
    networks: int | None = None,
    full_accuracies: Sequence[float] | None = None,
    stored: Sequence[int] | None = None,
    teacher: Forward | None = None,
    weight: float = 0.5,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str = "32",
    make: Make | None = None,
) -> dict[str, Any]:
    """All four scores of a set, with DD-Ranking's arguments and names.

    For n networks it trains 3 n + 15 on the set (3 n with `syn_lr`), 12 n on random images, and n on the whole data
    unless `full_accuracies` are given.

    Args:
        data: real images; the test split gives the accuracies.
        image_tensor: (N, C, H, W), float in [0, 1]; or
        image_path: a folder with a subfolder of image files for each class, called by the class's number (3, 003 or
            3-cat) or by its name in `data`. The images' order is the alphabetical one of folders and of files in them.
        hard_labels: class numbers (N,). If None: what the subfolders say; of `image_tensor` equally many of each class
            in order, unless there are soft labels.
        soft_labels: probabilities (N, classes). The random images then get the teacher's, so that it is needed.
        syn_lr: the set's rate. If None it is chosen from `RATES`, on a tenth of the training images. That of the random
            images always is. (The package chooses on the test images.)
        protocol: for set and random images. HLR's networks get class numbers and no augmentation.
        arch: a network's name; the ConvNet of the image size if None.
        networks: how many of each; the protocol's number if None.
        full_accuracies: of networks trained on the whole data; they are trained by `WHOLE` if None, which takes long.
        stored: real images of each class for the random sets; the number of labels of the class if None.
        teacher: images in [0, 1] to logits; for soft labels.
        weight: of IOR in LRS, and of the augmented accuracies in ARS.
        seed, device, precision, make: see `score_set`.

    Returns:
        "hard_label_recovery", "improvement_over_random", "label_robust_score", "augmentation_robust_score", each with
        "_mean" and "_std" (over networks, divisor n), and the accuracies behind them under "accuracies".

    Raises:
        ValueError: images or labels that do not fit the data, a split that is missing, an accuracy or a number out of
            its range, no teacher for soft labels; before anything is trained.
        FileNotFoundError: no folder is at `image_path`.
    """
    domain = data.domain
    protocol = named_protocol(protocol) if isinstance(protocol, str) else protocol
    count = protocol.networks if networks is None else networks
    _check_numbers(count, syn_lr, full_accuracies, weight)
    images, given = _images(image_tensor, image_path, domain, numbered=hard_labels is None)
    hard_labels = given if hard_labels is None else hard_labels
    own, hard = _labels(hard_labels, soft_labels, len(images), domain.classes)
    if protocol.labels == "teacher" and teacher is None:
        raise ValueError("this protocol trains on a teacher's labels: give a teacher")
    if soft_labels is not None and teacher is None:
        raise ValueError("soft labels are compared with random images that a teacher labels: give a teacher")
    name = arch or (arch_for(domain) if protocol.arch == "auto" else protocol.arch)

    images, own, hard = images.to(device), own.to(device), hard.to(device)
    x, y = get_split(data, "train")
    get_split(data, "test")  # tells now that it is missing
    held = validation_split(data, seed=seed)
    test, choose = (
        partial(accuracies, each, name, precision=precision, teacher=teacher, make=make) for each in (data, held)
    )
    counts, rng = (
        list(stored) if stored is not None else class_counts(hard, domain.classes),
        torch.Generator().manual_seed(seed),
    )

    def random_set() -> tuple[Tensor, Tensor]:
        rows = random_rows(get_split(held, "train")[1], counts, rng)
        some, labels = (part[rows.to(part.device)].to(device) for part in get_split(held, "train"))
        some = to_float(some)
        if soft_labels is not None and teacher is not None:
            with torch.no_grad():
                labels = teacher(some).float().softmax(1)
        return some, labels

    def measured(
        images: Tensor, labels: Tensor, protocol: Protocol, lr: float | None = None, many: int = 1
    ) -> list[float]:
        if lr is None:
            tried = {rate: choose(images, labels, protocol, rng, count=1, lr=rate)[0] for rate in RATES}
            lr = max(tried, key=lambda rate: tried[rate])
        return test(images, labels, protocol, rng, count=many, lr=lr)

    plain, drawn = without_augmentation(protocol), [random_set() for _ in range(count)]
    found = {
        "synthetic_hard": measured(images, hard, replace(plain, labels="hard"), syn_lr, count),
        "synthetic": measured(images, own, protocol, syn_lr, count),
        "synthetic_unaugmented": measured(images, own, plain, syn_lr, count),
        "random": [measured(*some, protocol)[0] for some in drawn],
        "random_unaugmented": [measured(*some, plain)[0] for some in drawn],
    }
    found["full_hard"] = (
        test(x.to(device), y.to(device), WHOLE, rng, count=count) if full_accuracies is None else list(full_accuracies)
    )
    return {**scores(found, weight), "accuracies": found}


def scores(found: dict[str, list[float]], weight: float = 0.5) -> dict[str, float]:
    """Means and standard deviations of the four scores over runs; `found` holds the accuracies as `rank` gives them."""
    runs = range(len(found["synthetic"]))
    hlr = [hard_label_recovery(found["full_hard"][i], found["synthetic_hard"][i]) for i in runs]
    ior = [improvement_over_random(found["synthetic"][i], found["random"][i]) for i in runs]
    every = {
        "hard_label_recovery": hlr,
        "improvement_over_random": ior,
        "label_robust_score": [label_robust_score(hlr[i], ior[i], weight) for i in runs],
        "augmentation_robust_score": [
            augmentation_robust_score(
                found["synthetic"][i],
                found["random"][i],
                found["synthetic_unaugmented"][i],
                found["random_unaugmented"][i],
                weight,
            )
            for i in runs
        ],
    }
    means = {f"{name}_mean": statistics.fmean(values) for name, values in every.items()}
    return means | {f"{name}_std": statistics.pstdev(values) for name, values in every.items()}


def _check_numbers(count: int, lr: float | None, full: Sequence[float] | None, weight: float) -> None:
    """Raises ValueError for a number that `rank` could not use in the end."""
    if count < 1:
        raise ValueError(f"{count} networks: give 1 or more")
    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"syn_lr is {lr}: give a number above 0, or None")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}: give a number from 0 to 1")
    if full is not None:
        _fractions(*full)
        if len(full) != count:
            raise ValueError(f"{len(full)} accuracies of the whole data for {count} networks: give as many")


def _images(
    tensor: Tensor | None, path: str | Path | None, domain: Domain, *, numbered: bool
) -> tuple[Tensor, Tensor | None]:
    """Images in [0, 1], and class numbers if `numbered` and a folder says them."""
    if (tensor is None) == (path is None):
        raise ValueError("give the set as image_tensor or as image_path, one of the two")
    if tensor is not None:
        check_images(tensor, domain)
        return tensor, None
    assert path is not None
    if not Path(path).is_dir():
        raise FileNotFoundError(f"image_path {path} is no folder: give one with a subfolder of images for each class")
    files = list_classes(Path(path))
    classes = _classes(files.class_names, domain) if numbered else None
    pixels, labels = read_images(files, domain.shape)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    images = to_float(torch.tensor(pixels.transpose(0, 3, 1, 2)))
    return images, None if classes is None else torch.tensor(classes)[torch.tensor(labels)]


def _classes(folders: Sequence[str], domain: Domain) -> list[int]:
    """The class number of each folder, by the domain's names or by the number that the folder's name begins with.

    Raises ValueError where they say neither.
    """
    for spelled in (str, folder_name):
        names = [spelled(name) for name in domain.class_names]
        if all(names.count(spelled(folder)) == 1 for folder in folders):
            return [names.index(spelled(folder)) for folder in folders]
    numbers = [int(found[1]) for folder in folders if (found := re.match(r"(\d+)(-|$)", folder))]
    if len(folders) == len(numbers) == len(set(numbers)) and max(numbers) < domain.classes:
        return numbers
    raise ValueError(
        f"the class folders {', '.join(folders[:3])}, ... are not called by the {domain.classes} classes of "
        f"{domain.name}: rename them to class numbers, from 0 on, or give hard_labels"
    )


def _labels(hard: Tensor | None, soft: Tensor | None, images: int, classes: int) -> tuple[Tensor, Tensor]:
    """The set's own labels, and class numbers."""
    if soft is not None:
        check_probabilities("soft_labels", soft, images, classes)
        hard = soft.argmax(1) if hard is None else hard
    elif hard is None:
        if images % classes:
            raise ValueError(f"{images} images of {classes} classes: give hard_labels, the classes' sizes differ")
        hard = torch.arange(classes).repeat_interleave(images // classes)
    check_numbers("hard_labels", hard, images, classes)
    return (hard if soft is None else soft), hard
