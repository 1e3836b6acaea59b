from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.evaluation import activation_bytes, latency_ms, multiply_adds, parameters


def plain20() -> nn.Module:
    """The convolutions of ResNet-20 (He et al. 2016, sec. 4.2) without shortcuts, whose option A costs nothing."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for out in (16, 32, 64):
        for index in range(6):
            stride = 2 if index == 0 and out != 16 else 1
            conv = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
            width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def test_resnet20() -> None:
    # Stem 3*16*9*32^2 = 442,368. Stage 1: 6 * 16*16*9*32^2 = 14,155,776. Stages 2 and 3 each: the first
    # 16*32*9*16^2 = 32*64*9*8^2 = 1,179,648, the other five 2,359,296. Linear 640. The sum is the literature's 41 M.
    assert multiply_adds(plain20(), (3, 32, 32)) == 40_551_040
    # 267,696 in the 3x3 convolutions, 1,376 in BN, 650 in the linear layer: the literature's 0.27 M.
    assert parameters(plain20()) == 269_722


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        # out 6x4x5; each value takes 3 input channels * 3*2 weights.
        (nn.Conv2d(3, 6, (3, 2)), (3, 6, 6), 6 * 4 * 5 * 3 * 6),
        # Groups: each value sees 4/2 channels.
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (4, 5, 7), 8 * 5 * 7 * 2 * 9),
        (nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6), (6, 8, 8), 6 * 4 * 4 * 9),
        # Dilation changes where the weights look, not how many there are.
        (nn.Conv2d(1, 1, 3, padding=2, dilation=2), (1, 8, 8), 8 * 8 * 9),
        # Transposed: each of the 4*5*5 inputs is spread by 6 channels * 4*4 weights; half of it with two groups.
        (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (4, 5, 5), 4 * 5 * 5 * 6 * 16),
        (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2), (4, 5, 5), 4 * 5 * 5 * 3 * 16),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)), (3, 2, 2), 60 + 10),
        (nn.ReLU(), (3, 2, 2), 0),
    ],
)
def test_multiply_adds_by_hand(network: nn.Module, shape: tuple[int, int, int], expected: int) -> None:
    assert multiply_adds(network, shape) == expected


class Attention(nn.Module):
    """Over the rows of an image as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x[:, 0], x[:, 0], x[:, 0], need_weights=False)[0]
        return out


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Flatten(1, 2), layer)


# 6 tokens of 8: four projections 6*8*8; for each of two heads, scores and their sums 6*6*4 each.
ATTENTION = 4 * 6 * 8 * 8 + 2 * 2 * 6 * 6 * 4


@pytest.mark.parametrize(("network", "expected"), [(Attention(), ATTENTION), (encoder(), ATTENTION + 2 * 6 * 8 * 16)])
def test_fused_attention_counts(network: nn.Module, expected: int) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    assert multiply_adds(network.eval(), (1, 6, 8)) == expected
    assert torch.backends.mha.get_fastpath_enabled() is fast


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


def test_functional_operations_count() -> None:
    assert multiply_adds(Functional(), (3, 4, 4)) == 5 * 16 * 27


def test_parameters_counts_frozen_ones_and_shared_ones_once() -> None:
    shared = nn.Linear(4, 4)
    shared.weight.requires_grad_(False)
    assert parameters(nn.Sequential(shared, shared)) == 20


def test_activation_bytes_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 8*16 values
        nn.BatchNorm2d(8),  # 8*16
        nn.ReLU(inplace=True),  # in place: none
        nn.MaxPool2d(2),  # 8*4
        nn.Flatten(),  # a view: none
        nn.Linear(32, 10),  # 10
    )
    values = 2 * 8 * 16 + 8 * 4 + 10
    assert activation_bytes(network, (3, 4, 4), 1) == 4 * values
    assert activation_bytes(network, (3, 4, 4), 6) == 6 * 4 * values
    assert activation_bytes(network.double(), (3, 4, 4), 1) == 8 * values


class Timed(nn.Module):
    """Takes so many ms of a clock that nothing else moves."""

    def __init__(self, *ms: float) -> None:
        super().__init__()
        self.left, self.now = list(ms), 0.0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert x.shape == (1, 3, 4, 4)
        self.now += self.left.pop(0) / 1000
        return x


def test_latency_is_the_median_of_passes_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Timed(50, 1, 9, 2, 7)
    monkeypatch.setattr("datafree.evaluation.cost.time.perf_counter", lambda: network.now)
    assert latency_ms(network, (3, 4, 4), passes=3) == pytest.approx(2)
    assert network.training
    network.left = [50, 300, 1]  # the second takes longer than the time for all
    assert latency_ms(network, (3, 4, 4)) == pytest.approx(300)
    network.left = [0.0] + [100.0] * 9  # after 100, 200 and 300 ms
    assert latency_ms(network, (3, 4, 4), seconds=0.25) == pytest.approx(100)
    assert len(network.left) == 6


@pytest.mark.parametrize("measure", ["multiply_adds", "activation_bytes", "latency_ms"])
@pytest.mark.parametrize("breaks", [False, True])
def test_the_network_is_left_as_it_was(measure: str, breaks: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Sequential(nn.Conv2d(4, 4, 1)))
    network[3].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()

    def run() -> None:
        shape = (5 if breaks else 3, 6, 6)
        if measure == "multiply_adds":
            multiply_adds(network, shape)
        elif measure == "latency_ms":
            latency_ms(network, shape)
        else:
            activation_bytes(network, shape, 2)

    if breaks:
        with pytest.raises(RuntimeError, match="channels"):
            run()
    else:
        run()
    assert [module.training for module in network.modules()] == [True, True, True, True, False, False]
    assert all(not module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
