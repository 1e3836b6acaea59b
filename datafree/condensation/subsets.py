"""Selections: real images as they are, or means of them. The baselines that every condensed set must beat.

random: drawn evenly, without repeats.
herding: the running mean of the embeddings stays nearest to the class's mean (Welling 2009).
k-center: each is the farthest from those before it, from the most central one on (Sener & Savarese 2018, greedy).
k-means: the image nearest to each centroid of the class's embeddings (as in DC-BENCH, Cui et al. 2022).
mean: centroids of the class's pixels, for one image a class its mean; needs no network and costs next to nothing.

All work class by class. Embeddings are what the last linear layer is given of a network trained on the real data
(`trained_network`). What papers do otherwise: random.md, herding.md, k-center.md, k-means.md and mean.md in
docs/condensation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from datafree.condensation.coresets import herding, k_center, k_means, most_central, nearest_rows
from datafree.condensation.networks import check_embeddings
from datafree.condensation.setting import Setting
from datafree.condensation.trained import embeddings, needed_network, trained_network
from datafree.config import NoOptions
from datafree.data.tensors import to_float


class Random:
    Config = NoOptions
    LOOP: Mapping[str, Any] = {}
    READS: tuple[str, ...] = ()
    NEEDS_NETWORK = False

    def __init__(self, setting: Setting, config: NoOptions) -> None:
        self.setting = setting

    def build(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        real, rng = self.setting.real, self.setting.rng
        return torch.cat([real.of_class(label, n, rng) for label, n in enumerate(counts)]), _labels(real.y, counts)


class Herding:
    Config = NoOptions
    LOOP: Mapping[str, Any] = {}
    READS: tuple[str, ...] = ()

    def __init__(self, setting: Setting, config: NoOptions) -> None:
        self.setting = setting

    @staticmethod
    def beforehand(setting: Setting, config: NoOptions) -> list[str]:
        return [needed_network(setting, selecting=True)]

    def build(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        return _images(self.setting, herding_rows(self.setting, counts, selecting=True))


class KCenter:
    Config = NoOptions
    LOOP: Mapping[str, Any] = {}
    READS: tuple[str, ...] = ()
    beforehand = staticmethod(Herding.beforehand)

    def __init__(self, setting: Setting, config: NoOptions) -> None:
        self.setting = setting

    def build(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        def select(features: Tensor, n: int) -> Tensor:
            return k_center(features, n, first=most_central(features))

        return _images(self.setting, _embedded_rows(self.setting, counts, select, selecting=True))


class KMeans:
    Config = NoOptions
    LOOP: Mapping[str, Any] = {}
    READS: tuple[str, ...] = ()
    beforehand = staticmethod(Herding.beforehand)

    def __init__(self, setting: Setting, config: NoOptions) -> None:
        self.setting = setting

    def build(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        def select(features: Tensor, n: int) -> Tensor:
            return nearest_rows(features, k_means(features, n, _seed(self.setting)))

        return _images(self.setting, _embedded_rows(self.setting, counts, select, selecting=True))


class Mean:
    Config = NoOptions
    LOOP: Mapping[str, Any] = {}
    READS: tuple[str, ...] = ()
    NEEDS_NETWORK = False

    def __init__(self, setting: Setting, config: NoOptions) -> None:
        self.setting = setting

    def build(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        real, means = self.setting.real, []
        for label, n in enumerate(counts):
            images = to_float(real.x[real.rows[label]])
            pixels = images.flatten(1)
            found = pixels.mean(0, keepdim=True) if n == 1 else k_means(pixels, n, _seed(self.setting))
            means.append(found.view(n, *images.shape[1:]).clamp(0, 1))
        return torch.cat(means), _labels(real.y, counts)


def herding_rows(setting: Setting, counts: Sequence[int], *, selecting: bool = False) -> list[Tensor]:
    """Rows of the real images that herding takes of each class, in the order of selection; see `trained_network`."""
    return _embedded_rows(setting, counts, herding, selecting=selecting)


def _embedded_rows(
    setting: Setting, counts: Sequence[int], select: Callable[[Tensor, int], Tensor], *, selecting: bool
) -> list[Tensor]:
    """`select` applied to each class's embeddings: rows of the real images."""
    check_embeddings(setting)
    network, real = trained_network(setting, selecting=selecting), setting.real
    chosen = []
    for label, n in enumerate(counts):  # class by class: embeddings of all images at once can take gigabytes
        rows = real.rows[label]
        chosen.append(rows[select(embeddings(setting, network, real.x[rows]), n)])
    return chosen


def _images(setting: Setting, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    chosen = torch.cat(list(rows))
    return to_float(setting.real.x[chosen]), setting.real.y[chosen]


def _labels(like: Tensor, counts: Sequence[int]) -> Tensor:
    classes = torch.arange(len(counts), device=like.device)
    return torch.repeat_interleave(classes, torch.tensor(list(counts), device=like.device))


def _seed(setting: Setting) -> int:
    return int(torch.randint(2**31, (), generator=setting.rng, device=setting.device))
