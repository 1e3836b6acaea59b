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


def test_without_a_linear_layer_features_are_the_last_convolutions_input_over_its_positions() -> None:
    """Laid flat, they would be as many as the image is large."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(2, 3, 6, 6)
    features = Teacher(network, [0] * 3, [1] * 3).look(images, features=True).features
    assert features is not None
    torch.testing.assert_close(features, network[1](network[0](images)).mean((2, 3)))


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


def plain(*norms: nn.Module) -> Teacher:
    """A convolution to four channels, the norms, a linear layer; norms with weights of their own."""
    for norm in norms:
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    return Teacher(nn.Sequential(nn.Conv2d(1, 4, 3), *norms, nn.Flatten(), nn.Linear(4 * 36, 3)), [0.5], [0.5])


@pytest.mark.parametrize(
    "norms",
    [
        (),
        (nn.BatchNorm2d(4, track_running_stats=False),),
        # Each channel of each image by itself: mean 0 and variance 1 whatever the image.
        (nn.GroupNorm(4, 4), nn.InstanceNorm2d(4)),
    ],
)
def test_networks_with_nothing_to_match_work(norms: tuple[nn.Module, ...]) -> None:
    teacher = plain(*norms)
    assert not teacher.has_statistics
    assert not teacher.stand_ins
    assert teacher.look(torch.rand(2, 1, 8, 8), statistics=True).statistics == []


def test_layers_that_normalise_over_channels_stand_in_for_batch_norm() -> None:
    """By hand: what a layer makes of its input before the affine part, over the batch and all positions."""
    teacher = plain(nn.GroupNorm(2, 4), nn.LayerNorm([4, 6, 6]), nn.InstanceNorm2d(4, track_running_stats=True))
    conv, group, layer, instance = teacher.network[:4]  # type: ignore[index]
    nn.init.normal_(instance.running_mean)
    nn.init.uniform_(instance.running_var, 0.5, 2)
    images = torch.rand(5, 1, 8, 8)
    assert not teacher.has_statistics
    seen = teacher.look(images, statistics=True).statistics

    def whitened(x: Tensor, dims: tuple[int, ...]) -> Tensor:
        return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()

    first = conv((images - 0.5) / 0.5)
    grouped = whitened(first.view(5, 2, 2 * 36), (2,)).view(5, 4, 6, 6)
    layered = whitened(group(first), (1, 2, 3))
    third = layer(group(first))
    running = [t.view(1, -1, 1, 1) for t in (instance.running_mean, instance.running_var)]
    remembered = (third - running[0]) / (running[1] + 1e-5).sqrt()
    for found, x in zip(seen, (grouped, layered, remembered), strict=True):
        torch.testing.assert_close(found.mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.var, x.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
        assert torch.equal(found.running_mean, torch.zeros(4))
        assert torch.equal(found.running_var, torch.ones(4))


def test_layers_do_not_stand_in_where_there_is_batch_norm() -> None:
    teacher = plain(nn.GroupNorm(2, 4), nn.BatchNorm2d(4))
    assert teacher.has_statistics
    assert not teacher.stand_ins
    assert len(teacher.look(torch.rand(2, 1, 8, 8), statistics=True).statistics) == 1


class MapNorm(nn.LayerNorm):
    """Normalises the channels of maps, as ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_layer_norm_of_maps_is_over_their_channels() -> None:
    images = torch.rand(5, 4, 4, 4)  # as wide as deep: which dimension is meant is told by the kind of layer
    network = nn.Sequential(MapNorm(4), nn.Flatten(), nn.Linear(64, 3))
    (found,) = Teacher(network, [0.0] * 4, [1.0] * 4).look(images, statistics=True).statistics
    rows = images.permute(0, 2, 3, 1).reshape(-1, 4)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.var, rows.var(0, correction=0), rtol=1e-4, atol=1e-5)


