"""RDED: the crops of real images that a trained network is surest of, several to an image, with its soft labels.

For each class: k random crops of each of m images; the crop with the smallest cross-entropy under the teacher stands
for its image; the n f² best of these are stitched, f x f to an image. The label of an image is the mean over its tiles
of the teacher's probabilities.

Source: Sun et al. 2024, "On the diversity and realism of distilled dataset" (CVPR), sec. 3, with the release's m = 300,
k = 5. Where we differ: docs/condensation/rded.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.condensation.setting import Setting
from datafree.condensation.trained import (
    in_batches,
    is_checkpoint,
    loaded_network,
    needed_network,
    trained_network,
)
from datafree.data.formation import decode, encode
from datafree.data.mixing import random_resized_crop
from datafree.evaluation.protocols import tiles_for
from datafree.fields import positive


@dataclass(frozen=True, kw_only=True)
class RDEDConfig:
    teacher: Annotated[
        str, "network that is trained on the real data, scores crops and gives labels; or a trained one: a file, a run"
    ] = "resnet8"
    teacher_arch: Annotated[str | None, "architecture of a checkpoint that does not say its own"] = None
    tiles: Annotated[int | None, "crops a side of an image; default: 2 from 64 px, 1 below"] = None
    candidates: Annotated[int, "real images a class that are looked at"] = 300
    crops: Annotated[int, "crops of each of them"] = 5
    smallest_crop: Annotated[float, "smallest part of the area that is cut out"] = 0.08

    def __post_init__(self) -> None:
        positive(self, "tiles", "candidates", "crops", "smallest_crop")
        if self.smallest_crop > 1:
            raise ValueError(f"--smallest-crop is {self.smallest_crop}: give a number above 0, up to 1")


class RDED:
    Config = RDEDConfig
    LOOP: Mapping[str, Any] = {"labels": "soft"}
    READS: tuple[str, ...] = ()
    NEEDS_NETWORK = False

    def __init__(self, setting: Setting, config: RDEDConfig) -> None:
        self.setting, self.config = setting, config
        self.tiles = config.tiles or tiles_for(setting.domain)

    @staticmethod
    def beforehand(setting: Setting, config: RDEDConfig) -> list[str]:
        return [] if is_checkpoint(config.teacher) else [needed_network(setting, config.teacher, selecting=True)]

    def build(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (M, C, H, W) in [0, 1], sorted by class, and logits (M, classes)."""
        setting, config = self.setting, self.config
        self.teacher = loaded_network(setting, config.teacher, config.teacher_arch) or trained_network(
            setting, config.teacher, selecting=True
        )
        images = torch.cat([encode(self.best(label, n * self.tiles**2), self.tiles) for label, n in enumerate(counts)])
        return images, self.labels(images)

    def best(self, label: int, n: int) -> Tensor:
        """The n best crops of a class (n, C, H, W), best first; more than one of an image only if there are too few."""
        setting, config = self.setting, self.config
        size = len(setting.real.rows[label])
        images = setting.real.of_class(label, max(n, min(size, config.candidates)), setting.rng)
        crops = random_resized_crop(images.repeat_interleave(config.crops, 0), config.smallest_crop, setting.rng)
        scores = self.scores(crops, label).view(-1, config.crops)
        least, which = scores.min(1)
        chosen = least.argsort(stable=True)[:n]
        return crops[chosen * config.crops + which[chosen]]

    def scores(self, crops: Tensor, label: int) -> Tensor:
        """Cross-entropy (N,) of the crops as they will be seen: made small and enlarged again."""
        height, width = crops.shape[2:]
        size = (math.ceil(height / self.tiles), math.ceil(width / self.tiles))

        def score(part: Tensor) -> Tensor:
            if self.tiles > 1:
                small = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
                part = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
            return self.logits(part).log_softmax(1)[:, label].neg()

        return in_batches(score, crops)

    def labels(self, images: Tensor) -> Tensor:
        """Log of the mean over tiles of the teacher's probabilities, (M, classes)."""
        tiles = in_batches(self.logits, decode(images, self.tiles)).log_softmax(1)
        return tiles.view(self.tiles**2, len(images), -1).logsumexp(0) - 2 * math.log(self.tiles)

    def logits(self, images: Tensor) -> Tensor:
        with self.setting.cast():
            logits: Tensor = self.teacher(images)
        return logits.float()
