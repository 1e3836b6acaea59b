"""Distances of gradients: against published code, by hand, and by finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import losses

PARITY = np.load(Path(__file__).with_name("condensation.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
METRICS = ["ours", "mse", "cos", "idc_mse", "idc_l1", "idc_l1_mean"]
SHAPES = [(3, 2, 2, 2), (3,), (2, 3), (2, 2, 2)]  # convolution, bias, linear, layer norm
PARAMETERS = [f"{layer}.{part}" for layer in ("conv0", "gn0", "conv1", "gn1", "linear") for part in ("weight", "bias")]


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


def gradients() -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES]


class Network:
    """The published ConvNet of two blocks with the vectors' weights, and the vectors' gradients of its real images."""

    def __init__(self, term: str) -> None:
        self.weights = {name: held(f"{term}.{name}").requires_grad_() for name in PARAMETERS}
        sizes = [w.numel() for w in self.weights.values()]
        # Flat in the order of PARAMETERS; a row a class, where there are several.
        flat = held(f"{term}.exp_real_gradient").reshape(-1, sum(sizes))
        shapes = [w.shape for w in self.weights.values()]
        self.real = [[g.view(s) for g, s in zip(torch.split(row, sizes), shapes, strict=True)] for row in flat]

    def gradient(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The mean cross-entropy's gradient for each parameter, differentiable in the images."""
        w, x = self.weights, images
        for block in "01":
            padding = 3 if block == "0" and x.shape[1] == 1 else 1
            x = F.conv2d(x, w[f"conv{block}.weight"], w[f"conv{block}.bias"], padding=padding)
            x = F.group_norm(x, x.shape[1], w[f"gn{block}.weight"], w[f"gn{block}.bias"])
            x = F.avg_pool2d(x.relu(), 2)
        logits = F.linear(x.flatten(1), w["linear.weight"], w["linear.bias"])
        return torch.autograd.grad(F.cross_entropy(logits, labels), list(w.values()), create_graph=True)


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
def test_dcs_distances_equal_published_code(metric: str) -> None:
    real = [held(f"gradients.in_real{i}") for i in range(7)]
    synthetic = [held(f"gradients.in_syn{i}").requires_grad_() for i in range(7)]
    distance = losses.gradient_distance(real, synthetic, metric)
    torch.testing.assert_close(distance, held(f"gradients.out_{metric}"), **CLOSE)
    if metric == "mse":  # its gradient is 2 (b - a)
        return
    found = torch.autograd.grad(distance, synthetic, materialize_grads=True)
    for i, gradient in enumerate(found):
        torch.testing.assert_close(gradient, held(f"gradients.grad_{metric}_syn{i}"), **CLOSE)


def test_dcs_distance_of_each_tensor_equals_published_code() -> None:
    for i, wanted in enumerate(held("gradients.out_ours_per_tensor")):
        pair = [held(f"gradients.in_real{i}")], [held(f"gradients.in_syn{i}")]
        if pair[0][0].ndim == 1:
            assert wanted == 0
        else:
            torch.testing.assert_close(losses.gradient_distance(*pair), wanted, **CLOSE)


def test_dcs_matching_loss_and_image_gradient_equal_published_code() -> None:
    """Through the network: twice differentiated, summed over the classes."""
    network, images = Network("dc"), held("dc.in_syn").requires_grad_()
    ipc = int(PARITY["dc.par_ipc"])
    found = [network.gradient(x, torch.full((ipc,), c)) for c, x in enumerate(images.view(-1, ipc, *images.shape[1:]))]
    for metric in ("ours", "mse", "cos"):
        terms = [losses.gradient_distance(a, b, metric) for a, b in zip(network.real, found, strict=True)]
        torch.testing.assert_close(torch.stack(terms).sum(), held(f"dc.out_loss_{metric}"), rtol=1e-8, atol=1e-10)
        if metric == "ours":
            (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), images, retain_graph=True)
            torch.testing.assert_close(gradient[:1], held("dc.grad_images_ours"), rtol=1e-8, atol=1e-10)


