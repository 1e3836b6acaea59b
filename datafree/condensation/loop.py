"""The one loop of condensation: an objective's terms; a step on images, labels, rate; projection and average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from datafree import parallel
from datafree.condensation.synthetic import Synthetic
from datafree.config import CondenseConfig
from datafree.training import Clock, TermError, cosine


class Objective(Protocol):
    """See `datafree.condensation`."""

    def terms(self, synthetic: Synthetic) -> Mapping[str, Tensor]: ...
    def advance(self, synthetic: Synthetic) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class ImageTrainer:
    """Steps on a synthetic set; stands where `training.run` expects a trainer.

    Args:
        synthetic: changed in place.
        config: with every field resolved.
    """

    def __init__(self, synthetic: Synthetic, config: CondenseConfig) -> None:
        assert config.image_lr is not None and config.image_momentum is not None and config.label_lr is not None
        self.synthetic, self.config = synthetic, config
        self.parameters = synthetic.parameters()
        self.rates = {"images": config.image_lr, "labels": config.label_lr, "rate": RATE_LR}
        groups = [{"params": [p], "lr": self.rates[name], "name": name} for name, p in self.parameters.items()]
        if config.optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999))
        elif config.optimizer == "adamw":
            for group in groups:
                group["weight_decay"] = IMAGE_DECAY if group["name"] == "images" else 0.0
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        else:
            for group in groups:
                group["momentum"] = config.image_momentum if group["name"] == "images" else LABEL_MOMENTUM
            self.optimizer = torch.optim.SGD(groups)
        self.average = synthetic.images.detach().clone() if config.image_ema else None

    def step(self, terms: Mapping[str, Tensor], fraction: float) -> None:
        """One step on the sum of the terms. Each process gives its share of the sum: gradients are added up.

        Raises:
            TermError: a rate is too large for single precision.
        """
        factor = cosine(fraction) if self.config.schedule == "cosine" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["name"]] * factor
        torch.autograd.backward(torch.stack(list(terms.values())).sum(), inputs=list(self.parameters.values()))
        sum_gradients(list(self.parameters.values()))
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            rates = " or ".join(f"{FLAGS[name]} ({self.rates[name]:g})" for name in self.parameters if name != "rate")
            raise TermError(f"a step became infinite: give a lower {rates}") from error
        self.optimizer.zero_grad()
        if self.config.clip == "step":
            self.synthetic.project()
        if self.average is not None:
            self.average.lerp_(self.synthetic.images.detach(), 1 - self.config.image_ema)

    @torch.no_grad()
    def settle(self) -> None:
        """Makes the synthetic set's images what is kept of them: the result, within [0, 1]. No step follows."""
        self.synthetic.images.copy_(self.images)
        self.synthetic.project()

    @property
    def images(self) -> Tensor:
        """The result: the images, or their moving average."""
        return self.synthetic.images.detach() if self.average is None else self.average

    def state_dict(self) -> dict[str, Any]:
        return {
            "synthetic": self.synthetic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.synthetic.load_state_dict(state["synthetic"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.copy_(state["average"])


# What a person lowers where one of what is learned runs away.
FLAGS = {"images": "--image-lr", "labels": "--label-lr", "rate": "--rate"}
RATE_LR = 1e-2  # for the logarithm of a learned inner rate
LABEL_MOMENTUM = 0.9
IMAGE_DECAY = 0.01  # AdamW's, as torch has it: a step takes rate * decay of each pixel, towards black; labels have none


def sum_gradients(parameters: list[Any]) -> None:
    """Adds the processes' gradients up; where a process has none for a parameter, it counts as zero."""
    if parallel.world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def check_finite(learned: Mapping[str, Tensor], step: int) -> None:
    """Raises TermError, which names the rate to lower, unless all of these are finite: images, labels, rate."""
    for name, tensor in learned.items():
        if not bool(tensor.isfinite().all()):
            raise TermError(f"the {name} became NaN or infinite by step {step}: give a lower {FLAGS[name]}")


class Steps:
    """An objective as a `training.Source`."""

    def __init__(self, objective: Objective, synthetic: Synthetic) -> None:
        self.objective, self.synthetic = objective, synthetic

    def advance(self, clock: Clock) -> Mapping[str, float]:
        if clock.step:
            self.objective.advance(self.synthetic)
        return {}

    def terms(self, clock: Clock) -> Mapping[str, Tensor]:
        return self.objective.terms(self.synthetic)
