"""The batch-norm term, alone and with a running average: against published code, numpy, and finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datafree import losses
from datafree.losses import Statistics
from datafree.parallel import channel_statistics
from datafree.teacher import Teacher

PARITY = np.load(Path(__file__).with_name("parity.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


def published_net(tag: str) -> Teacher:
    """The network of the vectors: convolution (padding 1), batch norm, ReLU, twice. It takes images as they are."""
    strides = PARITY[f"{tag}.par_conv_stride"].tolist() if f"{tag}.par_conv_stride" in PARITY else [1, 1]
    layers: list[nn.Module] = []
    for i, stride in enumerate(strides):
        wide, deep = PARITY[f"{tag}.conv{i}.weight"].shape[:2]
        layers += [nn.Conv2d(deep, wide, 3, stride=stride, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
    network = nn.Sequential(*layers).double()
    places = {"conv0": "0", "bn0": "1", "conv1": "3", "bn1": "4"}
    state = {
        f"{place}.{name}": held(f"{tag}.{layer}.{name}")
        for layer, place in places.items()
        for name in ("weight", "bias", "running_mean", "running_var")
        if f"{tag}.{layer}.{name}" in PARITY
    }
    network.load_state_dict(state, strict=False)
    teacher = Teacher(network, [0.0] * 3, [1.0] * 3)
    teacher.classifier.double()
    return teacher


@pytest.mark.parametrize("suffix", ["", "_first_bn"])
def test_bn_term_equals_published_code(suffix: str) -> None:
    images = held("bn.in_images").requires_grad_()
    multiplier = float(PARITY["bn.par_first_bn_multiplier"]) if suffix else 1.0
    seen = published_net("bn").look(images, statistics=True).statistics
    total = losses.batch_norm_statistics(seen, multiplier)
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(total, held(f"bn.out_total{suffix}"), **CLOSE)
    assert images.grad is not None
    torch.testing.assert_close(images.grad[:1], held(f"bn.grad_images{suffix}"), **CLOSE)
    each = torch.stack([losses.batch_norm_statistics([layer]) for layer in seen])
    torch.testing.assert_close(each, held("bn.out_layer_loss"), **CLOSE)


def test_bn_term_with_a_running_average_equals_published_code() -> None:
    teacher, momentum = published_net("ema"), float(PARITY["ema.par_momentum"])
    average: list[tuple[Tensor, Tensor]] = []
    for call in range(3):
        images = held("ema.in_images")[call].requires_grad_()
        seen = teacher.look(images, statistics=True).statistics
        mixed = losses.mix_statistics(seen, average, momentum)
        total = losses.batch_norm_statistics(mixed)
        (gradient,) = torch.autograd.grad(total, images)
        torch.testing.assert_close(total, held("ema.out_total")[call], **CLOSE)
        torch.testing.assert_close(gradient[:1], held("ema.grad_images")[call], **CLOSE)
        each = torch.stack([losses.batch_norm_statistics([layer]) for layer in mixed])
        torch.testing.assert_close(each, held("ema.out_layer_loss")[call], **CLOSE)
        average = losses.update_average(average, seen, momentum)
        if call:
            for layer, (mean, var) in enumerate(average):
                torch.testing.assert_close(mean, held(f"ema.out_ema_mean{layer}_after{call}"), **CLOSE)
                torch.testing.assert_close(var, held(f"ema.out_ema_var{layer}_after{call}"), **CLOSE)


def layer(channels: int = 3, shift: float = 0.0) -> Statistics:
    mean, var = torch.randn(channels, dtype=torch.float64), torch.rand(channels, dtype=torch.float64) + 0.5
    return Statistics(mean, var, mean + shift, var.clone())


def test_bn_term_is_zero_iff_all_statistics_agree() -> None:
    assert losses.batch_norm_statistics([layer(), layer()]).item() == 0.0
    # Each of 4 channels is off by 0.5: the norm is sqrt(4 * 0.25) = 1.
    assert losses.batch_norm_statistics([layer(), layer(4, 0.5)]).item() == pytest.approx(1.0, rel=1e-14)
    assert losses.batch_norm_statistics([layer(4, 0.5), layer()], 10.0).item() == pytest.approx(10.0, rel=1e-14)


def test_bn_term_equals_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 4, 2))
    running_mean, running_var = np.array([0.1, 0.2, -0.3]), np.array([1.0, 0.5, 2.0])
    wanted = np.sqrt(((x.var((0, 2, 3)) - running_var) ** 2).sum())
    wanted += np.sqrt(((x.mean((0, 2, 3)) - running_mean) ** 2).sum())
    remembered = (torch.from_numpy(running_mean), torch.from_numpy(running_var))
    value = losses.batch_norm_statistics([Statistics(*channel_statistics(torch.from_numpy(x)), *remembered)])
    assert value.item() == pytest.approx(wanted, rel=1e-13)


def test_gradients_of_the_bn_term_by_finite_differences() -> None:
    remembered = (torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    average = [(torch.full((3,), 0.2, dtype=torch.float64), torch.full((3,), 0.7, dtype=torch.float64))]

    def term(x: Tensor) -> Tensor:
        seen = [Statistics(*channel_statistics(x), *remembered)]
        return losses.batch_norm_statistics(losses.mix_statistics(seen, average, 0.6), 10.0)

    assert torch.autograd.gradcheck(term, torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True))


def test_gradient_of_agreeing_statistics_is_finite() -> None:
    mean = torch.zeros(3, requires_grad=True)
    losses.batch_norm_statistics([Statistics(mean, torch.ones(3), torch.zeros(3), torch.ones(3))]).backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None
    assert not mean.grad.any()


def test_an_empty_average_or_no_momentum_changes_nothing() -> None:
    seen = [layer(), layer()]
    assert losses.mix_statistics(seen, [], 0.9) == seen
    assert losses.mix_statistics(seen, [(torch.zeros(3), torch.zeros(3))] * 2, 0.0) == seen


def test_average_by_hand() -> None:
    batch = Statistics(torch.tensor([4.0]), torch.tensor([2.0]), torch.zeros(1), torch.ones(1))
    average = [(torch.tensor([0.0]), torch.tensor([1.0]))]
    (mixed,) = losses.mix_statistics([batch], average, 0.75)
    assert (mixed.mean.item(), mixed.var.item()) == (1.0, 1.25)  # 0.25 * 4 + 0.75 * 0; 0.25 * 2 + 0.75 * 1
    ((mean, var),) = losses.update_average(average, [batch], 0.75)
    assert (mean.item(), var.item()) == (1.0, 1.25)


def test_the_average_carries_no_gradient() -> None:
    mean = torch.zeros(2, requires_grad=True)
    seen = [Statistics(mean, torch.ones(2), torch.zeros(2), torch.ones(2))]
    first = losses.update_average([], seen, 0.9)
    later = losses.update_average(first, seen, 0.9)
    assert not any(t.requires_grad for pair in (*first, *later) for t in pair)


def test_half_types_are_raised() -> None:
    x = torch.randn(64, 3, 8, 8)
    mean, var = channel_statistics(x.bfloat16())
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(mean, x.bfloat16().float().mean((0, 2, 3)))
    torch.testing.assert_close(var, x.bfloat16().float().var((0, 2, 3), correction=0))
