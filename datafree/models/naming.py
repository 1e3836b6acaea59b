"""Names: how releases call the tensors of one network, and which networks a file's name holds. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

# How other releases name the tensors of a network that we have: (what the user is told, renamings of keys).
NAMINGS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("", ()),
    ("torchvision's (downsample, fc)", ((r"\.downsample\.", ".shortcut."), (r"^fc\.", "linear."))),
    ("shortcut and linear", ((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc."))),
    ("layerK.layer and linear", ((r"^layer(\d)\.layer\.", r"block\1.layer."), (r"^linear\.", "fc."))),
    ("those of old dense layers", ((r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2"),)),
)


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes, without batch norm's counters, which old checkpoints lack and nothing needs."""
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def renamed(keys: Iterable[str], rules: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Each key with the rules applied: old name -> new name."""
    names = {key: key for key in keys}
    for pattern, replacement in rules:
        names = {key: re.sub(pattern, replacement, name) for key, name in names.items()}
    return names


def best_naming(found: Iterable[str], expected: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The naming of ``NAMINGS`` under which most keys are expected: (what the user is told, old name -> new name)."""
    found, wanted = tuple(found), set(expected)
    choices = [(title, renamed(found, rules)) for title, rules in NAMINGS]
    return max(choices, key=lambda choice: len(wanted.intersection(choice[1].values())))


def names_in(text: str, known: Iterable[str]) -> list[str]:
    """Known names that ``text`` holds as whole tokens (cut at ``_ - .`` and spaces), longest first.

    Separators inside a name may differ (``wrn-16-1``, ``wrn16_1``); the same spelling comes first, then the order of
    ``known``. A prefix such as ``torchvision:`` is not part of the name looked for.
    """
    tokens = re.split(r"[_\-.\s]+", text.lower())
    runs = {"".join(tokens[i:j]) for i in range(len(tokens)) for j in range(i + 1, len(tokens) + 1)}
    held = []
    for order, name in enumerate(known):
        bare = name.rpartition(":")[2]
        joined = re.sub(r"[_\-.]", "", bare)
        if joined in runs:
            held.append((-len(joined), bare not in text.lower(), order, name))
    return [name for *_, name in sorted(held)]
