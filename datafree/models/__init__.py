"""The zoo of classifiers by name, and the loading of anybody's checkpoint.

Importing this package does not import torch, so that the command line can list the names at once. What needs torch
(``build_model``, ``load_model``, ``Loaded``) is loaded when it is first asked for.

Every builder is a function ``build(*, shape, classes)``: ``shape`` is (C, H, W) in pixels, the network takes normalised
images (N, C, H, W) and returns logits (N, classes).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datafree.models.build import build_model as build_model
    from datafree.models.load import Loaded as Loaded
    from datafree.models.load import load_model as load_model

__all__ = [
    "ALIASES",
    "FAMILIES",
    "MODELS",
    "Loaded",
    "build_model",
    "load_model",
    "model_names",
    "next_smaller",
    "smaller_of_family",
]

# name -> where its builder stands
MODELS: dict[str, str] = {
    "lenet5": "datafree.models.lenet:lenet5",
    "lenet5_half": "datafree.models.lenet:lenet5_half",
    "resnet8": "datafree.models.resnet:resnet8",
    "resnet20": "datafree.models.resnet:resnet20",
    "resnet32": "datafree.models.resnet:resnet32",
    "resnet56": "datafree.models.resnet:resnet56",
    "resnet18": "datafree.models.resnet:resnet18",
    "resnet34": "datafree.models.resnet:resnet34",
    "wrn10_1": "datafree.models.wrn:wrn10_1",
    "wrn10_2": "datafree.models.wrn:wrn10_2",
    "wrn16_1": "datafree.models.wrn:wrn16_1",
    "wrn16_2": "datafree.models.wrn:wrn16_2",
    "wrn28_1": "datafree.models.wrn:wrn28_1",
    "wrn28_2": "datafree.models.wrn:wrn28_2",
    "wrn40_1": "datafree.models.wrn:wrn40_1",
    "wrn40_2": "datafree.models.wrn:wrn40_2",
    "vgg11": "datafree.models.vgg:vgg11",
    "convnet3": "datafree.models.convnet:convnet3",
    "convnet4": "datafree.models.convnet:convnet4",
    "convnet5": "datafree.models.convnet:convnet5",
    "mlp": "datafree.models.mlp:mlp",
    "mobilenetv2": "datafree.models.mobilenet:mobilenetv2",
}

ALIASES: dict[str, str] = {"convnet": "convnet3", "lenet": "lenet5"}  # the field's short names

# Each from small to large; the first family that holds a smaller member counts.
FAMILIES: tuple[tuple[str, ...], ...] = (
    ("lenet5_half", "lenet5"),
    ("resnet8", "resnet20", "resnet32", "resnet56"),
    ("resnet18", "resnet34"),
    ("wrn10_1", "wrn16_1", "wrn28_1", "wrn40_1"),
    ("wrn10_1", "wrn10_2", "wrn16_2", "wrn28_2", "wrn40_2"),
    ("convnet3", "convnet4", "convnet5"),
    (
        "torchvision:resnet18",
        "torchvision:resnet34",
        "torchvision:resnet50",
        "torchvision:resnet101",
        "torchvision:resnet152",
    ),
    ("torchvision:vgg11_bn", "torchvision:vgg13_bn", "torchvision:vgg16_bn", "torchvision:vgg19_bn"),
    ("torchvision:vgg11", "torchvision:vgg13", "torchvision:vgg16", "torchvision:vgg19"),
    ("torchvision:densenet121", "torchvision:densenet169", "torchvision:densenet201"),
    ("torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large"),
    (
        "torchvision:convnext_tiny",
        "torchvision:convnext_small",
        "torchvision:convnext_base",
        "torchvision:convnext_large",
    ),
)

_LAZY = {
    "Loaded": "datafree.models.load",
    "build_model": "datafree.models.build",
    "load_model": "datafree.models.load",
}


def model_names() -> tuple[str, ...]:
    """All names of the zoo, in the order of ``MODELS``, then the aliases."""
    return (*MODELS, *ALIASES)


def smaller_of_family(arch: str) -> str | None:
    """The name of the next smaller network of ``arch``'s family; None where it has none or is not known."""
    name = ALIASES.get(arch, arch)
    return next((family[family.index(name) - 1] for family in FAMILIES if name in family[1:]), None)


def next_smaller(arch: str, shape: tuple[int, int, int], *, classes: int = 10, than: int | None = None) -> str:
    """The name of the next smaller network of ``arch``'s family: the default student.

    Where the family has none (or is not known, as for a user's own file): ``lenet5_half`` for grey images of at most
    32 x 32 pixels, else ``resnet8``; of the two the other one where this has no fewer parameters than the teacher.
    ``than``: the teacher's parameters; None: those of the zoo's network ``arch``, and of another one they do not count.

    Raises ValueError where neither is smaller.
    """
    if (found := smaller_of_family(arch)) is not None:
        return found
    name = ALIASES.get(arch, arch)
    channels, height, width = shape
    small = ("lenet5_half", "resnet8") if channels == 1 and max(height, width) <= 32 else ("resnet8", "lenet5_half")
    if than is None and name not in MODELS:
        return small[0]
    than = _parameters(name, shape, classes) if than is None else than
    for each in small:
        if _parameters(each, shape, classes) < than:
            return each
    raise ValueError(
        f"no small network of ours has fewer parameters than the teacher ({than:,}): name a student with --student"
    )


def _parameters(name: str, shape: tuple[int, int, int], classes: int) -> int:
    from datafree.models.fit import build_empty

    return sum(each.numel() for each in build_empty(name, shape=shape, classes=classes).parameters())


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
