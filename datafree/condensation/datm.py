"""DATM: trajectory matching whose experts' stage follows how much the set can hold, with learned soft labels.

    L = || θ_N - θ*_{t+M} ||² / || θ*_t - θ*_{t+M} ||²,    t uniform in [min, T(step)]

The student's loss is the cross-entropy with softmax(y). Source: Guo et al. 2024, "Towards lossless dataset distillation
via difficulty-aligned trajectory matching": T grows linearly from `first_max_start` to `max_start` until
`expansion_end`; labels start as the experts' mean logits on real images that they classify rightly and are learned.
Where our defaults differ: docs/condensation/datm.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from datafree.condensation.experts import needed_experts, planned_records
from datafree.condensation.loop import check_finite
from datafree.condensation.mtt import MTT, last_start
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.condensation.unrolling import Unrolled, write
from datafree.config import TrajectoryOptions
from datafree.fields import not_negative


@dataclass(frozen=True, kw_only=True)
class DATMConfig(TrajectoryOptions):
    expert_rho: Annotated[float, "the experts' sharpness-aware steps: length upwards; 0: plain steps"] = 0.01
    min_start: Annotated[int, "first record a student starts from"] = 0
    first_max_start: Annotated[int | None, "last record a student starts from at first; default: half of max_start"] = (
        None
    )
    expansion_end: Annotated[float, "share of the run after which the last start is max_start"] = 0.5
    threshold: Annotated[float, "a student whose loss is above changes neither images nor labels; 0: none is"] = 1.1

    def __post_init__(self) -> None:
        TrajectoryOptions.__post_init__(self)
        not_negative(self, "min_start", "first_max_start", "expansion_end", "threshold")


class DATM:
    Config = DATMConfig
    LOOP: Mapping[str, Any] = {**MTT.LOOP, "labels": "learned", "label_lr": 2.0}
    READS: tuple[str, ...] = MTT.READS
    TEACHERS = 5  # experts whose last records' logits are averaged
    CANDIDATES = 4  # real images looked at for one that is taken

    def __init__(self, setting: Setting, config: DATMConfig) -> None:
        if (records := planned_records(setting, config)) is not None:
            first_max(records, config)  # told before they are made
        self.setting, self.config, self.mtt = setting, config, MTT(setting, config)
        self.state_dict, self.load_state_dict = self.mtt.state_dict, self.mtt.load_state_dict
        self.first_max = first_max(self.mtt.experts.records, config)

    @staticmethod
    def beforehand(setting: Setting, config: DATMConfig) -> list[str]:
        line, records = needed_experts(setting, config)
        first_max(records, config)
        return [line]

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        # A student's NaN is masked (see `kept`); it is no student's where what it learns from is NaN already.
        check_finite(synthetic.parameters(), self.setting.clock.step)
        return {"trajectory": self.mtt.distance(synthetic, self.starts(), kept=self.kept)}

    def starts(self) -> tuple[int, int]:
        """The first and the last record from which a student may start now."""
        config, last = self.config, self.mtt.last_start
        grown = min(self.setting.clock.fraction / config.expansion_end, 1.0) if config.expansion_end else 1.0
        high = self.first_max + int((last - self.first_max) * grown)
        return config.min_start, max(high, config.min_start)

    def kept(self, found: Unrolled) -> Unrolled:
        """A student that was led astray changes nothing but the rate, which may be why.

        One that is not finite, in its loss or a gradient, is no less astray: it counts as one at the threshold whose
        gradient for the rate is beyond all measure (see `MTT.distance`).
        """
        threshold = self.config.threshold
        if not threshold:
            return found
        if not all(bool(part.isfinite().all()) for part in found):
            lost = torch.full_like(found.value, threshold), torch.full_like(found.rate, torch.inf)
            found = found._replace(value=lost[0], rate=lost[1])
        elif float(found.value) <= threshold:
            return found
        return found._replace(images=torch.zeros_like(found.images), labels=torch.zeros_like(found.labels))

    def advance(self, synthetic: Synthetic) -> None:
        pass

    def first_labels(self, images: Tensor, classes: Tensor) -> Tensor:
        """The experts' mean logits (N, classes). Where they take the image for another class, its own gets the largest
        logit and the other's is what its own was."""
        logits = self.judge(images)
        rows, taken = torch.arange(len(logits), device=logits.device), logits.argmax(1)
        own, largest = logits[rows, classes].clone(), logits[rows, taken].clone()
        logits[rows, taken] = own
        logits[rows, classes] = largest
        return logits

    def first_images(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Real images (M, C, H, W) that the experts classify rightly, and their class numbers (M,), sorted by class.

        Where too few of a class are, the surest of the others follow.
        """
        real, rng, chosen, labels = self.setting.real, self.setting.rng, [], []
        for label, count in enumerate(counts):
            images = real.of_class(label, max(count, min(self.CANDIDATES * count, len(real.rows[label]))), rng)
            logits = self.judge(images)
            others = logits.clone()
            others[:, label] = -torch.inf
            margin = logits[:, label] - others.amax(1)
            order = torch.argsort((margin.clamp(max=0)), descending=True, stable=True)
            chosen.append(images[order[:count]])
            labels += [label] * count
        return torch.cat(chosen), torch.tensor(labels, device=chosen[0].device)

    @torch.no_grad()
    def judge(self, images: Tensor) -> Tensor:
        """Mean logits (N, classes) of the experts' last records."""
        mtt = self.mtt
        experts = min(self.TEACHERS, mtt.experts.count)
        total = torch.zeros(len(images), self.setting.domain.classes, device=images.device)
        for index in range(experts):
            (vector,) = mtt.experts.at(index, mtt.experts.records, device=images.device)
            write(list(mtt.network.parameters()), vector)
            total += torch.cat([mtt.passes.forward(mtt.network, part).float() for part in torch.split(images, 256)])
        return total / max(experts, 1)


def first_max(records: int, config: DATMConfig) -> int:
    """The last record a student may start from at first, of so many. ValueError where the bounds do not fit them."""
    last, first = last_start(records, config), config.first_max_start
    if config.min_start > last or (first or 0) > last:
        raise ValueError(f"--min-start and --first-max-start lie at or below the last start, which is {last}")
    return last // 2 if first is None else first
