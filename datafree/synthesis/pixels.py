"""What the methods share that optimise a batch's pixels, instead of a generator's weights.

Pixels live in normalised space, where the data have mean 0 and spread 1 (`Domain.pixels`): published rates and weights
of pixel priors are meant there. What is handed on is in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.models.build import output_shape
from datafree.parallel import mean_over_processes, rank, shard, world_size
from datafree.synthesis.inversion import Best
from datafree.synthesis.setting import Setting


class Space(NamedTuple):
    """Normalised space: images are pixels * std + mean. Both (1, C, 1, 1)."""

    mean: Tensor
    std: Tensor

    def shown(self, pixels: Tensor) -> Tensor:
        """What networks are shown, channels last: images in [0, 1] up to rounding. (N, C, H, W).

        Not clamped: a pixel that lies on the edge would lose its gradient wherever rounding takes it across.
        """
        return (pixels * self.std + self.mean).contiguous(memory_format=torch.channels_last)

    def images(self, pixels: Tensor) -> Tensor:
        """What is handed on: images in [0, 1]."""
        return self.shown(pixels).clamp(0, 1)

    def clip(self, pixels: Tensor) -> Tensor:
        """The nearest pixels whose images are in [0, 1]."""
        return pixels.clamp(-self.mean / self.std, (1 - self.mean) / self.std)


def pixel_space(setting: Setting) -> Space:
    mean, std = (torch.tensor(values, device=setting.device).view(1, -1, 1, 1) for values in setting.domain.pixels)
    return Space(mean, std)


def noise(setting: Setting, n: int, space: Space) -> Tensor:
    """This process's slice of n images of standard normal pixels, clipped. (N, C, H, W)."""
    drawn = torch.randn(n, *setting.domain.shape, generator=setting.rng, device=setting.device)
    return space.clip(shard(drawn)).contiguous(memory_format=torch.channels_last)


def moved(pixels: Tensor, rng: torch.Generator, most: int, *, flip: bool) -> Tensor:
    """The batch rolled by one offset of at most `most` pixels each way, and mirrored as a whole half of the times.

    Source: DeepInversion (Yin et al. 2020), release; all processes draw the same.
    """
    offsets = torch.randint(-most, most + 1, (2,), generator=rng, device=rng.device)
    mirrored = torch.rand((), generator=rng, device=rng.device) < 0.5
    n, channels, height, width = pixels.shape
    rows = torch.arange(height, device=rng.device) - offsets[0]
    columns = torch.arange(width, device=rng.device)
    if flip:
        columns = torch.where(mirrored, width - 1 - columns, columns)
    # Picked by place, not by torch's roll and flip: those would have to read the draws, and wait for the device.
    places = (rows % height)[:, None] * width + (columns - offsets[1]) % width
    picked = pixels.reshape(n, channels, -1).gather(2, places.to(pixels.device).view(1, 1, -1).expand(n, channels, -1))
    return picked.view(n, channels, height, width)


def halved(pixels: Tensor) -> Tensor:
    """Half the size: means of 2 x 2 pixels, of fewer at an odd edge. (N, C, ceil(H / 2), ceil(W / 2))."""
    return F.avg_pool2d(pixels, 2, ceil_mode=True, count_include_pad=False)


