"""DM: the mean embedding of each class's synthetic images meets that of its real ones, in many networks.

    L = Σ_c || mean_i φ(A(x_c,i)) - mean_j φ(A(s_c,j)) ||²  (+ cross_entropy CE(net(A(s)), y))

Source: Zhao & Bilen 2023, "Dataset condensation with distribution matching", eq. 5; φ is the embedding of a network
with random weights, new at every step. The cross-entropy of the same network on the set (as in IDM, Zhao et al. 2023)
makes sense with `--nets trained` alone. Where our defaults differ: docs/condensation/dm.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import losses
from datafree.condensation.networks import Networks, augmented_pairs, check_embeddings, embed, look, shared_classes
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import RealBatch
from datafree.fields import not_negative, positive
from datafree.losses.precision import raised


@dataclass(frozen=True, kw_only=True)
class DMConfig:
    real_batch: RealBatch = 64
    cross_entropy: Annotated[float, "weight of the networks' cross-entropy on the set"] = 0.0

    def __post_init__(self) -> None:
        positive(self, "real_batch")
        not_negative(self, "cross_entropy")


class DM:
    Config = DMConfig
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

    def __init__(self, setting: Setting, config: DMConfig) -> None:
        check_embeddings(setting)
        self.setting, self.config, self.networks = setting, config, Networks(setting)

    def advance(self, synthetic: Synthetic) -> None:
        self.networks.advance()

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, config, network = self.setting, self.config, self.networks.take()
        own, factor = shared_classes(setting, network)
        real, made, labels = augmented_pairs(setting, synthetic, config.real_batch, own)
        with torch.no_grad():
            theirs = embed(setting, network, real).view(len(own), config.real_batch, -1).mean(1)
        logits = None
        if config.cross_entropy:
            with setting.cast():
                ours, logits = look(network, made)
        else:
            ours = embed(setting, network, made)
        means = losses.class_means(ours, labels, setting.domain.classes)[own]
        terms = {"mean": factor * losses.mean_embedding(theirs, means)}
        if logits is not None:
            # A share of the mean over the whole set: processes' terms add up.
            total = F.cross_entropy(raised(logits), labels, reduction="sum") / len(synthetic.decoded_classes)
            terms["cross_entropy"] = factor * config.cross_entropy * total
        return terms

    def state_dict(self) -> dict[str, Any]:
        return {"networks": self.networks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
