"""What dc, dsa and idc share: the gradients' distance over all classes, and a network that learns from the set."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datafree import losses
from datafree.condensation.class_gradients import class_gradients, settle_norms, train_step
from datafree.condensation.networks import Networks
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import GradientOptions
from datafree.models.batches import in_batches

# (outer, inner) by images a class, as published.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
EPOCH_BATCH = 256
NORM_IMAGES = 16  # real images a class, for the statistics of batch norms


def loops(images: int, config: GradientOptions) -> tuple[int, int]:
    """Matches with a network and epochs between them, for so many images a class."""
    outer, inner = LOOPS.get(images, (images, max(1, round(500 / images))))
    return config.outer or outer, config.inner or inner


class Learner:
    """A network that serves `outer` matches, trained on the set for `inner` epochs in between.

    It begins with random weights, or as a copy of one of the loop's networks (`--nets`).

    Args:
        setting: makes the networks.
        config: how long and at which rate they are trained.
        augmented: whether they are trained on augmented images, each with a draw of its own.
    """

    def __init__(self, setting: Setting, config: GradientOptions, *, augmented: bool = False) -> None:
        self.setting, self.config, self.augmented = setting, config, augmented
        self.networks = Networks(setting)
        self.network: nn.Module | None = None
        self.matches = 0

    def take(self) -> nn.Module:
        """The network of this match."""
        if self.network is None:
            self.network, self.matches = self._begun(), 0
        return self.network

    def _begun(self) -> nn.Module:
        if self.setting.nets == "fresh":
            return self.setting.new_network()
        return copy.deepcopy(self.networks.take()).requires_grad_(True)

    def advance(self, synthetic: Synthetic) -> None:
        outer, inner = loops(round(len(synthetic.labels) / self.setting.domain.classes), self.config)
        self.matches += 1
        if self.matches >= outer:
            self.network = None
            self.networks.advance()
        elif self.network is not None:
            self._train(self.network, synthetic, inner)

    def _train(self, network: nn.Module, synthetic: Synthetic, epochs: int) -> None:
        setting = self.setting
        images, targets = synthetic.decoded().detach(), synthetic.targets().detach()
        optimizer = torch.optim.SGD(network.train().parameters(), self.config.net_lr)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=setting.rng, device=setting.device)
            for rows in in_batches(order, EPOCH_BATCH, network):
                seen = setting.augment_each(images[rows]) if self.augmented else images[rows]
                with setting.cast():
                    train_step(network, optimizer, seen, targets[rows])

    def state_dict(self) -> dict[str, Any]:
        network = None if self.network is None else self.network.state_dict()
        return {"network": network, "matches": self.matches, "networks": self.networks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network, self.matches = None, int(state["matches"])
        if "networks" in state:  # a checkpoint of an earlier version has none
            self.networks.load_state_dict(state["networks"])
        if state["network"] is not None:
            self.network = self.setting.new_network()
            self.network.load_state_dict(state["network"])


def match(
    network: nn.Module,
    setting: Setting,
    synthetic: Synthetic,
    real_batch: int,
    metric: str,
    most: int | None = None,
) -> Tensor:
    """The sum over this process's classes of the gradients' distances, a scalar.

    Args:
        network: from images in [0, 1] to logits. Its batch norms are frozen.
        setting: gives the real images, the augmentation (a draw a class, for both batches) and the random numbers.
        synthetic: what is learned. Learned labels take the place of the class in its images' cross-entropy.
        real_batch: real images a class.
        metric: of `losses.gradient_distance`.
        most: synthetic images a class, where it has more, drawn at random.
    """
    _settle(network, setting)
    logits = synthetic.label_logits if "labels" in synthetic.parameters() else None
    own, real, made, soft = setting.own_classes(), [], [], []
    for label in range(setting.domain.classes):
        theirs, ours = setting.real.of_class(label, real_batch, setting.rng), synthetic.of_class(label)
        learned = None if logits is None else logits[synthetic.decoded_classes == label]
        if most is not None and len(ours) > most:
            rows = torch.randperm(len(ours), generator=setting.rng, device=setting.device)[:most]
            ours, learned = ours[rows], None if learned is None else learned[rows]
        pair = setting.augment_alike(theirs, ours)
        if label in own:
            real.append(pair[0])
            made.append(pair[1])
            if learned is not None:
                soft.append(learned)
    if not own:  # more processes than classes
        return 0 * torch.stack([parameter.sum() for parameter in synthetic.parameters().values()]).sum()
    with setting.cast():
        targets = class_gradients(network, real, own, metric)
        gradients = class_gradients(network, made, own, metric, soft=soft or None, create_graph=True)
    distances = [losses.gradient_distance(a, b, metric) for a, b in zip(targets, gradients, strict=True)]
    return torch.stack(distances).sum()


def _settle(network: nn.Module, setting: Setting) -> None:
    """Freezes batch norms at the statistics of some real images of all classes; draws only where there are such."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        classes = range(setting.domain.classes)
        real = [setting.real.of_class(label, NORM_IMAGES, setting.rng) for label in classes]
        with setting.cast():
            settle_norms(network, torch.cat(real))
