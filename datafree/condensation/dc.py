"""DC and DSA: the weights' gradient on a class's synthetic images meets that on its real ones, as a network learns.

    L = Σ_c D(∇_θ CE(net(A(x_c)), c), ∇_θ CE(net(A(s_c)), c)),    D = Σ over layers and rows of 1 - cosine

Sources: DC, Zhao, Mopuri & Bilen 2021, "Dataset condensation with gradient matching"; DSA, Zhao & Bilen
2021, "Dataset condensation with differentiable siamese augmentation". A network with random weights is matched
`outer` times, and trained on the set for `inner` epochs in between. One step on all images follows each match. DSA is
DC with siamese augmentation, also where the network is trained. Where we differ: docs/condensation/dc.md and dsa.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datafree import losses
from datafree.condensation.class_gradients import class_gradients, settle_norms, train_step
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import GradientOptions


@dataclass(frozen=True, kw_only=True)
class DCConfig(GradientOptions):
    pass


@dataclass(frozen=True, kw_only=True)
class DSAConfig(GradientOptions):
    pass


# (outer, inner) by images a class, as published.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
EPOCH_BATCH = 256
NORM_IMAGES = 16  # real images a class, for the statistics of batch norms


def loops(images: int, config: GradientOptions) -> tuple[int, int]:
    """Matches with a network and epochs between them, for so many images a class."""
    outer, inner = LOOPS.get(images, (images, max(1, round(500 / images))))
    return config.outer or outer, config.inner or inner


class DC:
    Config: type[GradientOptions] = DCConfig
    LOOP: Mapping[str, Any] = {
        "init": "real",
        "factor": 1,
        "augmentation": "none",
        "optimizer": "sgd",
        "image_lr": 0.01,
        "image_momentum": 0.5,
    }
    READS: tuple[str, ...] = ("augmentation", "augmentation_mode", "zca")
    AUGMENTED_TRAINING = False

    def __init__(self, setting: Setting, config: GradientOptions) -> None:
        self.setting, self.config = setting, config
        self.network: nn.Module | None = None
        self.matches = 0

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, config = self.setting, self.config
        if self.network is None:
            self.network, self.matches = setting.new_network(), 0
        settle(self.network, setting)
        return {"match": match(self.network, setting, synthetic, config.real_batch, config.metric)}

    def advance(self, synthetic: Synthetic) -> None:
        outer, inner = loops(round(len(synthetic.labels) / self.setting.domain.classes), self.config)
        self.matches += 1
        if self.matches >= outer:
            self.network = None
        elif self.network is not None:
            self._train(self.network, synthetic, inner)

    def _train(self, network: nn.Module, synthetic: Synthetic, epochs: int) -> None:
        setting = self.setting
        images, targets = synthetic.decoded().detach(), synthetic.targets().detach()
        optimizer = torch.optim.SGD(network.train().parameters(), self.config.net_lr)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=setting.rng, device=setting.device)
            for rows in torch.split(order, EPOCH_BATCH):
                seen = setting.augment_each(images[rows]) if self.AUGMENTED_TRAINING else images[rows]
                with setting.cast():
                    train_step(network, optimizer, seen, targets[rows])

    def state_dict(self) -> dict[str, Any]:
        network = None if self.network is None else self.network.state_dict()
        return {"network": network, "matches": self.matches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network, self.matches = None, int(state["matches"])
        if state["network"] is not None:
            self.network = self.setting.new_network()
            self.network.load_state_dict(state["network"])


class DSA(DC):
    Config = DSAConfig
    LOOP: Mapping[str, Any] = {**DC.LOOP, "augmentation": "color_crop_cutout_flip_scale_rotate"}
    AUGMENTED_TRAINING = True


def settle(network: nn.Module, setting: Setting) -> None:
    """Freezes batch norms at the statistics of some real images of all classes; draws only where there are such."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        classes = range(setting.domain.classes)
        real = [setting.real.of_class(label, NORM_IMAGES, setting.rng) for label in classes]
        with setting.cast():
            settle_norms(network, torch.cat(real))


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
        network: from images in [0, 1] to logits.
        setting: gives the real images, the augmentation (a draw a class, for both batches) and the random numbers.
        synthetic: what is learned.
        real_batch: real images a class.
        metric: of `losses.gradient_distance`.
        most: synthetic images a class, where it has more, drawn at random.
    """
    own, real, made = setting.own_classes(), [], []
    for label in range(setting.domain.classes):
        theirs, ours = setting.real.of_class(label, real_batch, setting.rng), synthetic.of_class(label)
        if most is not None and len(ours) > most:
            ours = ours[torch.randperm(len(ours), generator=setting.rng, device=setting.device)[:most]]
        pair = setting.augment_alike(theirs, ours)
        if label in own:
            real.append(pair[0])
            made.append(pair[1])
    if not own:  # more processes than classes
        return 0 * synthetic.images.sum()
    with setting.cast():
        targets = class_gradients(network, real, own, metric)
        gradients = class_gradients(network, made, own, metric, create_graph=True)
    distances = [losses.gradient_distance(a, b, metric) for a, b in zip(targets, gradients, strict=True)]
    return torch.stack(distances).sum()
