"""SRe²L: a network with batch norm is trained on the real data (squeeze), inverted (recover), and asked (relabel).

    L = CE(t(A(s)), y) + bn Σ_l (||σ²_l - σ̂²_l|| + ||μ_l - μ̂_l||) + tv TV(A(s)) + l2 mean ||A(s)||

t is the trained network; the sum runs over its batch-norm layers, the first counts `first_bn` times; σ̂² and μ̂ are
those of a batch that holds as many images of each class. These are DeepInversion's terms (Yin et al. 2020) without its
student. At the end each image gets t's logits as its label.

Source: Yin, Xing & Shen 2023, "Squeeze, recover and relabel" (NeurIPS). Where our defaults differ:
docs/condensation/sre2l.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses, parallel
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.condensation.trained import (
    in_batches,
    is_checkpoint,
    loaded_network,
    needed_network,
    trained_network,
)
from datafree.condensation.unrolling import attach
from datafree.fields import not_negative, positive
from datafree.losses.precision import raised
from datafree.models import build_model
from datafree.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class SRe2LConfig:
    teacher: Annotated[
        str, "network with batch norm that is trained on the real data and inverted; or a trained one: a file, a run"
    ] = "resnet8"
    teacher_arch: Annotated[str | None, "architecture of a checkpoint that does not say its own"] = None
    bn: Annotated[float, "weight of the distance from the batch-norm statistics"] = 1.0
    first_bn: Annotated[float, "weight of the first batch-norm layer among the others"] = 10.0
    tv: Annotated[float, "weight of the total variation of normalised images"] = 0.003
    l2: Annotated[float, "weight of the normalised images' mean norm"] = 0.0
    recover_batch: Annotated[int, "images whose statistics are taken together"] = 100

    def __post_init__(self) -> None:
        not_negative(self, "bn", "first_bn", "tv", "l2")
        positive(self, "recover_batch")


class SRe2L:
    Config = SRe2LConfig
    LOOP: Mapping[str, Any] = {
        "init": "real",
        "labels": "soft",
        "augmentation": "crop_flip",
        "augmentation_mode": "all",
        "optimizer": "adam",
        "image_lr": 0.02,
        "schedule": "cosine",
    }
    READS: tuple[str, ...] = ("augmentation", "augmentation_mode")
    NEEDS_NETWORK = False

    def __init__(self, setting: Setting, config: SRe2LConfig) -> None:
        self.setting, self.config = setting, config
        domain = setting.domain
        network = loaded_network(setting, config.teacher, config.teacher_arch)
        plain = build_model(config.teacher, shape=domain.shape, classes=domain.classes) if network is None else network
        if not Teacher(plain, domain.mean, domain.std).has_statistics:
            raise ValueError(f"--teacher {config.teacher} has no batch norm: take one that has, such as resnet8")
        network = trained_network(setting, config.teacher) if network is None else network
        mean, std = (network.get_buffer(name).flatten().tolist() for name in ("mean", "std"))
        self.teacher = Teacher(network.network, mean, std)
        self.teacher.classifier.to(setting.device)

    @staticmethod
    def beforehand(setting: Setting, config: SRe2LConfig) -> list[str]:
        return [] if is_checkpoint(config.teacher) else [needed_network(setting, config.teacher)]

    def first_labels(self, images: Tensor, classes: Tensor) -> Tensor:
        """The teacher's logits (N, classes) of images (N, C, H, W) in [0, 1]."""

        def logits(part: Tensor) -> Tensor:
            with self.setting.cast():
                return self.teacher(part)

        return in_batches(logits, images)

    def advance(self, synthetic: Synthetic) -> None:
        pass

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        config, classes = self.config, synthetic.decoded_classes
        (views,) = self.setting.augment_alike(synthetic.decoded())
        batches = one_of_each(classes, config.recover_batch)
        gradient = torch.zeros_like(views)
        sums: dict[str, list[Tensor]] = {}
        for rows in batches:  # each one's gradient at once, so that memory holds the graph of one batch
            own = views.detach()[rows].requires_grad_()
            terms = self.recover_terms(own, classes[rows])
            (gradient[rows],) = torch.autograd.grad(torch.stack(list(terms.values())).sum() / len(batches), own)
            for name, term in terms.items():
                sums.setdefault(name, []).append(term.detach())
        means = {name: torch.stack(terms).sum() / len(batches) for name, terms in sums.items()}
        return means | {"cross_entropy": attach(means["cross_entropy"], (views, gradient))}

    def recover_terms(self, views: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """This process's share of the weighted terms of a batch (N, C, H, W) in [0, 1] with class numbers (N,)."""
        config, processes = self.config, parallel.world_size()
        split = len(views) % processes == 0  # else every process takes the whole batch, and statistics agree as well
        rows = torch.arange(len(views), device=views.device)
        own = parallel.shard(rows) if split else rows
        images = views[own].contiguous(memory_format=torch.channels_last)
        with self.setting.cast():
            seen = self.teacher.look(images, statistics=True)
        total = F.cross_entropy(raised(seen.logits), classes[own], reduction="sum")
        terms = {"cross_entropy": total / len(views) / (1 if split else processes)}
        if config.bn:
            terms["bn"] = config.bn / processes * losses.batch_norm_statistics(seen.statistics, config.first_bn)
        normalised = self.teacher.classifier
        white = (views - normalised.get_buffer("mean")) / normalised.get_buffer("std")
        if config.tv:
            terms["tv"] = config.tv / processes * losses.total_variation(white, "l2")
        if config.l2:
            terms["l2"] = config.l2 / processes * losses.image_norm(white, per_image=True)
        return terms

    def finish(self, synthetic: Synthetic) -> None:
        """Relabels: the teacher's logits of the images as they are kept."""
        if synthetic.label_logits is not None:
            images = synthetic.decoded().detach().clamp(0, 1)
            synthetic.label_logits = nn.Parameter(self.first_labels(images, synthetic.decoded_classes), False)

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.network.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher.network.load_state_dict(state["teacher"])


def one_of_each(classes: Tensor, most: int) -> tuple[Tensor, ...]:
    """Rows of equal batches of at most `most` images: first one of each class, then another of each, and so on."""
    place = (F.one_hot(classes).cumsum(0) - 1).gather(1, classes[:, None]).squeeze(1)
    return place.argsort(stable=True).chunk(math.ceil(len(classes) / most))
