"""What the arrays of a data set must be. Every message is one line and says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from datafree.domain import Domain

EMPTY = "is empty: save at least one image and its label, or leave both arrays out"


def image_size(shape: Sequence[int], where: str) -> tuple[int, int, int]:
    """(C, H, W) of an array of images (N, H, W) or (N, H, W, C)."""
    if len(shape) and shape[0] == 0:
        raise ValueError(f"{where} {EMPTY}")
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(
            f"{where} has the shape {tuple(shape)}: save images as (N, H, W, C) or (N, H, W), at least one"
        )
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4:
        raise ValueError(f"{where} has the shape {tuple(shape)}: channels come last, so save it as (N, H, W, C)")
    return (shape[3] if len(shape) == 4 else 1), shape[1], shape[2]


def check_labels(labels: npt.NDArray[Any], where: str) -> None:
    """Labels are whole numbers from 0 on, one an image."""
    if labels.ndim and not len(labels):
        raise ValueError(f"{where} {EMPTY}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{where} has the shape {labels.shape} and type {labels.dtype}: give one whole number an image, shape (N,)"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"{where} has the label {labels.min()}: number the classes from 0")


def check_largest(largest: int, images: int, limit: int, where: str = "") -> None:
    """A label that says how many classes there are lies below `limit`. `where` is "" or ends in ": "."""
    if largest >= limit:
        raise ValueError(f"{where}the largest label is {largest}, of {images} images: number the classes from 0")


def check_split(images: npt.NDArray[Any], labels: npt.NDArray[Any], domain: Domain, where: str, split: str) -> None:
    """The images and labels of one split fit each other and the domain."""
    x, y = f"{where}: x_{split}", f"{where}: y_{split}"
    if images.dtype != np.uint8:
        raise ValueError(f"{x} has the type {images.dtype}: save the images as uint8, 0 to 255")
    size = image_size(images.shape, x)
    if size != domain.shape:
        have, want = ("x".join(map(str, shape)) for shape in (size, domain.shape))
        raise ValueError(f"{x} has {have} images, {domain.name} has {want}: replace the file")
    check_labels(labels, y)
    if len(images) != len(labels):
        raise ValueError(
            f"{where} has {len(images)} images in x_{split} and {len(labels)} labels in y_{split}: save as many"
        )
    if int(labels.max()) >= domain.classes:
        last = domain.classes - 1
        raise ValueError(f"{y} has the label {labels.max()}, {domain.name}'s go from 0 to {last}: replace the file")
