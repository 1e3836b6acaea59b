"""MTT: training on the set goes where training on the real data went.

    L = || θ_N - θ*_{t+M} ||² / || θ*_t - θ*_{t+M} ||²,    θ_0 = θ*_t,  θ_{k+1} = θ_k - a ∇ CE(net_θk(A(s_k)), y_k)

Source: Cazenavette et al. 2022, "Dataset distillation by matching training trajectories", its weight matching loss.
θ* is an expert's record, t is drawn anew at every step, the rate a is learned. MTT's gradient is exact, at the memory
of one step (`datafree.condensation.unrolling`). TESLA and DATM hold an MTT, which gives them the same distance with
another gradient or from other records. Our defaults' differences: docs/condensation/mtt.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from datafree import parallel
from datafree.condensation.experts import empty_network, find_experts, needed_experts, planned_records
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.condensation.unrolling import Batch, Unrolled, attach, quick, unroll
from datafree.config import TrajectoryOptions
from datafree.data.augmentation import Draws, apply, draw
from datafree.training import TermError


class MTT:
    Config = TrajectoryOptions
    LOOP: Mapping[str, Any] = {
        "init": "real",
        "factor": 1,
        "augmentation": "color_crop_cutout_flip_scale_rotate",
        "optimizer": "sgd",
        "image_lr": 100.0,
        "image_momentum": 0.5,
    }
    READS: tuple[str, ...] = ("augmentation", "augmentation_mode", "label_lr", "zca")

    def __init__(self, setting: Setting, config: TrajectoryOptions) -> None:
        self.setting, self.config = setting, config
        if (records := planned_records(setting, config)) is not None:
            last_start(records, config)  # told before they are made
        self.experts = find_experts(setting, config)
        self.network, self.passes = empty_network(setting), quick(setting)
        self.last_start = last_start(self.experts.records, config)

    @staticmethod
    def beforehand(setting: Setting, config: TrajectoryOptions) -> list[str]:
        line, records = needed_experts(setting, config)
        last_start(records, config)
        return [line]

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        return {"trajectory": self.distance(synthetic, self.starts())}

    def starts(self) -> tuple[int, int]:
        """The first and the last record from which a student starts."""
        return 0, self.last_start

    def distance(
        self,
        synthetic: Synthetic,
        starts: tuple[int, int],
        *,
        exact: bool = True,
        kept: Callable[[Unrolled], Unrolled] = lambda found: found,
    ) -> Tensor:
        """L of this process's students over all `experts_per_step` of them, a scalar.

        Args:
            synthetic: what is learned.
            starts: the first and the last record from which a student may start.
            exact: False for TESLA's gradient.
            kept: what of a student's loss and gradients is used.

        Raises:
            TermError: a student diverges: the run cannot go on, nor from an earlier step.
        """
        config = self.config
        images, labels, rate = synthetic.decoded(), synthetic.targets(), synthetic.rate
        value = torch.zeros((), device=images.device)
        totals = [torch.zeros_like(t, dtype=images.dtype) for t in (images, labels, rate)]
        for number in range(config.experts_per_step):
            # Every process draws alike and takes its own experts.
            expert, start = self._draw(self.experts.count), self._draw(*starts)
            batches = self._batches(images)
            if number % parallel.world_size() != parallel.rank():
                continue
            begin, end = self.experts.at(expert, start, start + config.expert_span, device=images.device)
            found = kept(
                unroll(self.network, begin, end, images, labels, rate, batches, exact=exact, passes=self.passes)
            )
            value += found.value.detach() / config.experts_per_step
            for total, part in zip(totals, found[1:], strict=True):
                total += part / config.experts_per_step
        if not bool(value.isfinite()):
            raise TermError(
                f"the term 'trajectory' became {float(value)} at step {self.setting.clock.step}: a student diverged, "
                "and would again on resuming: start anew with a lower --rate or --image-lr, or fewer --inner-steps"
            )
        # A roll-out that diverges has a gradient for the rate beyond all measure: its logarithm takes 1 at most.
        # The bound holds for the sum over processes, of which each then gives its share.
        most, processes = 1 / rate.detach(), parallel.world_size()
        whole = processes * parallel.mean_over_processes(totals[2])
        totals[2] = whole.clamp(-most, most) / processes
        pairs = zip((images, labels, rate), totals, strict=True)
        return attach(value, *((t, g) for t, g in pairs if t.is_floating_point()))

    def _draw(self, low: int, high: int | None = None) -> int:
        """A number from `low` to `high`, or below `low` where there is one bound."""
        bounds = (0, low) if high is None else (low, high + 1)
        return int(torch.randint(*bounds, (1,), generator=self.setting.rng, device=self.setting.device))

    def _batches(self, images: Tensor) -> list[Batch]:
        """The student's batches: permutations of the set cut into pieces, as published; an image has its own draw."""
        setting, size = self.setting, min(self.config.batch_synthetic, len(images))
        pieces: list[Tensor] = []
        while len(pieces) < self.config.inner_steps:
            order = torch.randperm(len(images), generator=setting.rng, device=setting.device)
            pieces += torch.split(order, size)
        return [self._batch(rows) for rows in pieces[: self.config.inner_steps]]

    def _batch(self, rows: Tensor) -> Batch:
        augmentation = self.setting.augmentation
        drawn: Draws | None = None
        if augmentation is not None:
            drawn = draw(augmentation, len(rows), self.setting.rng)

        def make(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            seen = images[rows]
            if augmentation is not None and drawn is not None:
                seen = apply(seen, drawn, augmentation)
            return seen, labels[rows]

        return make

    def advance(self, synthetic: Synthetic) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"experts": self.experts.key, "count": self.experts.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if (state["experts"], state["count"]) != (self.experts.key, self.experts.count):
            raise ValueError("the experts are not those that the run began with: give back their folder, or start anew")


def last_start(records: int, config: TrajectoryOptions) -> int:
    """The last record a student may start from. Raises ValueError where the experts are too short."""
    most = records - config.expert_span
    if most < 0 or (config.max_start or 0) > most:
        raise ValueError(
            f"an expert's {records} records are too few for --max-start {config.max_start or 0} and --expert-span "
            f"{config.expert_span}: give smaller ones, or longer experts"
        )
    return min(most, records // 2) if config.max_start is None else config.max_start
