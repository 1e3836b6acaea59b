"""Any `torch.utils.data.Dataset` as tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datafree.data.checks import check_largest
from datafree.data.folders import eight_bit, eight_bit_mode
from datafree.data.loading import Data
from datafree.data.sources import data_name
from datafree.domain import make_domain


def from_dataset(
    train: Any, test: Any = None, *, name: str = "dataset", device: str | torch.device = "cpu", **known: Any
) -> Data:
    """Reads (image, label) items into uint8 tensors, once.

    Args:
        train: a dataset with `len` and items (image, class number). An image is a PIL image (read as grey or
            RGB, on white where its alpha varies), an array (H, W) or (H, W, C) or a tensor (C, H, W), of uint8, or
            floats in [0, 1], which are rounded to 1/255.
        test: likewise, or None.
        name: of the domain.
        device: where the tensors live.
        known: `mean`, `std`, `flip`, `classes` of the domain (see `make_domain`).

    Raises:
        ValueError: a name, a path or a `DataLoader` in the place of a dataset, images of several sizes, of another
            type, outside [0, 1], with the channels in another place, labels that are no class numbers, or without
            `classes` a label that is not below the number of images.
    """
    x, y = _read(train, "train")
    if "classes" not in known:
        check_largest(int(y.max()), len(y), len(y))
    classes = known.pop("classes", int(y.max()) + 1)
    domain = make_domain(shape=tuple(x.shape[1:]), classes=classes, **known)
    domain = replace(domain, name=name)
    if int(y.max()) >= classes:
        raise ValueError(f"the label {int(y.max())} with {classes} classes: number the classes from 0")
    held: dict[str, Tensor] = {"x_train": x.to(device), "y_train": y.to(device)}
    if test is not None:
        x, y = _read(test, "test")
        if tuple(x.shape[1:]) != domain.shape or int(y.max()) >= classes:
            raise ValueError("the test images or labels do not fit the training ones: give splits of one data set")
        held |= {"x_test": x.to(device), "y_test": y.to(device)}
    return Data(domain=domain, **held)


def _read(dataset: Any, split: str) -> tuple[Tensor, Tensor]:
    if isinstance(dataset, str | os.PathLike):
        name = data_name(dataset)
        raise ValueError(f"the {split} set is the name {name!r}: give load_data({name!r})")
    if isinstance(dataset, DataLoader):
        raise ValueError(f"the {split} set is a DataLoader, which gives batches: give loader.dataset")
    try:
        count = len(dataset)
    except TypeError:
        raise ValueError(f"the {split} set has no length: give a set with len, such as list(dataset)") from None
    if not count:
        raise ValueError(f"the {split} set is empty: give at least one image a class")
    images, labels = [], []
    for index in range(count):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"the items of the {split} set are {type(item).__name__}: give (image, class number)")
        images.append(_pixels(item[0]))
        labels.append(_class_number(item[1]))
        if images[-1].shape != images[0].shape:
            sizes = f"{tuple(images[0].shape)} and {tuple(images[-1].shape)}"
            raise ValueError(f"the {split} set has images of the shapes {sizes}: give images of one size")
    y = torch.tensor(labels, dtype=torch.int64)
    if int(y.min()) < 0:
        raise ValueError(f"the {split} set has the label {int(y.min())}: number the classes from 0")
    return torch.stack(images).contiguous(), y


def _class_number(label: Any) -> int:
    size = label.numel() if isinstance(label, Tensor) else np.asarray(label).size
    if size != 1:
        raise ValueError(f"a label of {size} values: give the class number, such as label.argmax() of a one-hot label")
    value = label.item() if isinstance(label, Tensor | np.ndarray) else label
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    # Text may be a number too; torch counts classes in 64 bits.
    if number is None or (not isinstance(value, str | bytes) and number != value) or abs(number) >= 2**63:
        raise ValueError(f"the label {value!r}: give a class number, such as CLASSES.index(name) of a class's name")
    return number


def _pixels(image: Any) -> Tensor:
    """uint8 (C, H, W)."""
    if not isinstance(image, Tensor):
        mode = getattr(image, "mode", None)  # of a PIL image
        instead = eight_bit_mode(mode) if isinstance(mode, str) else None
        array = np.asarray(image if instead is None else eight_bit(image, instead))
        _check_type(array.dtype, array.dtype.name in ("uint8", "float16", "float32", "float64"))
        if array.ndim not in (2, 3):
            raise ValueError(f"an image of the shape {array.shape}: give (H, W) or (H, W, C)")
        if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] > 4:
            raise ValueError(f"an image of the shape {array.shape}: channels come last in an array, give (H, W, C)")
        _check_size(array.shape)
        image = torch.from_numpy(np.array(array[..., None] if array.ndim == 2 else array)).permute(2, 0, 1)
    elif image.dim() == 3 and image.shape[2] in (1, 3, 4) and image.shape[0] > 4:
        shape = tuple(image.shape)
        raise ValueError(
            f"an image of the shape {shape}: channels come first in a tensor, give (C, H, W) by image.permute(2, 0, 1)"
        )
    if image.dim() != 3:
        raise ValueError(f"an image of the shape {tuple(image.shape)}: give (C, H, W)")
    _check_size(image.shape)
    _check_type(image.dtype, image.dtype == torch.uint8 or image.is_floating_point())
    if image.is_floating_point():
        if not (float(image.min()) >= 0 and float(image.max()) <= 1):
            raise ValueError("a float image goes beyond [0, 1]: leave normalisation out of the dataset's transform")
        image = (image * 255).round()
    pixels: Tensor = image.to(torch.uint8)
    return pixels


def _check_size(shape: Sequence[int]) -> None:
    if min(shape) < 1:
        raise ValueError(f"an image of the shape {tuple(shape)} has no pixels: remove it from the dataset")


def _check_type(dtype: Any, fits: bool) -> None:
    if not fits:
        raise ValueError(f"an image of the type {dtype}: give uint8, 0 to 255, or floats in [0, 1]")
