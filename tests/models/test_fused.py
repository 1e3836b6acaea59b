"""The quick passes against the network itself, against published code, and against finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.models.convnet import ConvNet, convnet
from datafree.models.fused import fused_features, fused_logits, norm_relu_pool

# The authors' published code (VICO-UoE/DatasetCondensation, commit 53f63a6: networks.ConvNet), run in float64 on
# recorded images and weights, width 16; of the input's gradient every fourth column.
PARITY = np.load(Path(__file__).with_name("convnet.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
# Folded first block (even sizes, few channels) and not; the sizes after each convolution even, odd and oblong.
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 9, 11), (5, 8, 12)]


def network(shape: tuple[int, int, int], width: int = 8) -> ConvNet:
    made = convnet(shape=shape, classes=7, depth=2, width=width).double()
    assert isinstance(made, ConvNet)
    with torch.no_grad():
        for value in made.parameters():  # norms start at one and zero, where mistakes would not show
            value.add_(0.2 * torch.randn_like(value))
    return made


def published(tag: str) -> ConvNet:
    weights = {name.removeprefix(f"{tag}."): torch.from_numpy(PARITY[name]) for name in PARITY.files}
    shape = weights["in_images"].shape[1:]
    made = convnet(shape=(shape[0], shape[1], shape[2]), classes=10, depth=3, width=16).double()
    assert isinstance(made, ConvNet)
    places = {f"conv{i}": f"features.{4 * i}" for i in range(3)} | {f"gn{i}": f"features.{4 * i + 1}" for i in range(3)}
    places |= {"linear": "classifier"}
    state = {
        f"{places[layer]}.{leaf}": tensor
        for (layer, _, leaf), tensor in ((name.partition("."), tensor) for name, tensor in weights.items())
        if layer in places
    }
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("tag", ["grey", "colour"])
def test_convnet_equals_published_code(tag: str, fused: bool) -> None:
    made = published(tag)
    images = torch.from_numpy(PARITY[f"{tag}.in_images"]).requires_grad_()
    features = fused_features(made, images) if fused else made.features(images).flatten(1)
    logits = fused_logits(made, images) if fused else made(images)
    loss = F.cross_entropy(logits, torch.from_numpy(PARITY[f"{tag}.in_labels"]))
    (gradient,) = torch.autograd.grad(loss, images)
    torch.testing.assert_close(features, torch.from_numpy(PARITY[f"{tag}.out_features"]), **CLOSE)
    torch.testing.assert_close(logits, torch.from_numpy(PARITY[f"{tag}.out_logits"]), **CLOSE)
    assert loss.item() == pytest.approx(float(PARITY[f"{tag}.out_ce"]), rel=1e-9)
    torch.testing.assert_close(gradient[..., ::4], torch.from_numpy(PARITY[f"{tag}.grad_images"]), **CLOSE)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_values_and_gradients_are_the_networks(shape: tuple[int, int, int]) -> None:
    made = network(shape)
    images = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 6])
    slow, quick = made(images), fused_logits(made, images)
    torch.testing.assert_close(quick, slow, rtol=1e-11, atol=1e-12)
    leaves = [images, *made.parameters()]
    wanted = torch.autograd.grad(F.cross_entropy(slow, labels), leaves)
    given = torch.autograd.grad(F.cross_entropy(quick, labels), leaves)
    torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-12)


def test_gradients_of_parts_add_up_to_the_batchs() -> None:
    made = network((1, 8, 8))
    images, labels = torch.rand(7, 1, 8, 8, dtype=torch.float64), torch.randint(0, 7, (7,))
    parameters = list(made.parameters())
    whole = torch.autograd.grad(F.cross_entropy(made(images), labels, reduction="sum"), parameters)
    parts = [
        torch.autograd.grad(F.cross_entropy(fused_logits(made, x), y, reduction="sum"), parameters)
        for x, y in zip(torch.split(images, 3), torch.split(labels, 3), strict=True)
    ]
    total = [sum(gradients, torch.zeros(())) for gradients in zip(*parts, strict=True)]
    torch.testing.assert_close(total, list(whole), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_norm_relu_pool_by_finite_differences(memory: torch.memory_format) -> None:
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=memory).requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(norm_relu_pool, (maps, weight, bias))
    plain = F.avg_pool2d(F.relu(F.group_norm(maps, 3, weight, bias)), 2)
    torch.testing.assert_close(norm_relu_pool(maps, weight, bias), plain, rtol=1e-12, atol=1e-12)


def test_the_first_block_by_finite_differences() -> None:
    made = convnet(shape=(1, 4, 4), classes=2, depth=1, width=2).double()
    assert isinstance(made, ConvNet)
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: fused_features(made, x), (images, *made.features.parameters()))


def test_a_second_derivative_is_refused() -> None:
    made = network((1, 8, 8))
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(fused_logits(made, images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # type: ignore[no-untyped-call]


def test_bfloat16_is_as_near_as_autocast() -> None:
    made = network((1, 28, 28), width=32).float()
    images, labels = torch.rand(8, 1, 28, 28), torch.randint(0, 7, (8,))
    parameters = [p for name, p in made.named_parameters() if not is_bias_of_convolution(name)]

    def gradients(logits: Tensor) -> Tensor:
        found = torch.autograd.grad(F.cross_entropy(logits.float(), labels), parameters)
        return torch.cat([gradient.flatten() for gradient in found])

    exact = gradients(made(images))
    with torch.autocast("cpu", torch.bfloat16):
        usual = gradients(made(images))
    quick = gradients(fused_logits(made, images, dtype=torch.bfloat16))
    assert fused_logits(made, images, dtype=torch.bfloat16).dtype == torch.float32
    error = float((quick - exact).norm() / exact.norm())
    assert error < 1.5 * float((usual - exact).norm() / exact.norm())
    assert error < 0.05


def is_bias_of_convolution(name: str) -> bool:
    return name in {f"features.{4 * index}.bias" for index in range(3)}


def test_biases_of_convolutions_get_a_gradient_of_zero() -> None:
    made = network((1, 8, 8))
    fused_logits(made, torch.rand(2, 1, 8, 8, dtype=torch.float64)).sum().backward()  # type: ignore[no-untyped-call]
    for name, value in made.named_parameters():
        assert value.grad is not None
        assert bool((value.grad == 0).all()) == is_bias_of_convolution(name), name


def test_the_network_need_not_be_asked_for_gradients() -> None:
    made = network((3, 8, 8)).requires_grad_(False)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    (given,) = torch.autograd.grad(fused_features(made, images).sum(), images)
    (wanted,) = torch.autograd.grad(nn.Flatten()(made.features(images)).sum(), images)
    torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-12)
