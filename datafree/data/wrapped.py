"""Any `torch.utils.data.Dataset` as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datafree.data.loading import Data
from datafree.domain import make_domain


def from_dataset(
    train: Any, test: Any = None, *, name: str = "dataset", device: str | torch.device = "cpu", **known: Any
) -> Data:
    """Reads (image, label) items into uint8 tensors, once.

    Args:
        train: a dataset with `len` and items (image, class number). An image is a PIL image, an array or tensor of
            uint8, or a float tensor (C, H, W) in [0, 1], which is rounded to 1/255.
        test: likewise, or None.
        name: of the domain.
        device: where the tensors live.
        known: `mean`, `std`, `flip`, `classes` of the domain (see `make_domain`).

    Raises:
        ValueError: images of several sizes, outside [0, 1], or labels that are no class numbers.
    """
    x, y = _read(train, "train")
    classes = known.pop("classes", int(y.max()) + 1)
    domain = make_domain(name=None, shape=tuple(x.shape[1:]), classes=classes, **known)
    domain = type(domain)(**{**domain.__dict__, "name": name})
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
    if not len(dataset):
        raise ValueError(f"the {split} set is empty: give at least one image a class")
    images, labels = [], []
    for index in range(len(dataset)):
        image, label = dataset[index]
        images.append(_pixels(image))
        labels.append(int(label))
        if images[-1].shape != images[0].shape:
            sizes = f"{tuple(images[0].shape)} and {tuple(images[-1].shape)}"
            raise ValueError(f"the {split} set has images of the shapes {sizes}: give images of one size")
    y = torch.tensor(labels, dtype=torch.int64)
    if int(y.min()) < 0:
        raise ValueError(f"the {split} set has the label {int(y.min())}: number the classes from 0")
    return torch.stack(images).contiguous(), y


def _pixels(image: Any) -> Tensor:
    """uint8 (C, H, W)."""
    if not isinstance(image, Tensor):
        array = np.asarray(image)
        image = torch.from_numpy(np.array(array[..., None] if array.ndim == 2 else array)).permute(2, 0, 1)
    if image.dim() != 3:
        raise ValueError(f"an image of the shape {tuple(image.shape)}: give (C, H, W)")
    if image.is_floating_point():
        if not (float(image.min()) >= 0 and float(image.max()) <= 1):
            raise ValueError("a float image goes beyond [0, 1]: leave normalisation out of the dataset's transform")
        image = (image * 255).round()
    pixels: Tensor = image.to(torch.uint8)
    return pixels
