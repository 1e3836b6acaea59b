"""Where a synthetic set starts: noise, real images at random, herding's, or mosaics of real ones scaled down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datafree.condensation.setting import Setting
from datafree.data.formation import encode
from datafree.data.tensors import to_float


def initial_images(setting: Setting, counts: Sequence[int], init: str, factor: int) -> tuple[Tensor, Tensor]:
    """Stored images (M, C, H, W) in [0, 1] and class numbers (M,), sorted by class.

    Args:
        setting: gives the real images and the random numbers.
        counts: stored images a class.
        init: see `CondenseConfig`. A mosaic holds factor² different real images where the class has as many.
        factor: of the multi-formation.
    """
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts))).to(setting.device)
    if init == "noise":
        return _noise(setting, len(labels)), labels
    if init == "herding":
        from datafree.condensation.subsets import herding_rows

        rows = torch.cat(herding_rows(setting, counts))
        return to_float(setting.real.x[rows]), labels
    real, rng = setting.real, setting.rng
    if init == "real" or factor == 1:
        return torch.cat([real.of_class(label, n, rng) for label, n in enumerate(counts)]), labels
    mosaics = []
    for label, n in enumerate(counts):
        pieces = real.of_class(label, n * factor**2, rng)
        mosaics.append(encode(pieces, factor))
    return torch.cat(mosaics), labels


def _noise(setting: Setting, n: int) -> Tensor:
    """Normal noise with the domain's mean and spread, cut to [0, 1]."""
    domain = setting.domain
    noise = torch.randn((n, *domain.shape), generator=setting.rng, device=setting.device)
    mean, std = (torch.tensor(v, device=setting.device).view(1, -1, 1, 1) for v in (domain.mean, domain.std))
    return (noise * std + mean).clamp(0, 1)
