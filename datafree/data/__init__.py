"""Data sets as uint8 tensors on the device.

Importing this module imports neither torch nor numpy: the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# The sets with a name. Beside them, `imagefolder:PATH` and `npz:PATH` name the user's own.
DATA: dict[str, str] = {
    "digits": "scikit-learn's handwritten digits, 1,797 grey 8x8 images, embedded (a fifth is held out as test set)",
    "mnist": "MNIST, 70,000 grey 28x28 images of handwritten digits",
    "fashion-mnist": "Fashion-MNIST, 70,000 grey 28x28 images of clothes",
    "cifar10": "CIFAR-10, 60,000 colour 32x32 photographs, 10 classes",
    "cifar100": "CIFAR-100, 60,000 colour 32x32 photographs, 100 classes",
    "svhn": "Street View House Numbers (cropped), 99,289 colour 32x32 images, 10 classes",
    "tiny-imagenet": "Tiny-ImageNet, 110,000 colour 64x64 photographs, 200 classes (its val folder is the test set)",
}

if TYPE_CHECKING:
    from datafree.data.domains import data_domain as data_domain
    from datafree.data.loading import Data as Data
    from datafree.data.loading import get_split as get_split
    from datafree.data.loading import load_data as load_data
    from datafree.data.loading import validation_split as validation_split
    from datafree.data.sources import find_data as find_data
    from datafree.data.sources import search_folders as search_folders
    from datafree.data.tensors import augment as augment
    from datafree.data.tensors import batches as batches
    from datafree.data.tensors import crop_and_flip as crop_and_flip
    from datafree.data.tensors import draw_crops as draw_crops
    from datafree.data.tensors import to_float as to_float

_PUBLIC = {
    "Data": "datafree.data.loading",
    "augment": "datafree.data.tensors",
    "batches": "datafree.data.tensors",
    "crop_and_flip": "datafree.data.tensors",
    "data_domain": "datafree.data.domains",
    "draw_crops": "datafree.data.tensors",
    "find_data": "datafree.data.sources",
    "get_split": "datafree.data.loading",
    "load_data": "datafree.data.loading",
    "search_folders": "datafree.data.sources",
    "to_float": "datafree.data.tensors",
    "validation_split": "datafree.data.loading",
}

__all__ = ["DATA", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'datafree.data' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
