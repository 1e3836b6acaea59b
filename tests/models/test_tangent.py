"""ConvNet's derivative along a direction, and the second derivatives that follow from it, against double backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.models.convnet import ConvNet
from datafree.models.tangent import tangent_logits


def make(shape: tuple[int, int, int]) -> tuple[ConvNet, Tensor, list[Tensor]]:
    network = ConvNet(shape=shape, classes=4, depth=2, width=6).double()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    images = torch.rand(3, *shape, dtype=torch.float64)
    return network, images, [torch.randn_like(p) for p in network.parameters()]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8), (2, 9, 11)])
def test_second_derivatives_equal_a_double_backward_pass(shape: tuple[int, int, int]) -> None:
    network, images, direction = make(shape)
    images.requires_grad_()
    parameters, labels = list(network.parameters()), torch.tensor([0, 3, 1])
    plain = network(images)
    gradient = torch.autograd.grad(F.cross_entropy(plain, labels), parameters, create_graph=True)
    slope = torch.stack([(g * v).sum() for g, v in zip(gradient, direction, strict=True)]).sum()
    wanted = torch.autograd.grad(slope, [*parameters, images])
    logits, change = tangent_logits(network, images, direction)
    (inner,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits, create_graph=True)
    mine = (inner * change).sum()
    torch.testing.assert_close(logits, plain, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(mine, slope, rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(mine, [*parameters, images])
    for theirs, ours in zip(wanted, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_change_equals_finite_differences() -> None:
    network, images, direction = make((1, 8, 8))
    _, change = tangent_logits(network, images, direction)
    ends, h = [], 1e-6
    for sign in (1, -2):  # from + h to - h
        for parameter, way in zip(network.parameters(), direction, strict=True):
            parameter.data += sign * h * way
        ends.append(network(images))
    torch.testing.assert_close(change, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-7)


def test_gradients_of_logits_and_change_pass_gradcheck() -> None:
    network, images, direction = make((1, 6, 6))
    assert torch.autograd.gradcheck(lambda x: tangent_logits(network, x, direction), images[:2].requires_grad_())
