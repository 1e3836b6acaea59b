"""Whose labels the networks of `evaluate_set` are trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.data.condensed import CondensedSet
from datafree.evaluation.networks import Forward
from datafree.evaluation.protocols import Protocol, named_protocol

SET_LABELS = ("own", "hard", "teacher")


def check_labels(
    condensed: CondensedSet, protocol: str | Protocol, set_labels: str, *, ranked: bool, taught: bool
) -> None:
    """Raises ValueError where labels, ranking and a teacher (`taught`: one is given) do not go together."""
    asked = (named_protocol(protocol) if isinstance(protocol, str) else protocol).labels
    called = f"protocol {protocol}" if isinstance(protocol, str) else "this protocol"
    compared = ranked and condensed.soft and set_labels == "own"
    if set_labels not in SET_LABELS:
        raise ValueError(f"--set-labels {set_labels}: give {', '.join(SET_LABELS)}")
    if set_labels != "own" and asked != "own":
        whose = "a teacher's labels of augmented images" if asked == "teacher" else "hard labels"
        raise ValueError(f"{called} trains on {whose}: leave --set-labels out")
    if ranked and protocol != "ddranking":
        raise ValueError(f"{called} is not DD-Ranking's: give --protocol ddranking, or leave --rank out")
    if set_labels == "teacher" and not taught:
        raise ValueError("--set-labels teacher: give the teacher, --teacher FILE")
    if compared and not taught:
        raise ValueError(
            "--rank compares soft labels with a teacher's of random images: give --teacher FILE, or --set-labels hard"
        )
    if taught and "teacher" not in (asked, set_labels) and not compared:
        raise ValueError(f"{called} trains on the set's own labels: leave --teacher out, or give --set-labels teacher")


def probabilities(teacher: Forward, device: torch.device) -> Forward:
    """From images (N, C, H, W) in [0, 1] to the teacher's probabilities (N, classes)."""

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        return torch.cat([teacher(part.to(device)).float().softmax(1) for part in torch.split(images, 500)])

    return answer
