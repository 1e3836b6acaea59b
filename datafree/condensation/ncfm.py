"""NCFM: characteristic functions of real and synthetic embeddings meet, at random or at adversarial frequencies.

    L = Σ_c [ weight mean_k sqrt(α (|Φ_x| - |Φ_s|)² + (1 - α) 2 (|Φ_x||Φ_s| - Re Φ_x Re Φ_s - Im Φ_x Im Φ_s))
        + calibration CE ]

Φ(t_k) is a class's mean of exp(i t_k φ), φ the embedding scaled to unit length. With `sampler normal` the frequencies
are N(0, 1), as in the settings released with the paper. With `sampler learned` they are a scale mixture of normals
whose scales come from a small network that maximises the same distance (the paper's min-max). The networks behind φ
lie at random between their first and their trained weights; CE is a trained network's cross-entropy on the set.

Source: Wang et al. 2025, "Dataset distillation with neural characteristic function: a minmax perspective", as its
release computes it. Where our defaults differ: docs/condensation/ncfm.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.condensation.loop import sum_gradients
from datafree.condensation.networks import Networks, augmented_pairs, check_embeddings, embed, shared_classes
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.condensation.trained import needed_network, trained_network
from datafree.config import RealBatch
from datafree.evaluation.networks import forward_of, part_size
from datafree.fields import choice, not_negative, positive, share


@dataclass(frozen=True, kw_only=True)
class NCFMConfig:
    real_batch: RealBatch = 64
    weight: Annotated[float, "weight of the distance"] = 300.0
    amplitude: Annotated[float, "share of the amplitudes in the distance, against the phases"] = 0.5
    frequencies: Annotated[int, "frequencies a step"] = 4096
    sampler: Annotated[
        Literal["normal", "learned"], "frequencies: standard normal, or of learned scales that maximise the distance"
    ] = "normal"
    sampler_lr: Annotated[float, "Adam's rate for learned frequencies"] = 1e-3
    calibration: Annotated[float, "weight of a trained network's cross-entropy on the set; 0: no such network"] = 1.0
    interpolate: Annotated[bool, "networks lie between their first and their trained weights"] = True

    def __post_init__(self) -> None:
        positive(self, "real_batch", "weight", "frequencies", "sampler_lr")
        not_negative(self, "calibration")
        share(self, "amplitude")
        choice(self)


class Sampler(nn.Module):
    """Frequencies t = exp(s(z)) ε with normal z and ε: the network s gives a scale a frequency and feature.

    At the start s = 0, so t is standard normal. Scales stay between exp(-2) and exp(2): without bounds the distance of
    unit vectors could be maximised by frequencies at which every sample stands for itself.
    """

    NOISE, HIDDEN, MOST = 16, 64, 2.0

    def __init__(self, features: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(self.NOISE, self.HIDDEN), nn.Linear(self.HIDDEN, features)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, noise: Tensor) -> Tensor:
        """The scales, (K, D) for noise (K, NOISE)."""
        result: Tensor = (self.MOST * self.outer(self.inner(noise).relu()).tanh()).exp()
        return result


class NCFM:
    Config = NCFMConfig
    LOOP: Mapping[str, Any] = {
        "init": "mosaic",
        "factor": 2,
        "augmentation": "color_crop_cutout",
        "augmentation_mode": "all",
        "nets": "trained",
        "optimizer": "adamw",
        "image_lr": 0.01,
        "image_momentum": 0.5,
    }
    READS: tuple[str, ...] = ("augmentation", "augmentation_mode", "nets", "net_pool", "net_steps", "zca")

    def __init__(self, setting: Setting, config: NCFMConfig) -> None:
        self.setting, self.config = setting, config
        check_embeddings(setting)
        self.networks = Networks(setting, keep_initial=config.interpolate and setting.nets == "trained")
        self.judge = trained_network(setting) if config.calibration else None
        self.sampler: Sampler | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    @staticmethod
    def beforehand(setting: Setting, config: NCFMConfig) -> list[str]:
        return [needed_network(setting)] if config.calibration else []

    def advance(self, synthetic: Synthetic) -> None:
        self.networks.advance()

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, config = self.setting, self.config
        share = torch.rand((), generator=setting.rng, device=setting.device).item()
        network = self.networks.between(share)
        own, factor = shared_classes(setting, network)
        real, made, labels = augmented_pairs(setting, synthetic, config.real_batch, own)
        with torch.no_grad():
            theirs = torch.split(F.normalize(embed(setting, network, real), dim=1), config.real_batch)
        ours = F.normalize(embed(setting, network, made), dim=1)
        frequencies = self._frequencies(ours)
        distances = [
            losses.characteristic_function_distance(
                x, ours[labels == label], frequencies, config.amplitude, 1 - config.amplitude
            )
            for label, x in zip(own, theirs, strict=True)
        ]
        distance = factor * config.weight * torch.stack(distances).sum()
        if self.sampler is not None:
            self._maximise(distance)
        terms = {"distance": distance}
        if self.judge is not None:
            forward = forward_of(self.judge, setting.precision)
            logits = torch.cat([forward(part) for part in torch.split(made, part_size(made))])
            each = F.cross_entropy(logits, labels, reduction="none")
            means = losses.class_means(each.unsqueeze(1), labels, setting.domain.classes)
            terms["calibration"] = factor * config.calibration * means.sum()
        return terms

    def _frequencies(self, features: Tensor) -> Tensor:
        """(K, D) for features (N, D), one draw for all classes. The learned kind carries the sampler's gradient."""
        config, rng, device = self.config, self.setting.rng, self.setting.device
        normal = torch.randn((config.frequencies, features.shape[1]), generator=rng, device=device).to(features)
        if config.sampler == "normal":
            return normal
        if self.sampler is None:
            self._start_sampler(features.shape[1])
        assert self.sampler is not None
        noise = torch.randn((config.frequencies, Sampler.NOISE), generator=rng, device=device)
        scales: Tensor = self.sampler(noise)
        return normal * scales.to(features)

    def _start_sampler(self, features: int) -> None:
        self.sampler = Sampler(features).to(self.setting.device)
        self.optimizer = torch.optim.Adam(self.sampler.parameters(), self.config.sampler_lr)

    def _maximise(self, distance: Tensor) -> None:
        """One step up for the sampler; the images' step down, with the same frequencies, is the loop's."""
        assert self.sampler is not None and self.optimizer is not None
        parameters = list(self.sampler.parameters())
        gradients = torch.autograd.grad(distance, parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = -gradient
        sum_gradients(parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": self.networks.state_dict(),
            "sampler": None if self.sampler is None else self.sampler.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        if state["sampler"] is not None:
            self._start_sampler(len(state["sampler"]["outer.bias"]))
            assert self.sampler is not None and self.optimizer is not None
            self.sampler.load_state_dict(state["sampler"])
            self.optimizer.load_state_dict(state["optimizer"])
