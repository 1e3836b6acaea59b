"""FRePo: kernel ridge regression on a network's features predicts the real images' labels from the synthetic ones.

    Ŷ_t = F_t F_sᵀ (F_s F_sᵀ + r tr(F_s F_sᵀ)/M I)⁻¹ Y_s
    L = mean_n ½ ||ŷ_n - y_n||² - mean_m min(largest - second largest of Y_s,m, 1/C)

F are the inputs of the last layer, of a network drawn from a pool. After each step the network that was used takes one
step of regression on the set and returns to the pool; it is renewed after `--net-steps` of them. Targets are
one-hot - 1/C; the labels Y_s are learned from there.

Source: Zhou, Nezhadarya & Ba 2022, "Dataset distillation using neural feature regression" (NeurIPS), eqs. 4-5, alg. 1;
the margin and the constants are the release's. Where we differ: docs/condensation/frepo.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses, parallel
from datafree.condensation.networks import check_embeddings, embed
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.evaluation.networks import add_gradients, forward_of
from datafree.fields import positive
from datafree.losses.precision import raised


@dataclass(frozen=True, kw_only=True)
class FRePoConfig:
    target_batch: Annotated[int, "real images a step whose labels are predicted"] = 256
    regularisation: Annotated[float, "ridge, in parts of the kernel's mean diagonal"] = 1e-6
    net_lr: Annotated[float, "Adam's rate of the pool's networks"] = 3e-4
    net_batch: Annotated[int, "synthetic images a network step, at most"] = 500
    mirror: Annotated[bool | None, "mirrored prototypes beside the others; default: in colour where labels allow"] = (
        None
    )

    def __post_init__(self) -> None:
        positive(self, "target_batch", "regularisation", "net_lr", "net_batch")


class FRePo:
    Config = FRePoConfig
    LOOP: Mapping[str, Any] = {
        "init": "real",
        "labels": "learned",
        "net_pool": 10,
        "net_steps": 100,
        "optimizer": "adam",
        "image_lr": 1e-2,
        "label_lr": 3e-3,
        "schedule": "cosine",
    }
    # Four small images in the place of a large one: better at 1 image a class, no better at 10 (docs page).
    FEW_IMAGES: Mapping[str, Any] = {"factor": 2}
    READS: tuple[str, ...] = ("augmentation", "augmentation_mode", "label_lr", "net_pool", "net_steps", "zca")
    SOFT = False  # its labels are no logits before the end, so that no network's can stand in

    def __init__(self, setting: Setting, config: FRePoConfig) -> None:
        check_embeddings(setting)
        self.setting, self.config = setting, config
        domain = setting.domain
        self.mirror = config.mirror if config.mirror is not None else domain.flip and domain.shape[0] == 3
        self.pool = [setting.new_network() for _ in range(setting.net_pool)]
        self.optimizers = [self._optimizer(network) for network in self.pool]
        # Ages are staggered by counting, as in the release, so that networks are not all renewed together.
        self.ages = [index * setting.net_steps // setting.net_pool for index in range(setting.net_pool)]
        self.current = self._draw()

    def first_labels(self, images: Tensor, classes: Tensor) -> Tensor:
        """What is learned in the place of logits while the set is condensed: one-hot - 1/C."""
        return self._centred(classes)

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, config = self.setting, self.config
        network = self.pool[self.current].requires_grad_(False).eval()
        images, classes = map(parallel.shard, setting.real.batch(config.target_batch, setting.rng))
        with torch.no_grad():
            theirs = embed(setting, network, images)
        made, labels = synthetic.decoded(), self._labels(synthetic)
        margin = losses.label_margin(labels, setting.domain.classes)
        if self.mirror:
            made, labels = torch.cat([made, made.flip(3)]), torch.cat([labels, labels])
        ours = embed(setting, network, made)
        error = losses.kernel_ridge_regression(theirs, self._centred(classes), ours, labels, config.regularisation)
        processes = parallel.world_size()
        return {"regression": error / processes, "margin": margin / processes}

    def advance(self, synthetic: Synthetic) -> None:
        setting, index = self.setting, self.current
        if self.ages[index] >= setting.net_steps:
            self.pool[index] = setting.new_network()
            self.optimizers[index] = self._optimizer(self.pool[index])
            self.ages[index] = 0
        else:
            self._train(index, synthetic)
            self.ages[index] += 1
        self.current = self._draw()

    def finish(self, synthetic: Synthetic) -> None:
        """Labels as logits, whose softmax is the distribution nearest to Y + 1/C (see `nearest_distribution`)."""
        if synthetic.label_logits is not None:
            wanted = synthetic.label_logits.detach() + 1 / self.setting.domain.classes
            synthetic.label_logits = nn.Parameter(nearest_distribution(wanted).clamp_min(LEAST).log(), False)

    def state_dict(self) -> dict[str, Any]:
        return {
            "pool": [network.state_dict() for network in self.pool],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ages": list(self.ages),
            "current": self.current,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for network, held in zip(self.pool, state["pool"], strict=True):
            network.load_state_dict(held)
        for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
        self.ages, self.current = list(state["ages"]), int(state["current"])

    def _train(self, index: int, synthetic: Synthetic) -> None:
        setting, network = self.setting, self.pool[index].requires_grad_(True).train()
        images, labels = synthetic.decoded().detach(), self._labels(synthetic).detach()
        if len(images) > self.config.net_batch:
            rows = torch.randperm(len(images), generator=setting.rng, device=setting.device)[: self.config.net_batch]
            images, labels = images[rows], labels[rows]
        images = setting.augment_each(images)
        forward = forward_of(network, setting.precision)
        images = images.contiguous(memory_format=torch.channels_last)
        add_gradients(network, forward, images, labels, _squared_errors)
        self.optimizers[index].step()
        self.optimizers[index].zero_grad()

    def _labels(self, synthetic: Synthetic) -> Tensor:
        return self._centred(synthetic.decoded_classes) if synthetic.label_logits is None else synthetic.label_logits

    def _centred(self, classes: Tensor) -> Tensor:
        return F.one_hot(classes, self.setting.domain.classes).float() - 1 / self.setting.domain.classes

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), self.config.net_lr)

    def _draw(self) -> int:
        setting = self.setting
        return int(torch.randint(setting.net_pool, (), generator=setting.rng, device=setting.device))


def _squared_errors(given: Tensor, wanted: Tensor) -> Tensor:
    return (raised(given) - wanted).square().sum() / 2


LEAST = 1e-4  # probability, so that its logarithm is finite


def nearest_distribution(rows: Tensor) -> Tensor:
    """Of all probabilities, those nearest to each row (N, C) in squares: max(row - τ, 0) that sums to 1.

    The order of a row's entries stays, and so does its largest. Source: Duchi et al. 2008, fig. 1.
    """
    descending = rows.sort(1, descending=True).values
    surplus = (descending.cumsum(1) - 1) / torch.arange(1, rows.shape[1] + 1, device=rows.device)
    kept = (descending > surplus).sum(1, keepdim=True)
    return (rows - surplus.gather(1, kept - 1)).clamp_min(0)
