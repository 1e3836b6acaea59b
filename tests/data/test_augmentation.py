"""Siamese augmentation against published code, by hand, and by its invariants.

`augmentation.npz` has inputs, draws, results and gradients in float64, computed with the authors' published code: for
augmentation VICO-UoE/DatasetCondensation 53f63a6, for multi-formation snu-mllab/Efficient-Dataset-Condensation ceac95a,
for whitening GeorgeCazenavette/mtt-distillation 50dccea. Of gradients, batches and channels a part is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree import parallel
from datafree.data.augmentation import FAMILIES, Augmentation, Draws, apply, draw, parse_augmentation

PARITY = np.load(Path(__file__).with_name("augmentation.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
RELEASE = Augmentation()
OPERATIONS = ("brightness", "saturation", "contrast", "crop", "cutout", "flip", "scale", "rotate")
# The released code's names for the eleven numbers, in this package's order.
NUMBERS = (
    "brightness_u",
    "saturation_u",
    "contrast_u",
    "crop_shift_row",
    "crop_shift_col",
    "cutout_offset_row",
    "cutout_offset_col",
    "flip_u",
    "scale_u_x",
    "scale_u_y",
    "rotate_u",
)


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


def recorded(prefix: str, size: int, count: int = 1) -> Tensor:
    """The recorded draws (count, 11) as numbers in [0, 1): whole numbers k of n become (k + 1/2) / n."""
    most, block = int(size * 0.125 + 0.5), int(size * 0.5 + 0.5)
    values = torch.full((count, len(NUMBERS)), 0.5, dtype=torch.float64)
    for column, name in enumerate(NUMBERS):
        if f"{prefix}_{name}" in PARITY:
            drawn = held(f"{prefix}_{name}").double()
            if "shift" in name:
                drawn = (drawn + most + 0.5) / (2 * most + 1)
            if "offset" in name:
                drawn = (drawn + 0.5) / (size + 1 - block % 2)
            values[:, column] = drawn
    return values


def alone(operation: str, values: Tensor) -> tuple[Draws, Augmentation]:
    """One operation; a part of "color" by making the other two do nothing (u = 1/2, and factors that make it 1)."""
    if operation not in OPERATIONS[:3]:
        return Draws((operation,), values), RELEASE
    only = torch.full_like(values, 0.5)
    only[:, OPERATIONS.index(operation)] = values[:, OPERATIONS.index(operation)]
    return Draws(("color",), only), RELEASE


@pytest.mark.parametrize("operation", OPERATIONS)
def test_shared_draws_equal_published_code(operation: str) -> None:
    images = held("siamese.in_syn").requires_grad_()
    draws, augmentation = alone(operation, recorded("siamese.draw", 10))
    result = apply(images, draws, augmentation)
    torch.testing.assert_close(result, held(f"siamese.out_syn_{operation}"), **CLOSE)
    (gradient,) = torch.autograd.grad((result * held("siamese.in_cotangent_syn")).sum(), images)
    torch.testing.assert_close(gradient[:1], held(f"siamese.grad_syn_{operation}"), **CLOSE)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_draws_for_each_image_equal_published_code(operation: str) -> None:
    draws, augmentation = alone(operation, recorded("each.draw", 10, count=2))
    result = apply(held("each.in_images"), draws, augmentation)
    torch.testing.assert_close(result, held(f"each.out_{operation}"), **CLOSE)


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("images", ["syn", "gray"])
def test_the_strategy_equals_published_code(case: int, images: str) -> None:
    family = str(PARITY["strategy.par_family_order"][case])
    draws = Draws((family,), recorded(f"strategy.draw{case}", 8))
    result = apply(held(f"strategy.in_{images}"), draws, parse_augmentation(str(PARITY["strategy.par_strategy"])))
    torch.testing.assert_close(result, held(f"strategy.out_{images}{case}"), **CLOSE)


def one(operation: str, **numbers: float) -> Draws:
    values = torch.full((1, len(NUMBERS)), 0.5, dtype=torch.float64)
    for name, number in numbers.items():
        values[0, NUMBERS.index(name)] = number
    return Draws((operation,), values)


def test_images_that_are_not_square_by_hand() -> None:
    images = torch.arange(1.0, 1 + 16 * 8).reshape(1, 1, 16, 8).double()
    # The largest shifts are 2 of 16 rows and 1 of 8 columns; the smallest numbers shift the image down and right.
    shifted = apply(images, one("crop", crop_shift_row=0.0, crop_shift_col=0.0), RELEASE)
    assert torch.equal(shifted[..., 2:, 1:], images[..., :-2, :-1])
    assert not shifted[..., :2, :].any()
    assert not shifted[..., :1].any()
    # Blocks of 8 rows and 4 columns, around places 0..16 and 0..8: the first is centred on the corner.
    cut = apply(images, one("cutout", cutout_offset_row=0.0, cutout_offset_col=0.999), RELEASE)
    assert torch.equal(cut == 0, F.pad(torch.ones(1, 1, 4, 2), (6, 0, 0, 12)) == 1)
    # Half the height is read, the whole width: rows 4 to 11, each between two.
    wide = Augmentation(ratio_scale=2.0)
    scaled = apply(images, one("scale", scale_u_y=0.0, scale_u_x=1 / 3), wide)
    torch.testing.assert_close(scaled[0, 0, :, 0], images[0, 0, 0, 0] + 8 * (torch.arange(16).double() / 2 + 3.75))


def test_a_quarter_turn() -> None:
    images = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    turned = apply(images, one("rotate", rotate_u=1.0), Augmentation(ratio_rotate=90.0))
    # The pixel at (x, y) is read from (-y, x): row y, column x from row x, column -y.
    torch.testing.assert_close(turned, images.flip(3).transpose(2, 3), **CLOSE)


def test_warps_are_those_of_kornia() -> None:
    """An implementation by others: rotation by degrees against the clock, and enlargement, about the middle."""
    from kornia.geometry import transform

    close: dict[str, Any] = {"rtol": 0, "atol": 1e-6}  # kornia before 0.9 takes an angle's pi in float32
    images = torch.rand(3, 2, 12, 12, dtype=torch.float64)
    values = torch.rand(3, len(NUMBERS), dtype=torch.float64)
    turned = apply(images, Draws(("rotate",), values), RELEASE)
    degrees = (values[:, NUMBERS.index("rotate_u")] - 0.5) * 2 * RELEASE.ratio_rotate
    torch.testing.assert_close(turned, transform.rotate(images, degrees), **close)
    scaled = apply(images, Draws(("scale",), values), RELEASE)
    least = 1 / RELEASE.ratio_scale
    read = values[:, [NUMBERS.index("scale_u_x"), NUMBERS.index("scale_u_y")]] * (RELEASE.ratio_scale - least) + least
    torch.testing.assert_close(scaled, transform.scale(images, 1 / read), **close)


def test_middle_numbers_do_nothing() -> None:
    images = torch.rand(3, 3, 9, 9, dtype=torch.float64)
    draws = Draws(("color", "crop", "flip", "rotate"), torch.full((1, 11), 0.5, dtype=torch.float64))
    torch.testing.assert_close(apply(images, draws, RELEASE), images, **CLOSE)


def test_all_is_the_composition_in_the_given_order() -> None:
    images = torch.rand(4, 3, 12, 12, dtype=torch.float64)
    augmentation = parse_augmentation("scale_color_crop_flip_cutout_rotate", mode="all")
    draws = draw(augmentation, 4, torch.Generator().manual_seed(0))
    assert draws.families == augmentation.families
    wanted = images
    for family in augmentation.families:
        wanted = apply(wanted, draws._replace(families=(family,)), augmentation)
    torch.testing.assert_close(apply(images, draws, augmentation), wanted, **CLOSE)


def test_idcs_mode_draws_one_of_the_shifting_families() -> None:
    generator = torch.Generator().manual_seed(0)
    augmentation = parse_augmentation("color_crop_cutout_flip_scale_rotate", mode="idc")
    drawn = {draw(augmentation, None, generator).families for _ in range(60)}
    assert drawn == {("flip", "color", one, "cutout") for one in ("crop", "scale", "rotate")}
    few = parse_augmentation("color_cutout", mode="idc")
    assert draw(few, None, generator).families == ("color", "cutout")


def test_a_shared_draw_is_the_same_draw_for_each() -> None:
    images = torch.rand(4, 3, 11, 9, dtype=torch.float64)
    augmentation = parse_augmentation("color_crop_cutout_flip_scale_rotate", mode="all")
    draws = draw(augmentation, None, torch.Generator().manual_seed(3))
    assert len(draws.values) == 1
    repeated = draws._replace(values=draws.values.expand(4, -1))
    assert torch.equal(apply(images, draws, augmentation), apply(images, repeated, augmentation))
    # Real and synthetic batches of different sizes get one transformation.
    assert torch.equal(apply(images[:1], draws, augmentation), apply(images, draws, augmentation)[:1])


def test_parts_of_the_draws_are_the_parts_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(6, 3, 8, 8)
    augmentation = Augmentation(mode="all")
    draws = draw(augmentation, 6, torch.Generator().manual_seed(0))
    whole = apply(images, draws, augmentation)
    assert torch.equal(draws.shard().values, draws.values)  # one process: all of it
    shared = draw(augmentation, None, torch.Generator())
    assert shared.shard() is shared
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert torch.equal(apply(images[3:], draws.shard(), augmentation), whole[3:])  # the second of two processes
    assert shared.shard() is shared


def test_draws_are_uniform_and_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    a, b = (torch.Generator().manual_seed(7) for _ in range(2))
    first, second = draw(RELEASE, 5000, a), draw(parse_augmentation("none"), 5000, b)
    assert torch.equal(first.values, second.values)
    assert torch.equal(a.get_state(), b.get_state())
    assert torch.equal(torch.get_rng_state(), before)
    # The mean of 5,000 uniform numbers is off by 0.0041, one standard deviation.
    assert (first.values.mean(0) - 0.5).abs().max() < 5 * 0.0041
    drawn = [draw(RELEASE, None, a).families for _ in range(1200)]
    assert all(len(families) == 1 for families in drawn)
    counts = [drawn.count((family,)) for family in FAMILIES]
    assert max(abs(count - 200) for count in counts) < 5 * 13  # one standard deviation is 12.9


def test_strengths_are_those_that_are_given() -> None:
    images, values = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.full((1, 11), 0.75, dtype=torch.float64)
    values[:, 2] = 0.5  # contrast 1
    # A quarter of the interval above its middle.
    brighter = apply(images, Draws(("color",), values), Augmentation(brightness=0.4))
    torch.testing.assert_close(brighter, images + 0.1, **CLOSE)
    values[:, 0], values[:, 2] = 0.5, 0.75
    middle = images.mean((1, 2, 3), keepdim=True)
    stronger = apply(images, Draws(("color",), values), Augmentation(contrast=0.65))
    torch.testing.assert_close(stronger, middle + 1.4 * (images - middle), **CLOSE)
    for probability, mirrored in ((0.74, False), (0.76, True)):
        seen = apply(images, Draws(("flip",), values), Augmentation(prob_flip=probability))
        assert torch.equal(seen, images.flip(3) if mirrored else images)


def test_crops_and_cutouts_cover_their_range_evenly() -> None:
    values = torch.rand(4000, 11, generator=torch.Generator().manual_seed(0))
    images = torch.ones(4000, 1, 8, 8)
    shifted = apply(images, Draws(("crop",), values), RELEASE)
    # Shifts -1, 0, 1: the first row is lost in one third of the cases. One standard deviation is 0.0075.
    assert abs((shifted[:, 0, 0].sum(1) == 0).double().mean().item() - 1 / 3) < 5 * 0.0075
    cut = apply(images, Draws(("cutout",), values), RELEASE)
    heights = (cut == 0).any(3).sum((1, 2))
    # Places 0 to 8 of a block of 4: 2, 3, 4, 4, 4, 4, 4, 3, 2 rows.
    share = torch.bincount(heights, minlength=5).double() / 4000
    torch.testing.assert_close(share[2:], torch.tensor([2 / 9, 2 / 9, 5 / 9]).double(), rtol=0, atol=5 * 0.008)
    assert heights.min() == 2


def test_constants_are_in_the_units_of_standardised_images() -> None:
    images, mean, std = torch.rand(4, 3, 8, 8, dtype=torch.float64), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    augmentation = parse_augmentation("color_crop_cutout_flip_scale_rotate", mode="all", mean=mean, std=std)
    centre, spread = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    draws = draw(augmentation, 4, torch.Generator().manual_seed(1))
    wanted = apply((images - centre) / spread, draws, Augmentation(mode="all")) * spread + centre
    torch.testing.assert_close(apply(images, draws, augmentation), wanted, **CLOSE)
    cut = apply(images, draws._replace(families=("cutout",)), augmentation)
    assert torch.isclose(cut, centre.expand_as(cut)).all(1).any((1, 2)).all()  # the mean colour, not black


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [None, 2])
def test_gradients_by_finite_differences(family: str, count: int | None) -> None:
    images = torch.rand(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    augmentation = Augmentation(families=(family,), mean=(0.5, 0.4), std=(0.2, 0.3))
    draws = draw(augmentation, count, torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: apply(x, draws, augmentation), images)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_networks_gradient(family: str) -> None:
    # What gradient matching needs: the images' gradient through the gradient of a network's parameters.
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    augmentation = Augmentation(families=(family,))
    draws = draw(augmentation, None, torch.Generator().manual_seed(0))

    def matched(x: Tensor) -> Tensor:
        loss = F.conv2d(apply(x, draws, augmentation), weight).tanh().square().sum()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(matched, images)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_type_and_memory_format_stay(family: str, channels: int, dtype: torch.dtype) -> None:
    images = torch.rand(4, channels, 9, 8).to(dtype)
    before = images.clone()
    augmentation = Augmentation(families=(family,))
    draws = draw(augmentation, 4, torch.Generator().manual_seed(0))
    wanted = apply(images.double(), draws, augmentation)
    plain = apply(images, draws, augmentation)
    last = apply(images.to(memory_format=torch.channels_last), draws, augmentation)
    assert plain.dtype == last.dtype == dtype
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)
    part = images.repeat(1, 1, 2, 2)[:, :, :9, :8]  # neither of the two formats
    assert torch.equal(apply(part, draws, augmentation), plain)
    assert apply(part, draws, augmentation).is_contiguous()
    eps = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    torch.testing.assert_close(plain.double(), wanted, rtol=eps, atol=eps)
    assert torch.equal(images, before)


def test_parsing() -> None:
    digits = parse_augmentation("color_crop_cutout_flip_scale_rotate", flip=False)
    assert digits.families == ("color", "crop", "cutout", "scale", "rotate")
    assert digits.mode == "single"
    for text in ("", "none", "None"):
        images, augmentation = torch.rand(2, 1, 4, 4), parse_augmentation(text)
        assert torch.equal(apply(images, draw(augmentation, 2, torch.Generator()), augmentation), images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: parse_augmentation("color_blur_shear"),
            "unknown augmentation blur and shear: the names are color, crop",
        ),
        (lambda: parse_augmentation("flip_crop_flip"), "give each name once"),
        (lambda: parse_augmentation("flip", mode="some"), "give single, all, idc"),
        (lambda: Augmentation(ratio_scale=0.5), "give 1 or more"),
        (lambda: Augmentation(ratio_crop=-0.1), "between 0 and 1"),
        (lambda: Augmentation(mean=(0.5,)), "as many means"),
        (lambda: Augmentation(mean=(0.5,), std=(0.0,)), "greater than 0"),
        (lambda: draw(RELEASE, 0, torch.Generator()), "give 1 or more"),
        (
            lambda: apply(torch.rand(3, 1, 4, 4), draw(RELEASE, 2, torch.Generator()), RELEASE),
            "2 draws for 3 images: draw one for each",
        ),
        (
            lambda: apply(
                torch.rand(2, 3, 4, 4), Draws(("color",), torch.rand(2, 11)), Augmentation(mean=(0.5,), std=(0.2,))
            ),
            "1 means for 3 channels",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
