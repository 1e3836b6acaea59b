"""The condensed set: a few synthetic images with their labels, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datafree.arguments import check_kinds, checked
from datafree.data.formation import decode, decoded_labels
from datafree.data.whitening import Whitening
from datafree.domain import Domain

FILE = "condensed.safetensors"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class CondensedSet(Dataset[tuple[Tensor, Tensor]]):
    """A `torch.utils.data.Dataset` of decoded images, float32 (C, H, W) in [0, 1], and labels.

    A label is a class number (int64 scalar), or where labels are soft, probabilities (classes,).

    images: as stored, float32 (M, C, H, W) in [0, 1].
    labels: int64 (M,), or float logits (M * factor², classes) in the order of the decoded images.
    domain: what the images are of.
    factor: multi-formation; each stored image holds factor × factor images (see `formation.decode`).
    whitening: what networks see instead of the domain's normalisation, if any; the images are not whitened.
    learning_rate: of SGD on this set, where the method learned one.
    info: where the set comes from, as plain types. "images_per_class" says how many stored images of each class there
        are; they lie in the order of the classes, also where labels are soft (see `made_for`).

    Raises ValueError (one line) for images outside [0, 1], labels that do not fit, and other impossible values.
    """

    images: Tensor
    labels: Tensor
    domain: Domain
    factor: int = 1
    whitening: Whitening | None = None
    learning_rate: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kinds(CondensedSet, vars(self), ("factor", "learning_rate", "info"))
        check_images(self.images, self.domain)
        check_about(self.factor, self.learning_rate, self.info, self.domain)
        check_labels(self.labels, len(self.images), self.factor, self.domain)

    @property
    def soft(self) -> bool:
        return self.labels.is_floating_point()

    def decoded(self) -> tuple[Tensor, Tensor]:
        """All images (N, C, H, W) in [0, 1], and class numbers (N,) or probabilities (N, classes)."""
        images = decode(self.images, self.factor).clamp(0, 1)
        return images, self.labels.softmax(1) if self.soft else decoded_labels(self.labels, self.factor)

    def __len__(self) -> int:
        return len(self.images) * self.factor**2

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        # Decoded images go patch by patch over all stored ones.
        patch, row = divmod(index, len(self.images))
        image = decode(self.images[row : row + 1], self.factor)[patch].clamp(0, 1)
        return image, self.labels[index].softmax(0) if self.soft else self.labels[row]

    def classes(self) -> Tensor:
        """The class of each decoded image, int64 (N,): the most likely one where labels are soft."""
        return self.labels.argmax(1) if self.soft else decoded_labels(self.labels, self.factor)

    def made_for(self) -> Tensor:
        """The class that each decoded image was made for, int64 (N,).

        Hard labels say it. Where labels are soft, `info` does; where that is silent, it is the most likely class.
        """
        counts = self.info.get("images_per_class") if self.soft else None
        if not _fits(counts, len(self.images), self.domain.classes):
            return self.classes()
        assert counts is not None
        stored = torch.arange(self.domain.classes).repeat_interleave(torch.tensor(list(counts)))
        return decoded_labels(stored, self.factor).to(self.labels.device)

    def budget(self) -> dict[str, int]:
        """What the set costs: floats stored for images, decoded images, bytes of labels."""
        return {
            "stored_floats": self.images.numel(),
            "stored_images": len(self.images),
            "decoded_images": len(self),
            "label_bytes": self.labels.numel() * self.labels.element_size(),
        }


def _fits(counts: Any, stored: int, classes: int) -> bool:
    """Whether these are numbers of stored images of each class; they may come out of a file."""
    numbers = isinstance(counts, list | tuple) and all(type(n) is int and n >= 0 for n in counts)
    return numbers and len(counts) == classes and sum(counts) == stored


def check_images(images: Tensor, domain: Domain) -> None:
    """Raises ValueError unless images are float (M, C, H, W) of the domain's size, at least one, in [0, 1]."""
    want = "x".join(map(str, domain.shape))
    if images.dim() != 4 or tuple(images.shape[1:]) != domain.shape or not len(images):
        raise ValueError(f"the images have the shape {tuple(images.shape)}: give (N, C, H, W) of {want} images")
    if not images.is_floating_point():
        raise ValueError(f"the images have the type {images.dtype}: give floats in [0, 1]")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"the images go from {low:.3g} to {high:.3g}: give pixels in [0, 1], or name their normalisation"
        )


