"""Differentiable siamese augmentation: real and synthetic images go through the same random transformation.

Source: Zhao & Bilen 2021, as the authors' release computes it, with the present meaning of torch's grids (pixel centres
at half pixels). What that release does and the paper does not say: a call draws one family and applies it alone, and
the images are standardised. For images in [0, 1] give `mean` and `std`: brightness is then in standard deviations and
what comes in from outside is the mean colour, as there. Without them brightness is up to half of the whole range, two
to five times as strong, and what comes in is black.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.data.tensors import Crops, crop_and_flip
from datafree.losses.precision import raised
from datafree.parallel import shard

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
MODES = ("single", "all", "idc")

# What is drawn for each image: one number in [0, 1) for each of these, whichever are used.
_BRIGHTNESS, _SATURATION, _CONTRAST, _CROP, _CUTOUT, _FLIP, _SCALE, _ROTATE = 0, 1, 2, (3, 4), (5, 6), 7, (8, 9), 10
_NUMBERS = 11


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The families of transformations and how strong they are; the defaults are those of the release.

    families: of `FAMILIES`; none leaves the images as they are.
    mode: "single" draws one family for each call; "all" applies all of them, in the order given; "idc" does as that
        method's release: flip, color, one drawn from crop, scale and rotate, cutout, those of them that are given.
    ratio_scale: r >= 1; height and width are scaled on their own, by factors between 1/r and r.
    ratio_rotate: the largest angle, in degrees.
    ratio_crop: the largest shift, as a part of the height (width).
    ratio_cutout: the height (width) of the block that is set to zero, as a part of the image's.
    brightness: width of the interval around 0 from which the number that is added to an image is drawn.
    saturation: largest factor of the differences from a pixel's mean over the channels (the smallest is 0).
    contrast: smallest factor of the differences from the image's mean (the largest is 1 more).
    prob_flip: probability of a mirror image.
    mean, std: one value a channel: the images are standardised with them before, and put back after.
    """

    families: tuple[str, ...] = FAMILIES
    mode: str = "single"
    ratio_scale: float = 1.2
    ratio_rotate: float = 15.0
    ratio_crop: float = 0.125
    ratio_cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    prob_flip: float = 0.5
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.families if name not in FAMILIES]
        if unknown:
            raise ValueError(f"unknown augmentation {' and '.join(unknown)}: the names are {', '.join(FAMILIES)}")
        if len(set(self.families)) < len(self.families):
            raise ValueError(f"augmentation {'_'.join(self.families)}: give each name once")
        if self.mode not in MODES:
            raise ValueError(f"augmentation mode {self.mode!r}: give {', '.join(MODES)}")
        if self.ratio_scale < 1:
            raise ValueError(f"scale ratio {self.ratio_scale:g}: give 1 or more")
        if not (0 <= self.ratio_crop <= 1 and 0 <= self.ratio_cutout <= 1 and 0 <= self.prob_flip <= 1):
            raise ValueError("the crop ratio, the cutout ratio and the probability of a flip lie between 0 and 1")
        if len(self.mean) != len(self.std) or (self.std and min(self.std) <= 0):
            raise ValueError("give as many means as standard deviations, and these greater than 0")


