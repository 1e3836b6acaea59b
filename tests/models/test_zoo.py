"""The zoo: shapes, parameter counts against published ones, and the arithmetic against numpy."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from datafree.models import ALIASES, FAMILIES, MODELS, build_model, model_names, next_smaller, smaller_of_family
from datafree.models.convnet import convnet
from datafree.models.resnet import Block

SHAPES = ((1, 28, 28), (3, 32, 32), (3, 24, 40), (1, 8, 8))
TOO_SMALL = {("convnet4", (1, 8, 8))} | {("convnet5", shape) for shape in SHAPES if shape != (3, 32, 32)}


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_network_at_every_shape(name: str, shape: tuple[int, int, int]) -> None:
    if (name, shape) in TOO_SMALL:
        smallest = 2 ** int(name[-1])
        with pytest.raises(ValueError, match=f"at least {smallest}x{smallest} pixels"):
            build_model(name, shape=shape, classes=7)
        return
    network = build_model(name, shape=shape, classes=7)
    logits = network(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(value.grad is not None for value in network.parameters())


# Published counts (10 classes). CIFAR ResNets: akamaster's table (0.27M, 0.46M, 0.85M), which counts option A;
# ResNet-18 and 34 with a 3x3 stem: the 11,173,962 and 21,282,122 quoted with CIFAR releases; WRN: karanchahal's
# 77,850 and 175,066, the paper's 0.6M (40-1) and 2.2M (40-2); ConvNet-3-128: the condensation releases.
PUBLISHED = {
    ("resnet20", (3, 32, 32)): 269_722,
    ("resnet32", (3, 32, 32)): 464_154,
    ("resnet56", (3, 32, 32)): 853_018,
    ("resnet18", (3, 32, 32)): 11_173_962,
    ("resnet34", (3, 32, 32)): 21_282_122,
    ("wrn10_1", (3, 32, 32)): 77_850,
    ("wrn16_1", (3, 32, 32)): 175_066,
    ("wrn40_1", (3, 32, 32)): 563_930,
    ("wrn40_2", (3, 32, 32)): 2_243_546,
    ("convnet3", (1, 28, 28)): 317_706,
    ("convnet3", (3, 32, 32)): 320_010,
    ("lenet5", (1, 28, 28)): 61_706,
    ("lenet5", (1, 32, 32)): 61_706,
    # 3(25+1) + 8(75+1) + 60(200+1) + 42(60+1) + 10(42+1)
    ("lenet5_half", (1, 28, 28)): 78 + 608 + 12_060 + 2_562 + 430,
    # 128(784+1) + 128(128+1) + 10(128+1)
    ("mlp", (1, 28, 28)): 100_480 + 16_512 + 1_290,
    # Convolutions with bias and batch norm: sum over (in, out) of 9 in out + 3 out; linear 512 to 10.
    ("vgg11", (3, 32, 32)): sum(
        9 * i * o + 3 * o
        for i, o in [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    )
    + 5_130,
}


@pytest.mark.parametrize(("name", "shape"), PUBLISHED)
def test_parameter_counts(name: str, shape: tuple[int, int, int]) -> None:
    assert parameters(build_model(name, shape=shape, classes=10)) == PUBLISHED[name, shape]


@pytest.mark.parametrize(("depth", "width"), [(d, k) for d in (10, 16, 28, 40) for k in (1, 2)])
def test_wide_resnet_counts_follow_the_paper(depth: int, width: int) -> None:
    # Table 1 of the paper with n = (depth - 4) / 6 pre-activation blocks; batch norm has 2 parameters a channel.
    def block(i: int, o: int) -> int:
        return 2 * i + 9 * i * o + 2 * o + 9 * o * o + (i * o if i != o else 0)

    n, widths = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
    blocks = sum(block(i, o) + (n - 1) * block(o, o) for i, o in pairwise(widths))
    expected = 9 * 3 * 16 + blocks + 2 * widths[-1] + 10 * (widths[-1] + 1)
    assert parameters(build_model(f"wrn{depth}_{width}", shape=(3, 32, 32), classes=10)) == expected


def test_mobilenet_has_torchvisions_tensors_and_smaller_strides_on_small_images() -> None:
    from torchvision import models

    ours = build_model("mobilenetv2", shape=(3, 224, 224), classes=10).eval()
    theirs = models.mobilenet_v2(weights=None, num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)
        small = build_model("mobilenetv2", shape=(3, 32, 32), classes=10).eval()
        assert small.get_submodule("features")(images[:, :, :32, :32]).shape == (1, 1280, 4, 4)


def test_batch_norm_layers_of_the_cifar_resnets() -> None:
    # One for each convolution, none in a shortcut of option A: 19 for ResNet-20, 55 for ResNet-56.
    for name, layers in {"resnet20": 19, "resnet56": 55, "wrn16_1": 13}.items():
        network = build_model(name, shape=(3, 32, 32), classes=10)
        assert sum(isinstance(each, nn.BatchNorm2d) for each in network.modules()) == layers


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = Block(2, 4, stride=2, project=False).eval()
    nn.init.zeros_(block.bn2.weight)  # leaves relu(shortcut)
    images = torch.arange(2 * 3 * 5, dtype=torch.float32).reshape(1, 2, 3, 5)
    with torch.no_grad():
        out = block(images)[0]
    assert out[0].eq(0).all()
    assert out[3].eq(0).all()
    assert out[1].tolist() == [[0, 2, 4], [10, 12, 14]]
    assert out[2].tolist() == [[15, 17, 19], [25, 27, 29]]


def conv_numpy(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    padded = np.pad(maps, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.asarray(np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 24), (1, 8, 8)], ids=str)
def test_convnet_against_numpy(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = convnet(shape=shape, classes=4, depth=3, width=5).double()
    for value in network.parameters():
        nn.init.normal_(value)
    image = torch.randn(shape, dtype=torch.float64)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    maps = image.numpy()
    for index in range(3):
        padding = 3 if index == 0 and shape == (1, 28, 28) else 1
        maps = conv_numpy(maps, state[f"features.{4 * index}.weight"], state[f"features.{4 * index}.bias"], padding)
        mean, variance = maps.mean((1, 2), keepdims=True), maps.var((1, 2), keepdims=True)
        scale, shift = state[f"features.{4 * index + 1}.weight"], state[f"features.{4 * index + 1}.bias"]
        maps = (maps - mean) / np.sqrt(variance + 1e-5) * scale[:, None, None] + shift[:, None, None]
        maps = np.maximum(maps, 0)
        rows, columns = maps.shape[1] // 2, maps.shape[2] // 2
        maps = maps[:, : 2 * rows, : 2 * columns].reshape(-1, rows, 2, columns, 2).mean((2, 4))
    expected = state["classifier.weight"] @ maps.reshape(-1) + state["classifier.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(network(image[None])[0].numpy(), expected, rtol=1e-9)


def test_he_initialisation() -> None:
    torch.manual_seed(0)
    network = build_model("resnet18", shape=(3, 32, 32), classes=10)
    weight = network.get_parameter("layer4.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_next_smaller() -> None:
    rgb, grey = (3, 32, 32), (1, 28, 28)
    expected = {
        "resnet34": "resnet18",
        "resnet18": "resnet8",
        "resnet56": "resnet32",
        "resnet20": "resnet8",
        "resnet8": "lenet5_half",
        "wrn40_2": "wrn28_2",
        "wrn10_2": "wrn10_1",
        "wrn16_1": "wrn10_1",
        "wrn10_1": "resnet8",
        "vgg11": "resnet8",
        "lenet5": "lenet5_half",
        "convnet": "resnet8",
        "torchvision:resnet50": "torchvision:resnet34",
        "torchvision:resnet34": "torchvision:resnet18",
        "nets.py:make": "resnet8",
    }
    assert {name: next_smaller(name, rgb) for name in expected} == expected
    assert [smaller_of_family(name) for name in ("resnet34", "lenet", "resnet18")] == ["resnet18", "lenet5_half", None]
    assert next_smaller("nets.py:make", grey) == "lenet5_half"
    assert next_smaller("mlp", (1, 32, 32)) == "lenet5_half"
    assert next_smaller("mlp", (1, 64, 64)) == "resnet8"
    assert next_smaller("resnet20", grey) == "resnet8"


def size(name: str, shape: tuple[int, int, int]) -> int:
    return parameters(build_model(name, shape=shape, classes=10))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_the_default_student_is_always_smaller(shape: tuple[int, int, int]) -> None:
    for name in MODELS:
        if name == "convnet5" and shape[1] < 32:
            continue
        none = {28: ["lenet5_half"], 32: ["lenet5_half"], 64: ["resnet8"]}[shape[1]]
        if name in none:
            with pytest.raises(ValueError, match="name a student with --student"):
                next_smaller(name, shape)
        else:
            assert size(next_smaller(name, shape), shape) < size(name, shape)


def test_a_teacher_smaller_than_ours_asks_for_a_student() -> None:
    assert next_smaller("resnet8", (3, 32, 32)) == "lenet5_half"
    assert next_smaller("nets.py:make", (3, 32, 32), than=60_000) == "lenet5_half"
    assert next_smaller("nets.py:make", (3, 32, 32), than=80_000) == "resnet8"
    with pytest.raises(ValueError, match=r"fewer parameters than the teacher \(5,000\): name a student with --student"):
        next_smaller("nets.py:make", (1, 28, 28), than=5000)


def test_families_grow_and_names_are_known() -> None:
    assert set(ALIASES.values()) <= set(MODELS)
    assert model_names() == (*MODELS, *ALIASES)
    for family in FAMILIES:
        if ":" in family[0]:
            continue
        sizes = [parameters(build_model(name, shape=(3, 32, 32), classes=10)) for name in family]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == len(sizes)


def test_importing_the_names_does_not_import_torch() -> None:
    code = (
        "import sys, datafree.models as m; m.model_names(); m.next_smaller('resnet20', (3, 8, 8)); print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "torchvision"} & set(out)
