"""The domain of a data set by its name. Imports numpy at most, never torch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from datafree.data.checks import check_labels, check_largest, image_size
from datafree.data.folders import Files, image_shape, list_imagefolder
from datafree.data.formats import npz_keys, npz_shape, reading
from datafree.data.sources import data_name, find_data, missing_message, split_name
from datafree.domain import DOMAINS, Domain, make_domain

# Classes of a test split whose images do not bound them; the largest data sets have some 20,000.
_MOST = 1_000_000


def data_domain(name: str | os.PathLike[str]) -> Domain:
    """The domain of a data set: a key of `DATA`, `npz:PATH` or `imagefolder:PATH`.

    A named set need not be on disk. Of an .npz file the headers and the labels are read, of an image folder the names
    and the images' headers; both take the usual normalisation constants (`datafree.domain.usual_normalisation`), which
    `make_domain(base=..., mean=..., std=...)` overrides. An .npz file has one class more than its largest label.

    Raises ValueError for an unknown name or a file that cannot be read, FileNotFoundError where nothing is there.
    """
    name = data_name(name)
    kind, path = split_name(name)
    if path is None:
        return DOMAINS[kind]
    if find_data(name) is None:
        raise FileNotFoundError(missing_message(name))
    return npz_domain(name, path) if kind == "npz" else folder_domain(name, list_imagefolder(path))


def mirrored(domain: Domain, flip: bool | None) -> Domain:
    """The domain with mirror images as asked for (None: as it is); ValueError where they may have other labels."""
    if flip and not domain.flip:
        raise ValueError(f"--flip: mirror images of {domain.name} may have other labels; leave it out")
    return domain if flip is None else replace(domain, flip=flip)


def npz_domain(name: str, path: Path) -> Domain:
    """The domain of an .npz file, called `name`. ValueError where training images are fewer than the classes."""
    with reading(path, ".npz"):
        keys = npz_keys(path)
    splits = [split for split in ("train", "test") if f"x_{split}" in keys and f"y_{split}" in keys]
    if not splits:
        have = ", ".join(keys) or "nothing"
        raise ValueError(f"{path} has {have}: save uint8 images as x_train, x_test and their labels as y_train, y_test")
    shape = image_size(npz_shape(path, f"x_{splits[0]}"), f"{path}: x_{splits[0]}")
    largest = 0
    for split in splits:
        with reading(path, ".npz"), np.load(path, allow_pickle=False) as arrays:
            labels = np.asarray(arrays[f"y_{split}"])
        check_labels(labels, f"{path}: y_{split}")
        # A small test split may lack most classes.
        limit = len(labels) if split == "train" else _MOST
        check_largest(int(labels.max()), len(labels), limit, f"{path}: y_{split}: ")
        largest = max(largest, int(labels.max()))
    if largest == 0:
        raise ValueError(f"{path} has the label 0 only: give images of two classes or more")
    return replace(make_domain(shape=shape, classes=largest + 1), name=name)


def folder_domain(name: str, splits: dict[str, Files]) -> Domain:
    """The domain of listed image files, called `name`."""
    names = next(iter(splits.values())).class_names
    if len(names) < 2:
        raise ValueError(f"{name} has the class {names[0]} only: give images of two classes or more")
    shape = image_shape([path for files in splits.values() for path in files.paths])
    return replace(make_domain(shape=shape, classes=len(names)), name=name, class_names=names)
