"""The teacher: frozen, in evaluation mode, and what a pass through it shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.teacher import Normalised, Teacher

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


class Block(nn.Module):
    """Nested, with its layers declared in another order than they run."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.second = nn.BatchNorm2d(channels)
        self.first = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y: Tensor = x + self.second(self.conv(x))
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 7)
        self.squeeze = nn.Linear(6, 5)
        self.stem = nn.Conv2d(3, 6, 3)
        self.block = nn.Sequential(nn.Identity(), Block(6))
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x)).mean((2, 3))
        self.inputs = [torch.relu(self.squeeze(x))]
        logits: Tensor = self.head(self.inputs[0])
        return logits


@pytest.fixture
def net() -> Net:
    network = Net()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules())


def test_logits_are_the_networks_on_normalised_images(net: Net) -> None:
    teacher, images = Teacher(net, MEAN, STD), torch.rand(4, 3, 8, 8)
    channels = [(images[:, c] - MEAN[c]) / STD[c] for c in range(3)]
    wanted = net(torch.stack(channels, 1))
    torch.testing.assert_close(teacher(images), wanted)
    torch.testing.assert_close(teacher.look(images, features=True, statistics=True).logits, wanted)


def test_it_is_frozen_and_in_evaluation_mode(net: Net) -> None:
    teacher = Teacher(net.train(), MEAN, STD)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    teacher.look(images, features=True, statistics=True).logits.sum().backward()  # type: ignore[no-untyped-call]
    assert not any(m.training for m in teacher.classifier.modules())
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_gradients_flow_to_the_images_through_all_that_is_seen(net: Net) -> None:
    teacher, images = Teacher(net, MEAN, STD), torch.rand(4, 3, 8, 8, requires_grad=True)
    view = teacher.look(images, features=True, statistics=True)
    assert view.features is not None
    for seen in (view.logits, view.features, view.statistics[0].mean, view.statistics[1].var):
        (gradient,) = torch.autograd.grad(seen.square().sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_features_are_the_input_of_the_last_linear_layer_that_ran(net: Net) -> None:
    teacher, images = Teacher(net, MEAN, STD), torch.rand(4, 3, 8, 8)
    features = teacher.look(images, features=True).features
    assert features is not None
    assert features.shape == (4, 5)
    torch.testing.assert_close(features, net.inputs[0])


def test_without_a_linear_layer_features_are_the_last_convolutions_input() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 6, 6)
    features = Teacher(network, [0] * 3, [1] * 3).look(images, features=True).features
    assert features is not None
    torch.testing.assert_close(features, network[1](network[0](images)).flatten(1))


def test_statistics_are_of_the_layers_inputs_in_the_order_of_the_pass(net: Net) -> None:
    teacher, images = Teacher(net, MEAN, STD), torch.rand(4, 3, 8, 8)
    block = net.block[1]
    assert isinstance(block, Block)
    seen = teacher.look(images, statistics=True).statistics
    first = net.stem((images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    second = block.conv(torch.relu(block.first(first)))
    for layer, norm, x in zip(seen, (block.first, block.second), (first, second), strict=True):
        torch.testing.assert_close(layer.mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(layer.var, x.var((0, 2, 3), correction=0))
        assert torch.equal(layer.running_mean, norm.running_mean)  # type: ignore[arg-type]
        assert torch.equal(layer.running_var, norm.running_var)  # type: ignore[arg-type]


def test_batch_norm_of_vectors_is_seen_too() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    images = torch.rand(5, 3, 2, 2)
    (layer,) = Teacher(network, [0] * 3, [1] * 3).look(images, statistics=True).statistics
    hidden = network[1](images.flatten(1))
    torch.testing.assert_close(layer.mean, hidden.mean(0))
    torch.testing.assert_close(layer.var, hidden.var(0, correction=0))


def test_nothing_is_shown_that_was_not_asked_for(net: Net) -> None:
    view = Teacher(net, MEAN, STD).look(torch.rand(2, 3, 8, 8))
    assert view.features is None
    assert view.statistics == []


def test_networks_without_batch_norm_work() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.BatchNorm2d(2, track_running_stats=False))
    teacher = Teacher(nn.Sequential(network, nn.Flatten(), nn.Linear(2 * 36, 3)), [0.5], [0.5])
    assert not teacher.has_statistics
    assert teacher.look(torch.rand(2, 1, 8, 8), statistics=True).statistics == []


def test_a_network_with_batch_norm_says_so(net: Net) -> None:
    assert Teacher(net, MEAN, STD).has_statistics


def test_hooks_live_for_one_pass(net: Net) -> None:
    teacher = Teacher(net, MEAN, STD)
    teacher.look(torch.rand(2, 3, 8, 8), features=True, statistics=True)
    assert hooks(net) == 0


def test_hooks_are_gone_after_a_pass_that_fails(net: Net) -> None:
    teacher = Teacher(net, MEAN, STD)
    net.head = nn.Linear(4, 7)  # no longer fits, so the pass fails after the batch norms ran
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        teacher.look(torch.rand(2, 3, 8, 8), features=True, statistics=True)
    assert hooks(net) == 0


def test_a_users_own_hooks_stay(net: Net) -> None:
    calls: list[int] = []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    Teacher(net, MEAN, STD).look(torch.rand(2, 3, 8, 8), features=True, statistics=True)
    assert calls == [1]
    assert hooks(net) == 1


def test_looking_twice_is_the_same(net: Net) -> None:
    teacher, images = Teacher(net, MEAN, STD), torch.rand(3, 3, 8, 8)
    one, two = (teacher.look(images, features=True, statistics=True) for _ in range(2))
    assert torch.equal(one.logits, two.logits)
    assert all(
        torch.equal(a, b)
        for x, y in zip(one.statistics, two.statistics, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_normalisation_is_no_part_of_the_saved_network(net: Net) -> None:
    student = Normalised(net, MEAN, STD)
    assert {f"network.{name}" for name in net.state_dict()} == set(student.state_dict())
