"""DC: the weights' gradient on a class's synthetic images meets that on its real ones, as a network learns.

    L = Σ_c D(∇_θ CE(net(x_c), c), ∇_θ CE(net(s_c), c)),    D = Σ over layers and rows of 1 - cosine

Source: Zhao, Mopuri & Bilen 2021, "Dataset condensation with gradient matching". A network with random weights is
matched `outer` times, and trained on the set for `inner` epochs in between. One step on all images follows each match.
Where we differ: docs/condensation/dc.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from datafree.condensation.gradient_matching import Learner, match
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import GradientOptions


class DC:
    Config = GradientOptions
    LOOP: Mapping[str, Any] = {
        "init": "real",
        "factor": 1,
        "augmentation": "none",
        "optimizer": "sgd",
        "image_lr": 0.01,
        "image_momentum": 0.5,
    }
    READS: tuple[str, ...] = (
        "augmentation", "augmentation_mode", "label_lr", "nets", "net_pool", "net_steps", "zca",
    )  # fmt: skip
    SOFT_AT_END = True  # matching reads learned labels alone; soft ones are made of the images at the end

    def __init__(self, setting: Setting, config: GradientOptions) -> None:
        self.setting, self.config, self.learner = setting, config, Learner(setting, config)
        self.advance = self.learner.advance
        self.state_dict, self.load_state_dict = self.learner.state_dict, self.learner.load_state_dict

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        network, config = self.learner.take(), self.config
        return {"match": match(network, self.setting, synthetic, config.real_batch, config.metric)}