def test_idcs_matching_loss_and_image_gradient_equal_published_code() -> None:
    network, images = Network("idc"), held("idc.in_syn").requires_grad_()
    found, (real,) = network.gradient(images, held("idc.in_label_syn")), network.real
    for metric in ("idc_mse", "idc_l1", "idc_l1_mean"):
        wanted = held(f"idc.out_{metric.removeprefix('idc_')}")
        torch.testing.assert_close(losses.gradient_distance(real, found, metric), wanted, **CLOSE)
    torch.testing.assert_close(losses.gradient_distance(real, found, "mse"), held("idc.out_mse_all_params"), **CLOSE)
    cosine = losses.gradient_distance([g for g in real if g.ndim == 4], [g for g in found if g.ndim == 4], "ours")
    torch.testing.assert_close(cosine, held("idc.out_cos"), **CLOSE)
    (gradient,) = torch.autograd.grad(losses.gradient_distance(real, found, "idc_mse"), images)
    torch.testing.assert_close(gradient[:1], held("idc.grad_images_mse"), **CLOSE)


def test_by_hand() -> None:
    # A 1x1 convolution with rows (3, 4) and (1, 0), against (4, 3) and (0, 1); a bias 2 against 0.
    real = [torch.tensor([[3.0, 4.0], [1.0, 0.0]]).view(2, 2, 1, 1), torch.tensor([2.0])]
    synthetic = [torch.tensor([[4.0, 3.0], [0.0, 1.0]]).view(2, 2, 1, 1), torch.tensor([0.0])]
    wanted = {
        "ours": 1 - 24 / 25 + 1,  # the first row's cosine is 24 / 25, the second's 0
        "mse": 2 + 2 + 4,
        "cos": 1 - 24 / np.sqrt(30 * 26),
        "idc_mse": 4,
        "idc_l1": 4,
        "idc_l1_mean": 2,
    }
    for metric in METRICS:
        found = losses.gradient_distance(real, synthetic, metric)
        assert found.item() == pytest.approx(wanted[metric], rel=1e-6), metric


@pytest.mark.parametrize("metric", METRICS)
def test_a_gradient_is_at_distance_zero_from_itself(metric: str) -> None:
    same = gradients()
    assert losses.gradient_distance(same, same, metric).abs().item() < 1e-5  # the release's 1e-6 below each cosine


def test_dcs_distance_does_not_see_the_scale_of_a_row() -> None:
    real, synthetic = gradients(), gradients()
    scaled = [g * (torch.rand(len(g), dtype=g.dtype) + 0.5).view(-1, *[1] * (g.ndim - 1)) for g in synthetic]
    before, after = losses.gradient_distance(real, synthetic), losses.gradient_distance(real, scaled)
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_by_finite_differences(metric: str) -> None:
    real = [g.detach() for g in gradients()]
    assert torch.autograd.gradcheck(lambda *s: losses.gradient_distance(real, s, metric), gradients())


def test_a_filter_without_gradient_leaves_the_rest_finite() -> None:
    real, synthetic = gradients(), gradients()
    images = torch.ones(3, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    dead = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    through = [synthetic[0].detach() * (images * dead) ** 2, *synthetic[1:]]
    losses.gradient_distance(real, through).backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
def test_half_types_are_raised(metric: str) -> None:
    real, synthetic = ([g.detach().bfloat16() for g in gradients()] for _ in range(2))
    value = losses.gradient_distance(real, synthetic, metric)
    assert value.dtype == torch.float32
    assert value == losses.gradient_distance([g.float() for g in real], [g.float() for g in synthetic], metric)


def test_what_cannot_be_matched_is_refused() -> None:
    one, bias = [torch.ones(2, 2)], [torch.ones(2)]
    with pytest.raises(ValueError, match="unknown metric 'l2': take one of ours, mse"):
        losses.gradient_distance(one, one, "l2")
    with pytest.raises(ValueError, match="no parameters that idc_l1 matches: take mse"):
        losses.gradient_distance(one, one, "idc_l1")
    with pytest.raises(ValueError, match="no parameters that ours matches: take mse"):
        losses.gradient_distance(bias, bias)
