"""CAFE: each class's mean maps meet the real ones' in all layers, and synthetic centres classify real features.

    L = Σ_l w_l Σ_c || E f_l(x_c) - E f_l(s_c) ||² + Σ_c || μ_c(x) - μ_c(s) ||²
        + discrimination Σ_i CE(f(x_i) μ(s)ᵀ, y_i)

f_l are the maps behind activation l, the last f_l and f are the embedding, μ_c(s) the mean embedding of a class.
The network is trained on the set between the steps, for as long as the accuracy on real images stands still, and a new
one is taken when the accuracy stands still from step to step (the paper's dynamic bi-level optimisation).

Source: Wang et al. 2022, "CAFE: learning to condense dataset by aligning features", sec. 3, with the sums, the weights
and the rule for the loops of its release. Where our defaults differ: docs/condensation/cafe.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from datafree import losses, parallel
from datafree.condensation.networks import augmented_pairs, count_layers, embed_layers
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import RealBatch
from datafree.data.tensors import to_float
from datafree.evaluation.networks import add_gradients, forward_of
from datafree.fields import not_negative, positive
from datafree.models.batches import in_batches, mixes


@dataclass(frozen=True, kw_only=True)
class CAFEConfig:
    real_batch: RealBatch = 64
    shallow: Annotated[float, "weight of all maps but the last"] = 0.1
    discrimination: Annotated[float, "weight of the real features' cross-entropy with the synthetic centres"] = 0.01
    check_batch: Annotated[int, "real images a class on which the network's accuracy is watched"] = 16
    window: Annotated[int, "accuracies that are compared, of steps and of epochs"] = 10
    renew_below: Annotated[float, "a new network where the accuracies of the last steps differ less"] = 0.04
    train_until: Annotated[float, "training on the set ends where the accuracies of the last epochs differ more"] = 0.03
    most_epochs: Annotated[int, "epochs of training on the set between two steps, at most"] = 50

    def __post_init__(self) -> None:
        positive(self, "real_batch", "check_batch", "window", "most_epochs")
        not_negative(self, "shallow", "discrimination", "renew_below", "train_until")


class CAFE:
    """Every process computes everything: the last term knows all classes."""

    Config = CAFEConfig
    LOOP: Mapping[str, Any] = {
        "init": "real",
        "factor": 1,
        "augmentation": "none",
        "nets": "reused",
        "optimizer": "sgd",
        "image_lr": 0.01,
        "image_momentum": 0.5,
        "schedule": "cosine",
    }
    READS: tuple[str, ...] = ("augmentation", "augmentation_mode", "zca")
    NET_RATE, BATCH = 0.01, 256

    def __init__(self, setting: Setting, config: CAFEConfig) -> None:
        count_layers(setting)  # where there are none, it says so
        self.setting, self.config = setting, config
        self.network: nn.Module | None = None
        self.accuracies: list[float] = []
        self.check: Tensor | None = None

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, config, classes = self.setting, self.config, self.setting.domain.classes
        network = self._current().requires_grad_(False)
        real, made, labels = augmented_pairs(setting, synthetic, config.real_batch, range(classes))
        real_labels = torch.arange(classes, device=setting.device).repeat_interleave(config.real_batch)
        with torch.no_grad():
            theirs, real_features = self._real_means(network, real)
        maps, features = embed_layers(setting, network, made, _flat)
        ours = [losses.class_means(x, labels, classes) for x in (*maps, features)]
        weights = [config.shallow] * (len(maps) - 1) + [1.0, 1.0]
        share = 1 / parallel.world_size()
        return {
            "layers": share * losses.layer_alignment(theirs, ours, weights),
            "centres": share * losses.mean_embedding(theirs[-1], ours[-1]),
            "discrimination": share
            * config.discrimination
            * losses.discrimination(real_features, real_labels, ours[-1]),
        }

    def _real_means(self, network: nn.Module, real: Tensor) -> tuple[list[Tensor], Tensor]:
        """Class means (K, D_l) of the maps and of the embedding, and the embeddings (N, D)."""
        setting, batch = self.setting, self.config.real_batch
        if mixes(network):
            maps, features = embed_layers(setting, network, real, _flat)
            return [x.view(-1, batch, x.shape[1]).mean(1) for x in (*maps, features)], features
        # The maps of 640 images of 28 x 28 take half a gigabyte: they are summed as they come, class by class.
        sums, rows = [], []
        for part in torch.split(real, batch):
            maps, features = embed_layers(setting, network, part, _summed)
            sums.append([x.sum(0) for x in maps])
            rows.append(features)
        means = [torch.stack(layer) / batch for layer in zip(*sums, strict=True)]
        features = torch.cat(rows)
        return [*means, features.view(-1, batch, features.shape[1]).mean(1)], features

    def advance(self, synthetic: Synthetic) -> None:
        config = self.config
        self.accuracies.append(self._accuracy())
        if len(self.accuracies) == config.window:
            if max(self.accuracies) - min(self.accuracies) < config.renew_below:
                self.network, self.check, self.accuracies = None, None, []
                return
            self.accuracies.pop(0)
        seen: list[float] = []
        for _ in range(config.most_epochs):
            self._epoch(synthetic)
            seen = [*seen, self._accuracy()][-config.window :]
            if len(seen) == config.window and max(seen) - min(seen) > config.train_until:
                break

    def _current(self) -> nn.Module:
        if self.network is None:
            setting, rng = self.setting, self.setting.rng
            self.network = setting.new_network()
            rows = [_some(rows, self.config.check_batch, rng) for rows in setting.real.rows]
            self.check = torch.cat(rows)
        return self.network

    @torch.no_grad()
    def _accuracy(self) -> float:
        """On the real images that were drawn with this network: a change is the network's, not the draw's."""
        network, real = self._current(), self.setting.real
        assert self.check is not None
        logits = forward_of(network, self.setting.precision)(to_float(real.x[self.check]))
        return float((logits.argmax(1) == real.y[self.check]).float().mean())

    def _epoch(self, synthetic: Synthetic) -> None:
        """One pass of SGD over the set as it stands."""
        setting, network = self.setting, self._current().requires_grad_(True)
        forward = forward_of(network, setting.precision)
        images, targets = synthetic.decoded().detach(), synthetic.targets().detach()
        if targets.is_floating_point():
            targets = targets.softmax(1)
        optimizer = torch.optim.SGD(network.parameters(), self.NET_RATE)
        order = torch.randperm(len(images), generator=setting.rng, device=setting.device)
        for rows in in_batches(order, self.BATCH, network):
            add_gradients(network, forward, setting.augment_each(images[rows]), targets[rows])
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        network = self.network
        return {
            "network": None if network is None else {k: v.clone() for k, v in network.state_dict().items()},
            "check": self.check,
            "accuracies": list(self.accuracies),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network = None
        if state["network"] is not None:
            self.network = self.setting.new_network()
            self.network.load_state_dict(state["network"])
        self.check, self.accuracies = state["check"], list(state["accuracies"])


def _flat(maps: Tensor) -> Tensor:
    return maps.flatten(1)


def _summed(maps: Tensor) -> Tensor:
    """Over the images, (1, C H W)."""
    return maps.sum(0, keepdim=True).flatten(1)


def _some(rows: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """n of the rows at random, or all of them where there are fewer."""
    return rows[torch.randperm(len(rows), generator=rng, device=rows.device)[:n]]
