"""Folded batch norms: the same function, nothing else changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from datafree.models import build_model
from datafree.models.folding import folded
from datafree.teacher import Teacher


def lived_in(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """With running statistics and affine parameters that are not the first ones."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, *shape) + 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return network.eval()


@pytest.mark.parametrize("arch", ["resnet8", "resnet20", "wrn16_1", "vgg11", "mobilenetv2", "lenet5"])
def test_the_same_logits(arch: str) -> None:
    torch.manual_seed(0)
    network = lived_in(build_model(arch, shape=(3, 32, 32), classes=7), (3, 32, 32))
    before, images = copy.deepcopy(network.state_dict()), torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(images), network(images), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize(("arch", "left"), [("resnet20", 0), ("wrn16_1", 7)])
def test_what_follows_a_convolution_is_folded(arch: str, left: int) -> None:
    assert norms(folded(lived_in(build_model(arch, shape=(3, 32, 32), classes=7), (3, 32, 32)))) == left


class Shared(nn.Module):
    """One convolution at two places, of which one has a batch norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.norm(self.conv(x)) + self.conv(x)).mean((2, 3))
        return out


class Branching(nn.Module):
    """Its forward pass depends on the values, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return (x if x.sum() > 0 else -x).mean((2, 3))


class Reading(nn.Module):
    """A pair that could be folded, but for a second use of the tensor ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.conv, self.norm, self.name = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), name

    def forward(self, x: Tensor) -> Tensor:
        module, _, tensor = self.name.partition(".")
        used: Tensor = getattr(getattr(self, module), tensor)
        out: Tensor = self.norm(self.conv(x)).mean((2, 3)) + used.sum()
        return out


@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "norm.weight", "norm.running_mean"])
def test_tensors_that_are_used_elsewhere_keep_their_values(name: str) -> None:
    network, images = lived_in(Reading(name), (3, 4, 4)), torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(images), network(images))


@pytest.mark.parametrize("hooked", ["conv", "norm", ""])
@pytest.mark.parametrize("before", [False, True])
def test_hooks_that_change_something_still_do(hooked: str, before: bool) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten())
    network, images = lived_in(inner, (3, 4, 4)), torch.rand(2, 3, 4, 4)
    module = {"conv": inner[0], "norm": inner[1], "": inner}[hooked]
    if before:
        module.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    else:
        module.register_forward_hook(lambda _, __, output: 2 * output)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(images), network(images))


@pytest.mark.parametrize("make", [Shared, Branching])
def test_what_cannot_be_folded_is_left_alone(make: type[nn.Module]) -> None:
    network = lived_in(make(), (3, 4, 4))
    assert folded(network) is network


def test_without_batch_norms_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten())
    copied: list[nn.Module] = []
    monkeypatch.setattr(copy, "deepcopy", copied.append)
    assert folded(network) is network
    assert not copied


def test_a_teachers_answer_is_its_logits() -> None:
    network = lived_in(build_model("resnet8", shape=(3, 16, 16), classes=4), (3, 16, 16))
    teacher, images = Teacher(network, (0.4,) * 3, (0.2,) * 3), torch.rand(3, 3, 16, 16, requires_grad=True)
    answer = teacher.answering()(images)
    assert not answer.requires_grad
    torch.testing.assert_close(answer, teacher(images).detach(), rtol=1e-4, atol=1e-4)


def test_the_network_stays_as_it_was_and_the_copy_takes_no_gradient() -> None:
    network = build_model("resnet8", shape=(3, 8, 8), classes=4).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quick = folded(network)
    assert quick is not network
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