def takes_half(networks: Sequence[nn.Module], shape: tuple[int, int, int]) -> bool:
    """Whether all networks take images of half the size."""
    small = (shape[0], -(-shape[1] // 2), -(-shape[2] // 2))
    return all(isinstance(output_shape(network, small), tuple) for network in networks)


def whole_batch(pixels: Tensor) -> Tensor:
    """The global batch from this process's slice, with gradients: for norms over all images. (N · processes, ...)."""
    if world_size() == 1:
        return pixels
    parts = [torch.zeros_like(pixels)] * world_size()
    parts[rank()] = pixels
    return mean_over_processes(torch.cat(parts)) * world_size()


def patches_weight(wanted: float | None, setting: Setting) -> float:
    """The weight of the patches' entropy: as asked for; else 1 for a vision transformer and 0 for any other teacher.

    A pass through the teacher tells: not every block that is called attention returns patches.

    Raises:
        ValueError: asked for, and no patches are seen.
    """
    if wanted == 0 or not setting.teacher.attentions:
        seen = False
    else:
        with torch.no_grad():
            blank = torch.zeros(1, *setting.domain.shape, device=setting.device)
            seen = bool(setting.teacher.look(blank, tokens=True).tokens)
    if wanted and not seen:
        raise ValueError(f"--patches {wanted:g}: the teacher has no attention blocks that show patches; leave it out")
    return float(seen) if wanted is None else wanted


class Descent(NamedTuple):
    """How pixels are optimised: Adam, a rate that rises and falls as a cosine, perhaps half the size first.

    Attributes:
        lr: the highest rate.
        betas: Adam's.
        steps: how many are planned; the clock may cut them short.
        rise: share of the steps over which the rate rises; with `half` of the first part's, and over as many in the
            second.
        half: share of the steps that are taken at half the size; Adam and rate start anew after them. 0: none.
    """

    lr: float
    betas: tuple[float, float]
    steps: int
    rise: float = 0.0
    half: float = 0.0

    def rate(self, fraction: float) -> float:
        """The rate where a share `fraction` of the steps is done, [0, 1).

        Source: DeepInversion (Yin et al. 2020), release: linear over the first steps, then half a cosine to 0.
        """
        begin, length = (0.0, self.half) if fraction < self.half else (self.half, 1 - self.half)
        within, step = (fraction - begin) / length, 1 / (self.steps * length)
        rise = self.rise * (self.half or 1.0) / length
        if within < rise:
            return self.lr * min(1.0, (within + step) / rise)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (within - rise) / (1 - rise)))


def descend(
    start: Tensor,
    objective: Callable[[Tensor, bool], Mapping[str, Tensor]],
    descent: Descent,
    space: Space,
    fractions: Iterable[float],
) -> tuple[Tensor, dict[str, float]]:
    """Optimises a batch of pixels and keeps the one of the lowest loss, which is the mean over all processes.

    The batch that is kept is the one that the loss was taken of, before the step, and shares no memory with the one
    that goes on (one release keeps the last batch under the name of the best). With `half`, losses of the two sizes are
    not compared: those of the full size count.

    Args:
        start: this process's first pixels, (N, C, H, W).
        objective: the weighted terms of pixels, and whether half their size is to be looked at.
        descent: how.
        space: pixels are clipped to it after every step.
        fractions: shares of the steps that are done, one a step (`Pace.inner`), the first one 0.

    Returns:
        The pixels, and their terms.
    """
    pixels = start.clone(memory_format=torch.preserve_format).requires_grad_()
    best, optimizer, at_half = Best(), _adam(pixels, descent), descent.half > 0
    seen: Mapping[str, Tensor] = {}
    for fraction in fractions:
        small = fraction < descent.half
        if small != at_half:
            best, optimizer, at_half = Best(), _adam(pixels, descent), small
        optimizer.param_groups[0]["lr"] = descent.rate(fraction)
        seen = objective(pixels, small)
        terms = torch.stack(list(seen.values()))
        # Every process steps its own pixels by the gradient of the mean of all processes' losses.
        torch.autograd.backward(terms.sum() / world_size(), inputs=[pixels])
        best.offer(terms.sum(), pixels.detach().clone(), mean_over_processes(terms.detach()))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            pixels.copy_(space.clip(pixels))
    kept, values = best.held
    return kept, dict(zip(seen, values.tolist(), strict=True))


def _adam(pixels: Tensor, descent: Descent) -> torch.optim.Adam:
    return torch.optim.Adam([pixels], lr=descent.lr, betas=descent.betas)
