"""Data sets as uint8 tensors: `load_data` and the splits of what it gives."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datafree.arguments import checked
from datafree.data import formats
from datafree.data.checks import check_split
from datafree.data.domains import folder_domain, npz_domain
from datafree.data.folders import Files, list_imagefolder, list_tiny_imagenet, read_images
from datafree.data.sources import cache_folder, data_name, find_data, missing_message, split_name
from datafree.domain import DOMAINS, Domain

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Labelled images on a device.

    domain: shape, classes and normalisation.
    x_train, x_test: uint8 (N, C, H, W), contiguous. y_train, y_test: int64 (N,), in [0, classes).
    A split that the source does not have, or that was not asked for, is None.
    """

    domain: Domain
    x_train: Tensor | None = None
    y_train: Tensor | None = None
    x_test: Tensor | None = None
    y_test: Tensor | None = None

    def to(self, device: str | torch.device) -> Data:
        """The same on that device."""
        held = (self.x_train, self.y_train, self.x_test, self.y_test)
        x_train, y_train, x_test, y_test = (None if part is None else part.to(device) for part in held)
        return replace(self, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


@checked()
def load_data(
    name: str | os.PathLike[str],
    *,
    download: bool = False,
    device: str | torch.device = "cpu",
    splits: str | Sequence[str] = SPLITS,
) -> Data:
    """Load a data set onto a device, the asked splits of it ("train", "test"; one of them may be given as it is).

    `name` is a key of `datafree.data.DATA`, searched for in `search_folders()`, or the user's own:
    `npz:PATH`: a file with x_train, y_train, x_test, y_test (either pair may be missing); images are uint8 (N, H, W, C)
    or (N, H, W).
    `imagefolder:PATH`: PATH/train/CLASS/ and PATH/test/CLASS/ (or val/), or PATH/CLASS/ alone, of which every fifth
    image of each class in alphabetical order is the test split. All images must have one size.

    The digits have no test split of their own: every fifth image of each class is held out. Nothing is downloaded
    unless `download` is true; then torchvision fetches what is missing into ~/.cache/datafree.

    Raises FileNotFoundError where the set, or every asked split of it, is not there, and ValueError for an unknown name
    and for files that cannot be read or do not hold what they should.
    """
    splits = (splits,) if isinstance(splits, str) else splits
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise ValueError(f"unknown splits {', '.join(unknown) or '(none)'}: ask for train, test, or both")
    name = data_name(name)
    kind, _ = split_name(name)
    path = find_data(name)
    if path is None and download and kind in _DOWNLOADS:
        _download(kind)
        path = find_data(name)
    if path is None:
        raise FileNotFoundError(missing_message(name))

    files: dict[str, Files] = {}
    if kind == "imagefolder":
        files = list_imagefolder(path)
    elif kind == "tiny-imagenet" and path.is_dir():
        files = list_tiny_imagenet(path)
    if kind == "imagefolder":
        domain = folder_domain(name, files)
    elif kind == "npz":
        domain = npz_domain(name, path)
    else:
        domain = DOMAINS[kind]

    tensors: dict[str, Tensor] = {}
    for split in splits:
        if files:
            arrays = read_images(files[split], domain.shape) if split in files else None
        else:
            arrays = _read_or_fetch(kind, path, split) if download else _read(kind, path, split)
        if arrays is None:
            continue
        check_split(*arrays, domain, str(path), split)
        tensors[f"x_{split}"], tensors[f"y_{split}"] = _to_device(*arrays, device)
    if not tensors:
        raise FileNotFoundError(
            f"{name} has no {' or '.join(splits)} split in {path}: add it, or name another data set"
        )
    return Data(domain=domain, **tensors)


def _read_or_fetch(kind: str, path: Path, split: str) -> formats.Split | None:
    """What lies where downloads are unpacked may be part of a set: one that was interrupted goes on, if need be."""
    ours = kind in _DOWNLOADS and path in [cache_folder() / place for place in _PLACES]
    try:
        arrays = _read(kind, path, split)
    except ValueError:
        if not ours:
            raise
        arrays = None
    if arrays is None and ours:
        _download(kind)
        arrays = _read(kind, path, split)
    return arrays


def _read(kind: str, path: Path, split: str) -> formats.Split | None:
    if path.suffix == ".npz" or kind == "npz":
        return formats.read_npz(path, split)
    if kind == "digits":
        return formats.read_digits(split)
    if kind in ("mnist", "fashion-mnist"):
        return formats.read_mnist(path, split)
    if kind in ("cifar10", "cifar100"):
        return formats.read_cifar(path, split, classes=DOMAINS[kind].classes)
    if kind == "svhn":
        return formats.read_svhn(path, split)
    return None


def _to_device(images: formats.Images, labels: formats.Labels, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """uint8 (N, H, W[, C]) and labels as tensors, images as contiguous (N, C, H, W)."""
    images = images[..., None] if images.ndim == 3 else images
    # np.array copies: torch warns of read-only memory, which some readers give.
    x = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))
    y = torch.from_numpy(labels.astype(np.int64))
    return x.to(device), y.to(device)


# The torchvision class that fetches each set, and the arguments that name its two splits.
_DOWNLOADS: dict[str, tuple[str, tuple[dict[str, object], ...]]] = {
    "mnist": ("MNIST", ({"train": True},)),
    "fashion-mnist": ("FashionMNIST", ({"train": True},)),
    "cifar10": ("CIFAR10", ({"train": True},)),
    "cifar100": ("CIFAR100", ({"train": True},)),
    "svhn": ("SVHN", ({"split": "train"}, {"split": "test"})),
}


# Where it unpacks them to.
_PLACES = ("MNIST/raw", "FashionMNIST/raw", "cifar-10-batches-py", "cifar-100-python", "")


def _download(kind: str) -> None:
    """Fetches what is missing or, where torchvision knows the checksum, damaged."""
    from torchvision import datasets

    dataset, calls = _DOWNLOADS[kind]
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # torchvision prints its progress; standard output belongs to results.
        # It also reads the files; of damaged ones our own readers tell.
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(AssertionError, ValueError):
            for arguments in calls:
                getattr(datasets, dataset)(root=str(folder), download=True, **arguments)
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{kind} could not be downloaded ({reason}): fetch it elsewhere and put it into {folder}"
        ) from error


def get_split(data: Data, split: str) -> tuple[Tensor, Tensor]:
    """The images and labels of "train" or "test"; ValueError where `data` does not hold that split."""
    x, y = (data.x_train, data.y_train) if split == "train" else (data.x_test, data.y_test)
    if x is None or y is None:
        raise ValueError(f"{data.domain.name} has no {split} split: add it, or name another data set")
    return x, y


def validation_split(data: Data, *, fraction: float = 0.1, seed: int = 0) -> Data:
    """Part of the training split in the place of the test split, for choosing settings without the test data.

    `fraction` of each class (rounded, at least one image, never all) is drawn without replacement; the same `seed`
    gives the same images on every device. In the result x_test and y_test are that part, x_train and y_train the rest,
    both in their former order.

    Raises ValueError where there is no training split, where `fraction` is not between 0 and 1, and where no class has
    two images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the validation part {fraction:g} must lie between 0 and 1")
    x, y = get_split(data, "train")
    generator = torch.Generator().manual_seed(seed)
    labels = y.cpu()
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(data.domain.classes):
        members = (labels == label).nonzero().flatten()
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        if count > 0:
            held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not held.any():
        raise ValueError(f"{data.domain.name} has no class with two training images: give more images")
    held = held.to(y.device)
    return replace(data, x_train=x[~held], y_train=y[~held], x_test=x[held], y_test=y[held])
