"""The set while it is being learned: images, labels and a rate as parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datafree.data.formation import decode, decoded_labels


class Synthetic:
    """A condensed set with gradients.

    Images are sorted by class, so the stored images of a class are consecutive.

    Args:
        images: (M, C, H, W), as they are at the start: in [0, 1], but for noise that is cut on saving alone.
        labels: int64 (M,), ascending.
        factor: multi-formation; the decoded set has M factor² images.
        label_logits: (M factor², classes) of learned or soft labels in decoded order, or None for hard ones.
        learn_labels: whether `label_logits` have gradients.
        learning_rate: start of a learned inner rate, or None. Its logarithm is learned, so that it stays positive.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        factor: int = 1,
        label_logits: Tensor | None = None,
        learn_labels: bool = False,
        learning_rate: float | None = None,
    ) -> None:
        assert bool((labels.diff() >= 0).all()), "images are sorted by class"
        self.images = nn.Parameter(images.clone())
        self.labels, self.factor = labels, factor
        self.label_logits = label_logits if label_logits is None else nn.Parameter(label_logits.clone(), learn_labels)
        self.log_rate = (
            None
            if learning_rate is None
            else nn.Parameter(torch.tensor(learning_rate, device=images.device, dtype=images.dtype).log())
        )
        classes = int(labels.max()) + 1
        self.rows = [(labels == label).nonzero().flatten() for label in range(classes)]

    def decoded(self, rows: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) with gradients: all of them, or those of the stored `rows`, patch by patch."""
        return decode(self.images if rows is None else self.images[rows], self.factor)

    def of_class(self, label: int) -> Tensor:
        """The decoded images of a class, with gradients."""
        return self.decoded(self.rows[label])

    @property
    def decoded_classes(self) -> Tensor:
        """Class numbers (N,) of the decoded images."""
        return decoded_labels(self.labels, self.factor)

    def targets(self) -> Tensor:
        """What networks are trained on: class numbers (N,), or logits (N, classes) with gradients if learned."""
        return self.decoded_classes if self.label_logits is None else self.label_logits

    @property
    def rate(self) -> Tensor:
        """The learned inner rate, > 0."""
        assert self.log_rate is not None
        return self.log_rate.exp()

    def parameters(self) -> dict[str, nn.Parameter]:
        """All that has gradients, by name: images, labels, rate."""
        held = {"images": self.images, "labels": self.label_logits, "rate": self.log_rate}
        return {name: p for name, p in held.items() if p is not None and p.requires_grad}

    @torch.no_grad()
    def project(self) -> None:
        """Brings the images back into [0, 1]."""
        self.images.clamp_(0, 1)

    def state_dict(self) -> dict[str, Any]:
        held = {"images": self.images, "label_logits": self.label_logits, "log_rate": self.log_rate}
        return {name: None if p is None else p.detach().clone() for name, p in held.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("images", "label_logits", "log_rate"):
            parameter = getattr(self, name)
            if parameter is not None:
                parameter.copy_(state[name])


def class_counts(sizes: Sequence[int], ipc: int | None, images: int | None, *, allow_fewer: bool) -> list[int]:
    """Images a class: `ipc` each, or `images` in all in proportion to the classes' sizes (largest remainders, >= 1).

    Raises:
        ValueError: a class has no image, or is smaller than its share and `allow_fewer` is not given.
    """
    if images is not None:
        if images < len(sizes):
            raise ValueError(f"--images {images} for {len(sizes)} classes: give at least one a class")
        shares = [size * images / sum(sizes) for size in sizes]
        counts = [max(1, int(share)) for share in shares]
        order = sorted(range(len(sizes)), key=lambda i: counts[i] - shares[i])
        step = 1 if sum(counts) < images else -1
        while sum(counts) != images:
            for i in order if step > 0 else reversed(order):
                if sum(counts) != images and counts[i] + step >= 1:
                    counts[i] += step
    else:
        assert ipc is not None
        counts = [ipc] * len(sizes)
    for label, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        if not size:
            raise ValueError(
                f"class {label} has no training image: give it one, or number the classes from 0 without gaps"
            )
        if count > size:
            if not allow_fewer:
                raise ValueError(
                    f"class {label} has {size} images, fewer than the {count} asked for: "
                    "give a smaller --ipc, or --allow-fewer to take what there is"
                )
            counts[label] = size
    return counts
