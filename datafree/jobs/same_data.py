"""Whether data are those that they should be: a condensed set's, beside what it is used with; a run's, on resuming."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from datafree.data import Data
from datafree.data.condensed import CondensedSet
from datafree.domain import DOMAINS, Domain
from datafree.jobs.paths import base_name

ALLOWED = 0.05  # by how much of the standard deviation the normalisation may differ without a word


def check_same_data(own: Domain, other: Domain, what: str) -> list[str]:
    """Warnings where a set may be of other data than it is used with; none where all agrees.

    Of two named sets the names decide. Where one has no such name it may be the same data under another one, so
    a normalisation or names of classes that differ are worth a word, and nothing more.

    Args:
        own: the set's.
        other: of images of the same size and with as many classes.
        what: says in a sentence's beginning what `other` is of.

    Raises:
        ValueError: both are named data sets, and not the same; or their classes have one another's numbers.
    """
    if own.name in DOMAINS and own.name != other.name and other.name in DOMAINS:
        raise ValueError(f"the set is of {own.name}, {what} {other.name}: give those of one data set")
    warnings = _class_names(own, other, what)
    if base_name(own.name) == base_name(other.name):
        return warnings
    values = zip((*own.mean, *own.std), (*other.mean, *other.std), (*own.std, *own.std), strict=True)
    if all(abs(a - b) <= ALLOWED * std for a, b, std in values):
        return warnings
    return [
        *warnings,
        f"the set is of {own.name} ({_words(own)}), {what} {other.name} ({_words(other)}): if these are other data, "
        "take those that the set was made from",
    ]


def _class_names(own: Domain, other: Domain, what: str) -> list[str]:
    """A warning where classes of one number have two names, capital letters aside.

    Raises:
        ValueError: the names are the same in another order.
    """
    names, others = ([name.casefold() for name in domain.class_names] for domain in (own, other))
    number = next((i for i, pair in enumerate(zip(names, others, strict=False)) if pair[0] != pair[1]), None)
    if number is None:
        return []
    mine, theirs = own.class_names[number], other.class_names[number]
    said = f"class {number} of the set is {mine!r}, {what} {other.name}, whose class {number} is {theirs!r}"
    if sorted(names) == sorted(others):
        raise ValueError(
            f"{said}: the same classes are numbered in another order; name the folders so that their alphabetical "
            "order is the set's"
        )
    return [f"{said}: classes are compared by number"]


def data_sha256(data: Data) -> str:
    """Of the training images and their labels, with the tensors' sizes."""
    digest = hashlib.sha256()
    for tensor in (data.x_train, data.y_train):
        assert tensor is not None
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def check_unchanged(about: Mapping[str, Any], data: Data | None, remedy: str = "put the run's own back") -> None:
    """Whether a run goes on with the training images that it began with, where its manifest knows and it has any.

    Raises:
        ValueError: they are others; with the `remedy`.
    """
    began = about.get("data_sha256")
    if began is not None and data is not None and data_sha256(data) != began:
        raise ValueError(
            f"the training images of {data.domain.name} are not those that the run began with: {remedy}, or start anew "
            "with another --out"
        )


def left_out(condensed: CondensedSet, taught: bool, warn: Callable[[str], None]) -> bool | None:
    """Whether the set says that it was made without the held-out images; a warning where it does not.

    A teacher from a file, the set's or now (`taught`), does not say what it was trained on.
    """
    said = condensed.info.get("validation")
    if said is None:
        warn("it is not known whether this set was made without the training images that it is tested on")
        return None
    if not said:
        warn(
            "this set was condensed from all training images, also from those that it is tested on: condense with "
            "--validation to choose settings"
        )
        return False
    if taught or condensed.info.get("teacher_file"):
        warn("it is not known whether the teacher was trained without the training images that are tested on")
        return None
    return True


def _words(domain: Domain) -> str:
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (domain.mean, domain.std))
    return f"mean {mean}, std {std}"