class Attention(nn.Module):
    """As timm writes it: one layer for queries, keys and values, and (N, L, D) in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(x).view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*parts)
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(n, length, width))
        return out


class Transformer(nn.Module):
    """A vision transformer of two blocks on patches of 2 x 2 pixels, with a class token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Conv2d(1, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(2)])
        self.blocks = nn.ModuleList(
            [
                Attention(8, 2) if kind == "timm" else nn.MultiheadAttention(8, 2, batch_first=kind == "batch first")
                for _ in range(2)
            ]
        )
        self.head = nn.Linear(8, 3)
        self.outputs: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        self.outputs = []
        for norm, block in zip(self.norms, self.blocks, strict=True):
            y = norm(x)
            if self.kind == "timm":
                y = block(y)
            elif self.kind == "batch first":
                y, _ = block(y, y, y, need_weights=False)
            else:
                y = y.transpose(0, 1)
                y = block(y, y, y)[0].transpose(0, 1)
            self.outputs.append(y)
            x = x + y
        logits: Tensor = self.head(x[:, 0])
        return logits


KINDS = ["batch first", "sequence first", "timm"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_patches_that_leave_the_attention_blocks(kind: str) -> None:
    network = Transformer(kind)
    teacher, images = Teacher(network, [0.5], [0.5]), torch.rand(3, 1, 6, 8)
    assert len(teacher.attentions) == 2
    # 3 x 4 patches and the class token are 13 tokens; the largest square is 9, so that four are left out.
    seen = teacher.look(images, tokens=True)
    assert [t.shape for t in seen.tokens] == [(3, 9, 8)] * 2
    seen = teacher.look(images[..., :6], tokens=True, statistics=True)
    for found, output in zip(seen.tokens, network.outputs, strict=True):
        assert torch.equal(found, output[:, 1:])
    assert [layer.mean.shape for layer in seen.statistics] == [(8,)] * 2
    torch.testing.assert_close(seen.logits, teacher(images[..., :6]))  # torch has a faster path where nobody watches
    assert hooks(network) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_to_the_images_through_tokens_and_stand_ins(kind: str) -> None:
    teacher, images = Teacher(Transformer(kind), [0.5], [0.5]), torch.rand(3, 1, 6, 6, requires_grad=True)
    view = teacher.look(images, statistics=True, tokens=True)
    for seen in (view.tokens[0], view.tokens[1], view.statistics[0].mean, view.statistics[1].var):
        (gradient,) = torch.autograd.grad(seen.square().sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_layer_norms_statistics_are_over_images_and_tokens() -> None:
    network = Transformer("timm")
    images = torch.rand(3, 1, 6, 6)
    found = Teacher(network, [0.5], [0.5]).look(images, statistics=True).statistics[0]
    x = network.embed((images - 0.5) / 0.5).flatten(2).transpose(1, 2)
    rows = torch.cat([network.token.expand(3, -1, -1), x], 1).reshape(-1, 8)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.var, rows.var(0, correction=0), rtol=1e-4, atol=1e-5)


def test_the_usual_encoder_layer_is_seen_without_gradients_too() -> None:
    """In evaluation mode torch takes a fast path past the layer's own parts, unless something watches them."""
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(nn.Conv2d(1, 8, 2, stride=2), nn.Flatten(2), nn.Unflatten(1, (8,)))
    whole = nn.Sequential(network, Turn(), encoder, nn.Flatten(), nn.Linear(72, 3))
    with torch.no_grad():
        view = Teacher(whole, [0.5], [0.5]).look(torch.rand(2, 1, 6, 6), statistics=True, tokens=True)
    assert [t.shape for t in view.tokens] == [(2, 9, 8)]
    assert len(view.statistics) == 2


class Turn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_a_network_without_attention_has_no_tokens(net: Net) -> None:
    teacher = Teacher(net, MEAN, STD)
    assert teacher.attentions == []
    assert teacher.look(torch.rand(2, 3, 8, 8), tokens=True).tokens == []


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
