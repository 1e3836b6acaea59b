"""Where a synthetic set starts: noise, real images at random, herding's, or mosaics of real ones scaled down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datafree.condensation.setting import Setting
from datafree.data.formation import encode
from datafree.data.tensors import to_float


def initial_images(
    setting: Setting, counts: Sequence[int], init: str, factor: int, *, bounded: bool = True
) -> tuple[Tensor, Tensor]:
    """Stored images (M, C, H, W) and class numbers (M,), sorted by class.

    Args:
        setting: gives the real images and the random numbers.
        counts: stored images a class.
        init: see `CondenseConfig`. Real images and herding's fill the multi-formation: a stored image holds factor² of
            them, different ones where the class has as many.
        factor: of the multi-formation.
        bounded: whether noise is cut to [0, 1], in which all others lie.
    """
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts))).to(setting.device)
    if init == "noise":
        noise = _noise(setting, len(labels))
        return noise.clamp(0, 1) if bounded else noise, labels
    real, rng, wanted = setting.real, setting.rng, [n * factor**2 for n in counts]
    if init == "herding":
        pieces = [to_float(real.x[rows]) for rows in _herded(setting, wanted)]
    else:
        pieces = [real.of_class(label, n, rng) for label, n in enumerate(wanted)]
    return torch.cat([encode(images, factor) for images in pieces]), labels


def _herded(setting: Setting, counts: Sequence[int]) -> list[Tensor]:
    """Rows of herding's images of each class; where it has fewer, they come again from the first on."""
    from datafree.condensation.subsets import herding_rows

    there = [min(n, len(rows)) for n, rows in zip(counts, setting.real.rows, strict=True)]
    found = herding_rows(setting, there)
    return [rows[torch.arange(n, device=rows.device) % len(rows)] for n, rows in zip(counts, found, strict=True)]


def _noise(setting: Setting, n: int) -> Tensor:
    """Normal noise with the domain's mean and spread: N(0, 1) in standardised pixels, as published."""
    domain = setting.domain
    noise = torch.randn((n, *domain.shape), generator=setting.rng, device=setting.device)
    mean, std = (torch.tensor(v, device=setting.device).view(1, -1, 1, 1) for v in (domain.mean, domain.std))
    return noise * std + mean