def check_labels(labels: Tensor, stored: int, factor: int, domain: Domain) -> None:
    """Raises ValueError unless labels are class numbers (M,) or finite logits (M factor², classes)."""
    if labels.is_floating_point():
        wanted: tuple[int, ...] = (stored * factor**2, domain.classes)
        if tuple(labels.shape) != wanted or not bool(labels.isfinite().all()):
            raise ValueError(f"soft labels of the shape {tuple(labels.shape)}: give finite logits {wanted}")
    else:
        check_numbers("labels", labels, stored, domain.classes)


def check_numbers(name: str, labels: Tensor, images: int, classes: int) -> None:
    """Raises ValueError unless the labels are class numbers, int64 (images,), from 0 to classes - 1."""
    if tuple(labels.shape) != (images,) or labels.dtype != torch.int64:
        raise ValueError(f"{name} of the shape {tuple(labels.shape)}, {labels.dtype}: give int64 ({images},)")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{name} from {low} to {high}: the classes go from 0 to {classes - 1}")


def check_about(factor: Any, learning_rate: Any, info: Any, domain: Domain) -> None:
    """Raises ValueError unless these are what `CondensedSet` says of them; they may come out of a file."""
    height, width = domain.shape[1:]
    if not isinstance(factor, int) or isinstance(factor, bool):
        raise ValueError(f"the multi-formation factor {factor!r}: give a whole number")
    if not 1 <= factor <= min(height, width):
        raise ValueError(
            f"the multi-formation factor {factor} for images of {height} x {width}: give 1 to the shorter side"
        )
    number = isinstance(learning_rate, int | float) and not isinstance(learning_rate, bool)
    if learning_rate is not None and not (number and 0 < learning_rate < math.inf):
        raise ValueError(f"the learning rate is {learning_rate!r}: give a number above 0, or None")
    if not isinstance(info, Mapping):
        raise ValueError(f"info is {type(info).__name__}: give a mapping")


def to_bytes(condensed: CondensedSet) -> bytes:
    """The content of `condensed.safetensors`; `from_file` reads it back bit for bit."""
    from safetensors.torch import save

    about = {
        "format": FORMAT,
        "domain": dataclasses.asdict(condensed.domain),
        "factor": condensed.factor,
        "decode": "factor × factor patches, each enlarged to full size bilinearly, patch by patch over all images",
        "learning_rate": condensed.learning_rate,
        "info": dict(condensed.info),
    }
    tensors = {"images": condensed.images, "labels": condensed.labels}
    if condensed.whitening is not None:
        tensors |= {f"whitening.{name}": tensor for name, tensor in condensed.whitening._asdict().items()}
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return save(plain, metadata={"datafree": json.dumps(about)})


@checked()
def load_condensed(path: str | Path, *, device: str | torch.device = "cpu") -> CondensedSet:
    """Reads a condensed set: its folder, or the `.safetensors` file itself. No code is executed.

    Raises:
        ValueError: no condensed set is there, or the file does not hold what it should; one line.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(os.path.expanduser(path))  # no shell does, in condensed:~/set
    if file.is_dir():
        file /= FILE
        unfinished = (file.parent / "run.json").is_file() and not (file.parent / "result.json").exists()
        if unfinished and not file.is_file():
            raise ValueError(f"the run in {path} is not finished: go on with it (--resume --out {path})")
    if not file.is_file():
        raise ValueError(f"no condensed set in {path} (no {FILE}): name a folder that datafree condense wrote")
    try:
        with safe_open(file, framework="pt", device=str(device)) as archive:
            about = json.loads((archive.metadata() or {})["datafree"])
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (no mapping)
        if about["format"] != FORMAT:
            raise ValueError(f"the format is {about['format']}, this version reads {FORMAT}: update datafree")
        known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in about["domain"].items()}
        domain = Domain(**known)
        parts = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith("whitening.")}
        return CondensedSet(
            images=tensors["images"],
            labels=tensors["labels"],
            domain=domain,
            factor=about["factor"],
            whitening=Whitening(**parts) if parts else None,
            learning_rate=about["learning_rate"],
            info=about["info"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file} is no condensed set ({type(error).__name__}): name one that datafree wrote"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
