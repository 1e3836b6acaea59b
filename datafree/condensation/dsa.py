"""DSA: DC with siamese augmentation, one draw for a class's real and synthetic images.

    L = Σ_c D(∇_θ CE(net(A_c(x_c)), c), ∇_θ CE(net(A_c(s_c)), c)),    D = Σ over layers and rows of 1 - cosine

Source: Zhao & Bilen 2021, "Dataset condensation with differentiable siamese augmentation". The network is also trained
on augmented images, each with a draw of its own. Where we differ: docs/condensation/dsa.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from datafree.condensation.dc import DC
from datafree.condensation.gradient_matching import Learner, match
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import GradientOptions


class DSA:
    Config = GradientOptions
    LOOP: Mapping[str, Any] = {**DC.LOOP, "augmentation": "color_crop_cutout_flip_scale_rotate"}
    READS: tuple[str, ...] = DC.READS
    SOFT_AT_END = True  # matching reads learned labels alone; soft ones are made of the images at the end

    def __init__(self, setting: Setting, config: GradientOptions) -> None:
        self.setting, self.config, self.learner = setting, config, Learner(setting, config, augmented=True)
        self.advance = self.learner.advance
        self.state_dict, self.load_state_dict = self.learner.state_dict, self.learner.load_state_dict

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        network, config = self.learner.take(), self.config
        return {"match": match(network, self.setting, synthetic, config.real_batch, config.metric)}
