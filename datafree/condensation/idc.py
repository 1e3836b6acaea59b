"""IDC: gradients of networks that learn from the real data, matched by images that each hold several small ones.

    L = IPC/10 w Σ_c ||∇_θ CE(net(A(x_c)), c) - ∇_θ CE(net(A(f(s_c))), c)||²  (or the sum of absolute differences)

Source: Kim et al. 2022, "Dataset condensation via efficient synthetic-data parameterization" (f: a stored image is cut
into factor x factor patches, which are enlarged; networks are trained on the real data, distances take the place of
cosines). θ are the convolutions' weights. A is one draw for both batches of a class. The factors before the distances
are those of the release's rates, CutMix in the networks' training is the release's. Where we differ:
docs/condensation/idc.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from datafree.condensation.dc import DC
from datafree.condensation.gradient_matching import match
from datafree.condensation.networks import Networks
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import RealBatch
from datafree.fields import choice, part, positive


@dataclass(frozen=True, kw_only=True)
class IDCConfig:
    real_batch: RealBatch = 64
    synthetic_batch: Annotated[int, "at most so many small images a class and step"] = 128
    distance: Annotated[
        Literal["auto", "mse", "l1"], "of gradients: squares or absolute values; auto: l1 for grey or large images"
    ] = "auto"
    train_steps: Annotated[int, "steps of a network on the real data between two matches"] = 4
    cutmix: Annotated[
        float, "probability that a batch of these steps is mixed (CutMix); above 0 they go without cutout"
    ] = 0.5

    def __post_init__(self) -> None:
        positive(self, "real_batch", "synthetic_batch", "train_steps")
        choice(self)
        part(self, "cutmix")


LARGE = 128  # pixels a side, from which images count as ImageNet's
# The release's rates for the images at 10 images a class, over that of squares, 5e-3: with absolute values 1e-4, and on
# ImageNet, which has 224 pixels a side there, 3e-3 for 10 classes and 1e-3 for 100; for other sizes as many times as
# large as they have pixels.
SQUARES, ABSOLUTE, FEW_CLASSES, MANY_CLASSES = 1.0, 0.02, 0.6, 0.2


def weight(distance: str, shape: tuple[int, int, int], classes: int) -> float:
    """The factor before the distance "mse" or "l1", by the images' (C, H, W) and the number of classes."""
    height, width = shape[1:]
    if distance == "mse":
        return SQUARES
    if min(height, width) < LARGE:
        return ABSOLUTE
    return (FEW_CLASSES if classes < 100 else MANY_CLASSES) * height * width / 224**2


class IDC:
    Config = IDCConfig
    LOOP: Mapping[str, Any] = {
        "init": "mosaic",
        "factor": 2,
        "augmentation": "color_crop_cutout",
        "augmentation_mode": "all",
        "nets": "trained",
        "net_pool": 1,
        "net_steps": 400,
        "optimizer": "sgd",
        "image_lr": 0.005,
        "image_momentum": 0.5,
    }
    READS: tuple[str, ...] = DC.READS
    SOFT_AT_END = True  # matching reads learned labels alone; soft ones are made of the images at the end

    def __init__(self, setting: Setting, config: IDCConfig) -> None:
        self.setting, self.config = setting, config
        self.networks = Networks(setting, train_steps=config.train_steps, cutmix=config.cutmix)
        channels, *size = setting.domain.shape
        grey_or_large = channels == 1 or min(size) >= LARGE
        self.distance = config.distance if config.distance != "auto" else "l1" if grey_or_large else "mse"
        self.weight = weight(self.distance, setting.domain.shape, setting.domain.classes)

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, config, network = self.setting, self.config, self.networks.take()
        total = match(
            network, setting, synthetic, config.real_batch, f"idc_{self.distance}", most=config.synthetic_batch
        )
        each = len(synthetic.labels) / setting.domain.classes
        return {"match": self.weight * each / 10 * total}

    def advance(self, synthetic: Synthetic) -> None:
        self.networks.advance()

    def state_dict(self) -> dict[str, Any]:
        return {"networks": self.networks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
