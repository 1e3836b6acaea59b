"""Names of tensors and names in file names."""

from __future__ import annotations

import pytest

from datafree.models import ALIASES, MODELS
from datafree.models.fit import compare
from datafree.models.naming import best_naming, names_in

KNOWN = (
    *MODELS,
    *ALIASES,
    "torchvision:resnet34",
    "torchvision:vgg11",
    "torchvision:vgg11_bn",
    "torchvision:mobilenet_v2",
)


@pytest.mark.parametrize(
    ("stem", "names"),
    [
        ("resnet34", ["resnet34", "torchvision:resnet34"]),
        ("cifar10_resnet20_akamaster", ["resnet20"]),
        ("wrn16_1", ["wrn16_1"]),
        ("WRN-16-1", ["wrn16_1"]),
        ("cifar100_wrn-40-2_best", ["wrn40_2"]),
        ("wrn16_10", []),
        ("myresnet20", []),
        ("resnet-20", ["resnet20"]),
        ("lenet5_half", ["lenet5_half", "lenet5"]),
        ("mobilenet_v2", ["torchvision:mobilenet_v2", "mobilenetv2"]),
        ("mobilenetv2", ["mobilenetv2", "torchvision:mobilenet_v2"]),
        ("vgg11_bn-6002323d", ["torchvision:vgg11_bn", "vgg11", "torchvision:vgg11"]),
        ("convnet.best", ["convnet"]),
        ("model", []),
    ],
)
def test_names_in_a_stem(stem: str, names: list[str]) -> None:
    assert names_in(stem, KNOWN) == names


def test_torchvisions_names_become_ours() -> None:
    found = ["conv1.weight", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "fc.bias"]
    ours = ["conv1.weight", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.running_var", "linear.bias"]
    title, names = best_naming(found, ours)
    assert "torchvision" in title
    assert names == dict(zip(found, ours, strict=True))
    assert best_naming(ours, found)[1] == dict(zip(ours, found, strict=True))
    assert best_naming(ours, ours) == ("", {name: name for name in ours})


def test_wide_resnet_names() -> None:
    found = ["layer1.layer.0.bn1.weight", "layer3.layer.1.conv2.weight", "bn1.bias", "linear.weight"]
    ours = ["block1.layer.0.bn1.weight", "block3.layer.1.conv2.weight", "bn1.bias", "fc.weight"]
    assert best_naming(found, ours)[1] == dict(zip(found, ours, strict=True))


def test_compare() -> None:
    difference = compare({"a": (1,), "b": (2, 3), "d": (1,)}, {"a": (1,), "b": (3, 2), "c": (1,)})
    assert difference.missing == ("c",)
    assert difference.unexpected == ("d",)
    assert difference.misshapen == ("b (2, 3) instead of (3, 2)",)
    assert difference.share == 1 / 4
    assert compare({"a": (1,)}, {"a": (1,)}).share == 1
