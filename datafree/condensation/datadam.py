"""DataDAM: the mean attention of each layer and the mean embedding of a class's synthetic images meet the real ones'.

    L = attention Σ_c [ Σ_l || E A_l(x_c) - E A_l(s_c) ||² + balance || E φ(x_c) - E φ(s_c) ||² ]

A_l(x) is the sum over channels of |a_l|^power behind activation l, flattened and scaled to unit length; the last
activation is left out, and the embedding φ stands for it. Networks have random weights, new at every step.

Source: Sajedi et al. 2023, "DataDAM: efficient dataset distillation with attention matching"; the factor and
the power are the release's. Where our defaults differ: docs/condensation/datadam.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from datafree import losses
from datafree.condensation.networks import Networks, augmented_pairs, count_layers, embed_layers, shared_classes
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import RealBatch
from datafree.fields import not_negative, positive


@dataclass(frozen=True, kw_only=True)
class DataDAMConfig:
    real_batch: RealBatch = 64
    attention: Annotated[float, "weight of everything"] = 100.0
    balance: Annotated[float, "weight of the embedding against the attention"] = 0.01
    power: Annotated[float, "power of the activations in the attention"] = 1.0

    def __post_init__(self) -> None:
        positive(self, "real_batch", "attention", "power")
        not_negative(self, "balance")


class DataDAM:
    Config = DataDAMConfig
    LOOP: Mapping[str, Any] = {
        "init": "real",
        "factor": 1,
        "augmentation": "color_crop_cutout_flip_scale_rotate",
        "nets": "fresh",
        "optimizer": "sgd",
        "image_lr": 0.1,
        "image_momentum": 0.5,
    }
    READS: tuple[str, ...] = ("augmentation", "augmentation_mode", "nets", "net_pool", "net_steps", "zca")

    def __init__(self, setting: Setting, config: DataDAMConfig) -> None:
        if count_layers(setting) == 1:
            raise ValueError(
                f"datadam leaves the last activation out, and {setting.arch} has one alone: take a deeper --arch"
            )
        self.setting, self.config, self.networks = setting, config, Networks(setting)

    def advance(self, synthetic: Synthetic) -> None:
        self.networks.advance()

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, config, network = self.setting, self.config, self.networks.take()
        own, factor = shared_classes(setting, network)
        real, made, labels = augmented_pairs(setting, synthetic, config.real_batch, own)

        def keep(maps: Tensor) -> Tensor:
            return losses.attention_maps(maps, config.power)

        with torch.no_grad():
            seen = embed_layers(setting, network, real, keep)
            theirs = [x.view(len(own), config.real_batch, -1).mean(1) for x in (*seen[0][:-1], seen[1])]
        maps, features = embed_layers(setting, network, made, keep)
        ours = [losses.class_means(x, labels, setting.domain.classes)[own] for x in (*maps[:-1], features)]
        weight = factor * config.attention
        return {
            "attention": weight * losses.layer_alignment(theirs[:-1], ours[:-1]),
            "embedding": weight * config.balance * losses.mean_embedding(theirs[-1], ours[-1]),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"networks": self.networks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
