"""Accuracy of a network on labelled images, and its fidelity to a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.data.tensors import batches, to_float

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `evaluate` measures. Fractions are of 1; the last five are None where no teacher was given.

    images: how many were evaluated.
    accuracy: share of images whose largest logit is the label's.
    per_class: accuracy over the images of each class; None for a class without images.
    confusion: counts; row = label, column = prediction.
    teacher_accuracy, teacher_per_class: the same for the teacher.
    agreement: share of images on which both networks' largest logits coincide (Stanton et al. 2021, top-1 agreement).
    kl: mean over the images of KL(teacher || student) of the class probabilities, temperature 1, in nats.
    decisions: counts; row = the teacher's largest logit, column = the student's.
    """

    images: int
    accuracy: float
    per_class: list[float | None]
    confusion: list[list[int]]
    teacher_accuracy: float | None = None
    teacher_per_class: list[float | None] | None = None
    agreement: float | None = None
    kl: float | None = None
    decisions: list[list[int]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain types, for JSON."""
        return asdict(self)


def evaluate(
    predict: Predict, x: Tensor, y: Tensor, *, batch_size: int = 500, teacher: Predict | None = None
) -> Scores:
    """Score a network, and its fidelity to a teacher, over all images once, in order.

    `predict` and `teacher` take images (N, C, H, W), float32 in [0, 1], and give logits (N, classes): they normalise,
    and whoever calls puts them into evaluation mode. `x` is uint8 (N, C, H, W), `y` int64 (N,), both on the networks'
    device. Each batch passes through each network once. Logits are raised to float32.

    Raises ValueError for no images, for labels that the network has no output for, for networks of different numbers of
    classes, and for logits that are NaN or infinite.
    """
    if not len(x):
        raise ValueError("there are no images to evaluate on: give a data set that has a test split")
    predicted: list[Tensor] = []
    taught: list[Tensor] = []
    divergence = torch.zeros((), dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device)
    finite = torch.ones((), dtype=torch.bool, device=x.device)
    classes = 0
    with torch.inference_mode():
        for pixels, labels in batches(x, y, batch_size):
            images = to_float(pixels)
            logits = _logits(predict, images, len(labels))
            classes = logits.shape[1]
            predicted.append(logits.argmax(1))
            finite &= logits.isfinite().all()
            if teacher is not None:
                wanted = _logits(teacher, images, len(labels))
                if wanted.shape != logits.shape:
                    have = f"the teacher has {wanted.shape[1]} classes, the student {classes}"
                    raise ValueError(f"{have}: give networks of the same classes")
                taught.append(wanted.argmax(1))
                finite &= wanted.isfinite().all()
                each = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True)
                divergence += each.sum(1).to(divergence.device, torch.float64).sum()
    if not finite:
        raise ValueError("a network gives NaN or infinite logits: its training diverged, or --std is wrong")
    truth = y.cpu()
    if int(truth.min()) < 0 or int(truth.max()) >= classes:
        low, high = int(truth.min()), int(truth.max())
        raise ValueError(
            f"the labels go from {low} to {high}, the network has {classes} classes: give data that fit it"
        )
    counts = _confusion(truth, torch.cat(predicted).cpu(), classes)
    scores = Scores(images=len(x), accuracy=_accuracy(counts), per_class=_per_class(counts), confusion=counts.tolist())
    if teacher is None:
        return scores
    teacher_counts = _confusion(truth, torch.cat(taught).cpu(), classes)
    decisions = _confusion(torch.cat(taught).cpu(), torch.cat(predicted).cpu(), classes)
    return replace(
        scores,
        teacher_accuracy=_accuracy(teacher_counts),
        teacher_per_class=_per_class(teacher_counts),
        agreement=_accuracy(decisions),
        # A sum of rounded terms can come out a hair below the bound that the divergence has.
        kl=max(0.0, float(divergence) / len(x)),
        decisions=decisions.tolist(),
    )


def _logits(predict: Predict, images: Tensor, count: int) -> Tensor:
    logits = predict(images)
    if logits.ndim != 2 or len(logits) != count:
        raise ValueError(f"the network gives a tensor of shape {tuple(logits.shape)}: it must give logits (N, classes)")
    return logits.float()


def _confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts (classes, classes): row = label (or the teacher's decision in its place), column = prediction."""
    return torch.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _accuracy(counts: Tensor) -> float:
    return int(counts.diagonal().sum()) / int(counts.sum())


def _per_class(counts: Tensor) -> list[float | None]:
    right, total = counts.diagonal().tolist(), counts.sum(1).tolist()
    return [hits / images if images else None for hits, images in zip(right, total, strict=True)]
