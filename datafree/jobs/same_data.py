"""Whether a condensed set is of the data, or for the teacher, that it is used with."""

from __future__ import annotations

from datafree.domain import DOMAINS, Domain

ALLOWED = 0.05  # by how much of the standard deviation the normalisation may differ without a word


def check_same_data(own: Domain, other: Domain, what: str) -> list[str]:
    """A warning where a set may be of other data than it is used with; none where all agrees.

    Of two named sets the names decide. Where one has no such name it may be the same data under another one, so a
    normalisation that differs is worth a word, and nothing more.

    Args:
        own: the set's.
        other: of images of the same size and with as many classes.
        what: says in a sentence's beginning what `other` is of.

    Raises:
        ValueError: both are named data sets, and not the same.
    """
    if own.name == other.name:
        return []
    if own.name in DOMAINS and other.name in DOMAINS:
        raise ValueError(f"the set is of {own.name}, {what} {other.name}: give those of one data set")
    values = zip((*own.mean, *own.std), (*other.mean, *other.std), (*own.std, *own.std), strict=True)
    if all(abs(a - b) <= ALLOWED * std for a, b, std in values):
        return []
    return [
        f"the set is of {own.name} ({_words(own)}), {what} {other.name} ({_words(other)}): if these are other data, "
        "take those that the set was made from"
    ]


def _words(domain: Domain) -> str:
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (domain.mean, domain.std))
    return f"mean {mean}, std {std}"
