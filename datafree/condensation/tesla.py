"""TESLA: MTT with a gradient that leaves out how later steps depend on what earlier ones were trained on.

    L = || θ_N - θ*_{t+M} ||² / || θ*_t - θ*_{t+M} ||²,    dL/dimages ≈ -a Σ_k d<dL/dθ_N, g_k>/dimages

g_k is the gradient of the student's k-th step, a its rate. Source: Cui et al. 2023, "Scaling up dataset distillation to
ImageNet-1K with constant memory". Our defaults' differences: docs/condensation/mtt.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from datafree.condensation.mtt import MTT
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import TrajectoryOptions


class TESLA:
    Config = TrajectoryOptions
    LOOP: Mapping[str, Any] = MTT.LOOP
    READS: tuple[str, ...] = MTT.READS
    beforehand = staticmethod(MTT.beforehand)

    def __init__(self, setting: Setting, config: TrajectoryOptions) -> None:
        self.mtt = MTT(setting, config)
        self.state_dict, self.load_state_dict = self.mtt.state_dict, self.mtt.load_state_dict

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        return {"trajectory": self.mtt.distance(synthetic, self.mtt.starts(), exact=False)}

    def advance(self, synthetic: Synthetic) -> None:
        pass
