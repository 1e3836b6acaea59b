"""The generators: the fast upsampling against the usual one, shapes, ranges, what is saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.generators import GENERATORS
from datafree.generators.convolutional import Standardised, UpsampledConvolution

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 24, 40), (1, 8, 8), (3, 64, 64), (3, 65, 33)]


def usual(x: Tensor, weight: Tensor) -> Tensor:
    """Nearest-neighbour upsampling, then the convolution."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (8, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampled_convolution_equals_upsampling_and_convolution(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    fast = UpsampledConvolution(5, 4).double()
    x = torch.randn(3, 5, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    upstream = torch.randn(3, 4, 2 * size[0], 2 * size[1], dtype=torch.float64)
    ours, wanted = fast(x), usual(x, fast.weight)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(ours, (x, fast.weight), upstream)
    for mine, theirs in zip(gradients, torch.autograd.grad(wanted, (x, fast.weight), upstream), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_upsampled_convolution_without_gradient_is_the_same() -> None:
    layer, x = UpsampledConvolution(6, 4), torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), usual(x, layer.weight), rtol=1e-5, atol=1e-6)


def test_upsampled_convolution_starts_as_torchs_convolution() -> None:
    torch.manual_seed(3)
    ours = UpsampledConvolution(8, 16).weight
    torch.manual_seed(3)
    assert torch.equal(ours, torch.nn.Conv2d(8, 16, 3, bias=False).weight)


@pytest.mark.parametrize("name", list(GENERATORS))
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_is_made_with_pixels_from_zero_to_one(name: str, shape: tuple[int, int, int]) -> None:
    generator = GENERATORS[name](16, shape, 4)
    images = generator(10 * torch.randn(3, 16))
    assert images.shape == (3, *shape)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0


@pytest.mark.parametrize("name", list(GENERATORS))
def test_latents_and_weights_get_gradients(name: str) -> None:
    generator = GENERATORS[name](8, (3, 16, 16), 4)
    z = torch.randn(4, 8, requires_grad=True)
    generator(z).square().sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("name", ["small", "large"])
def test_what_is_saved_are_three_by_three_kernels(name: str) -> None:
    state = GENERATORS[name](8, (3, 32, 32), 4).state_dict()
    kernels = [t for t in state.values() if t.dim() == 4]
    assert len(kernels) == 3
    assert all(t.shape[2:] == (3, 3) for t in kernels)


def test_channels_of_the_maps() -> None:
    """Widths as the docstrings give them: small 2w-2w-w, large 4w-2w-w, dcgan 8w-4w-2w-2w-w."""
    wanted = {"small": [8, 8, 4], "large": [16, 8, 4], "dcgan": [32, 16, 8, 8, 4]}
    for name, widths in wanted.items():
        norms = [m for m in GENERATORS[name](8, (3, 64, 64), 4).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert [norm.num_features for norm in norms] == widths


@pytest.mark.parametrize("name", list(GENERATORS))
def test_a_generator_equals_its_plain_rewriting(name: str) -> None:
    """The whole network from its state dict with plain operations in float64, batch norm in training mode."""
    generator = GENERATORS[name](6, (3, 13, 10), 4).double().train()
    z = torch.randn(5, 6, dtype=torch.float64)
    state = generator.state_dict()

    def norm(x: Tensor, layer: str) -> Tensor:
        return F.batch_norm(x, None, None, state[f"{layer}.weight"], state[f"{layer}.bias"], training=True)

    blocks = sorted({key.split(".")[1] for key in state if key.startswith("blocks.")})
    rows, columns = (-(-side // 2 ** len(blocks)) for side in (13, 10))
    x = F.linear(z, state["linear.weight"], state["linear.bias"]).view(5, -1, rows, columns)
    x = norm(x, "norm")
    for block in blocks:
        weight = state[f"blocks.{block}.weight"]
        x = usual(x, weight) if weight.shape[-1] == 3 else F.conv_transpose2d(x, weight, stride=2, padding=1)
        x = F.leaky_relu(norm(x, f"norms.{block}"), 0.2)
    wanted = torch.sigmoid(F.conv2d(x, state["to_image.weight"], state["to_image.bias"], padding=1))
    torch.testing.assert_close(generator(z), wanted[..., :13, :10], rtol=0, atol=1e-12)


def test_standardised_output_is_the_release_and_the_normalisation_undone() -> None:
    """From the definition in numpy: tanh, each channel to mean 0 and variance 1 (biased), times std, plus mean, cut."""
    mean, std = (0.1, 0.6), (0.3, 0.2)
    x = torch.randn(7, 2, 5, 4, dtype=torch.float64)
    tanh = np.tanh(x.numpy())
    axes = (0, 2, 3)
    whitened = (tanh - tanh.mean(axes, keepdims=True)) / np.sqrt(tanh.var(axes, keepdims=True) + 1e-5)
    wanted = whitened * np.array(std).reshape(1, 2, 1, 1) + np.array(mean).reshape(1, 2, 1, 1)
    layer = Standardised(mean, std).double()
    # The constants are kept in single precision.
    np.testing.assert_allclose(layer(x).numpy(), wanted.clip(0, 1), rtol=0, atol=1e-7)
    assert (wanted < 0).any(), "some of it is cut"


@pytest.mark.parametrize("name", list(GENERATORS))
def test_standardised_generators_make_images_of_the_given_spread(name: str) -> None:
    generator = GENERATORS[name](8, (3, 20, 17), 4, ((0.5, 0.4, 0.5), (0.05, 0.1, 0.08)))
    images = generator(torch.randn(32, 8))
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor([0.5, 0.4, 0.5]), rtol=0, atol=0.01)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.tensor([0.05, 0.1, 0.08]), rtol=0.05, atol=0)
    images.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_bf16_autocast_stays_near_float32() -> None:
    generator, z = GENERATORS["small"](16, (3, 32, 32), 8), torch.randn(4, 16)
    plain = generator(z)
    with torch.autocast("cpu", torch.bfloat16):
        half = generator(z)
    # bf16 has 8 bits: a relative error of 2^-9 an operation, a few per cent of the sigmoid's slope after four layers.
    assert (half.float() - plain).abs().mean() < 0.02