def parse_augmentation(
    text: str, *, mode: str = "single", flip: bool = True, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> Augmentation:
    """ "color_crop_cutout_flip_scale_rotate" as an augmentation with the release's constants.

    Args:
        text: names of `FAMILIES` with underscores between; "none" or "" for none of them.
        mode: "single", "all" or "idc".
        flip: whether a mirror image keeps its label (the domain knows); where it does not, flips are left out.
        mean, std: the domain's, for images in [0, 1].

    Raises ValueError for unknown or repeated names.
    """
    names = tuple(text.lower().split("_")) if text.lower() not in ("", "none") else ()
    kept = tuple(name for name in names if flip or name != "flip")
    return Augmentation(families=kept, mode=mode, mean=tuple(mean), std=tuple(std))


class Draws(NamedTuple):
    """One transformation for all images, or one an image.

    families: what is applied, in this order.
    values: (1, 11) for one shared transformation or (N, 11), uniform in [0, 1); they hold for images of any size.
    """

    families: tuple[str, ...]
    values: Tensor

    def shard(self) -> Draws:
        """The draws of this process's part of the global batch; a shared draw stays."""
        return self if len(self.values) == 1 else self._replace(values=shard(self.values))


def draw(augmentation: Augmentation, count: int | None, generator: torch.Generator) -> Draws:
    """Draws for `count` images, or with None one draw that real and synthetic batches share (siamese).

    In mode "single" all images get the same family, also where each has its own numbers. The generator moves on by the
    same amount whatever the families are. A generator on the CPU gives the same draws for images on any device, and
    waits for no GPU: which family was drawn has to be known here.
    """
    if count is not None and count < 1:
        raise ValueError(f"augmentation of {count} images: give 1 or more")
    device = generator.device
    chosen = torch.rand((), generator=generator, device=device).item()
    values = torch.rand(1 if count is None else count, _NUMBERS, generator=generator, device=device)
    return Draws(_chosen(augmentation, chosen), values)


def _chosen(augmentation: Augmentation, number: float) -> tuple[str, ...]:
    """The families to apply, in order; `number` in [0, 1) decides where one of several is drawn."""
    given = augmentation.families
    if augmentation.mode == "all":
        return given
    pool = given if augmentation.mode == "single" else [name for name in given if name in ("crop", "scale", "rotate")]
    one = tuple(pool[int(number * len(pool))] for _ in pool[:1])
    if augmentation.mode == "single":
        return one
    before, after = ([name for name in names if name in given] for names in (("flip", "color"), ("cutout",)))
    return (*before, *one, *after)


def apply(images: Tensor, draws: Draws, augmentation: Augmentation) -> Tensor:
    """The images (N, C, H, W), transformed; same size, type, device and memory format, differentiable once.

    What leaves [0, 1] stays there: nothing is clipped, so that no gradient is lost. Half types are computed in float32.

    Raises:
        ValueError: draws for another number of images, or means for another number of channels.
    """
    if len(draws.values) not in (1, len(images)):
        raise ValueError(f"{len(draws.values)} draws for {len(images)} images: draw one for each, or one for all")
    if not draws.families:
        return images
    # On a CPU, warps and means over channels are 2 to 4 times faster on planes than channels last, copies included.
    x = raised(images).contiguous()
    if augmentation.mean:
        if len(augmentation.mean) != images.shape[1]:
            raise ValueError(f"{len(augmentation.mean)} means for {images.shape[1]} channels: give one a channel")
        mean, std = (x.new_tensor(values)[:, None, None] for values in (augmentation.mean, augmentation.std))
        x = (x - mean) / std
    values = draws.values.to(x.device)
    for name in draws.families:
        x = _OPERATIONS[name](x, values, augmentation)
    if augmentation.mean:
        x = torch.addcmul(mean, x, std)
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return x.to(images.dtype, memory_format=torch.channels_last if last else torch.contiguous_format)


def _color(x: Tensor, values: Tensor, augmentation: Augmentation) -> Tensor:
    """Brightness, saturation and contrast, in this order, in one go: none of them depends on another's result.

    With the pixel's mean m over channels and the image's mean M, brightness makes x + b, m + b and M + b of x, m and M,
    saturation changes neither mean, and contrast k gives k (s (x - m) + m + b) + (1 - k) (M + b).
    """
    bright, saturate, contrast = values[:, :3].to(x.dtype).T[:, :, None, None, None]
    b = (bright - 0.5) * augmentation.brightness
    s = saturate * augmentation.saturation
    k = contrast + augmentation.contrast
    rest = (1 - k) * x.mean((1, 2, 3), keepdim=True) + b
    if x.shape[1] == 1:  # m = x
        return torch.addcmul(rest, x, k)
    return torch.addcmul(torch.addcmul(rest, x.mean(1, keepdim=True), k * (1 - s)), x, k * s)


def _crop(x: Tensor, values: Tensor, augmentation: Augmentation) -> Tensor:
    """Whole pixels' shift, with zeros coming in: out[r, c] = in[r + down, c + right]."""
    most = [int(size * augmentation.ratio_crop + 0.5) for size in x.shape[2:]]
    top, left = ((values[:, i] * (2 * shift + 1)).long().expand(len(x)) for i, shift in zip(_CROP, most, strict=True))
    return crop_and_flip(x, Crops(top, left, torch.zeros_like(top, dtype=torch.bool)), pad=(most[0], most[1]))


def _cutout(x: Tensor, values: Tensor, augmentation: Augmentation) -> Tensor:
    """A block of zeros around a pixel; at the edges a part of it."""
    inside = []
    for i, size in zip(_CUTOUT, x.shape[2:], strict=True):
        block = int(size * augmentation.ratio_cutout + 0.5)
        start = (values[:, i] * (size + 1 - block % 2)).long() - block // 2
        place = torch.arange(size, device=x.device) - start[:, None]
        inside.append((place >= 0) & (place < block))
    rows, columns = inside
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _flip(x: Tensor, values: Tensor, augmentation: Augmentation) -> Tensor:
    mirrored = values[:, _FLIP] < augmentation.prob_flip
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def _scale(x: Tensor, values: Tensor, augmentation: Augmentation) -> Tensor:
    """Reads the pixel at (x, y), in units of half the image from its centre, from (sx x, sy y)."""
    least = 1 / augmentation.ratio_scale
    sx, sy = (values[:, i, None, None] * (augmentation.ratio_scale - least) + least for i in _SCALE)
    return _warp(x, sx, torch.zeros_like(sx), torch.zeros_like(sy), sy)


def _rotate(x: Tensor, values: Tensor, augmentation: Augmentation) -> Tensor:
    """By an angle in those units: images that are not square are sheared a little, as in the release."""
    angle = (values[:, _ROTATE, None, None] - 0.5) * (2 * math.radians(augmentation.ratio_rotate))
    cos, sin = angle.cos(), angle.sin()
    return _warp(x, cos, -sin, sin, cos)


def _warp(x: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    """Bilinear, zeros outside: the pixel at (x, y) is read from (xx x + xy y, yx x + yy y); factors (N or 1, 1, 1)."""
    # The grid by hand is several times faster than F.affine_grid, and the whole than kornia's warps.
    n, _, height, width = x.shape
    down, right = (torch.arange(1 - size, size, 2, device=x.device, dtype=xx.dtype) / size for size in (height, width))
    down = down[:, None]
    grid = xx.new_empty(len(xx), height, width, 2)
    torch.add(xx * right, xy * down, out=grid[..., 0])
    torch.add(yx * right, yy * down, out=grid[..., 1])
    grid = grid.to(x.dtype)
    return F.grid_sample(x, grid.expand(n, -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=False)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor, Augmentation], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
