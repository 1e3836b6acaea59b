"""What networks reach on real images, beside those on a condensed set; kept in the cache by all that it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from math import gcd
from typing import Any

import torch
from torch import nn

from datafree.data import Data
from datafree.data.sources import cache_folder
from datafree.data.whitening import Whitening
from datafree.domain import DOMAINS
from datafree.evaluation.condensed import random_part, score_set
from datafree.evaluation.networks import Forward
from datafree.evaluation.protocols import Protocol, named_protocol
from datafree.runs import write_json

# One network on all real images, for comparison: it is trained once a data set, protocol and network.
WHOLE_STEPS = 4000


def fingerprint(data: Data) -> str:
    """Of the tensors' sizes and about a million values of each."""
    digest = hashlib.sha256()
    for tensor in (data.x_train, data.y_train, data.x_test, data.y_test):
        if tensor is not None:
            digest.update(str(tuple(tensor.shape)).encode())
            # A stride that shares no factor with the width meets every column.
            width = tensor.shape[-1] if tensor.dim() > 1 else 1
            stride = next(n for n in itertools.count(max(1, tensor.numel() // 1_000_000)) if gcd(n, width) == 1)
            digest.update(tensor.flatten()[::stride].cpu().numpy().tobytes())
    domain = data.domain
    digest.update(repr((domain.mean, domain.std)).encode())
    if domain.flip != (DOMAINS[domain.name].flip if domain.name in DOMAINS else domain.shape[0] == 3):
        digest.update(f"flip {domain.flip}".encode())  # as --flip or --no-flip has it; figures without keep their key
    return digest.hexdigest()


def _digest(whitening: Whitening | None) -> str | bool:
    """What networks see of it; False for none."""
    if whitening is None:
        return False
    seen = (whitening.mean, whitening.matrix)
    return hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in seen)).hexdigest()


def _cached(kind: str, key: dict[str, Any], compute: Callable[[], dict[str, Any]] | None) -> dict[str, Any] | None:
    """A small result by all that it depends on; computed (and kept) where it is not there."""
    text = json.dumps(key, sort_keys=True, default=str)
    path = cache_folder() / "scores" / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))["result"]
        if isinstance(held, dict) and held:
            return held
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if compute is None:
        return None
    result = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": json.loads(text), "result": result})
    except (OSError, ValueError):  # a cache that cannot be written is no reason to fail
        pass
    return result


def on_random_images(
    data: Data,
    protocol: str | Protocol,
    arch: str,
    counts: list[int],
    make: Callable[[str], nn.Module],
    common: dict[str, Any],
    whitening: Whitening | None,
    relabel: Forward | None,
) -> dict[str, Any]:
    """What `random_part` says of random subsets. It is not kept where its labels are a teacher's."""

    def compute() -> dict[str, Any]:
        return random_part(data, protocol, arch, counts=counts, make=make, relabel=relabel, **common)

    about = dataclasses.asdict(named_protocol(protocol) if isinstance(protocol, str) else protocol)
    about.pop("note", None)
    taught = "teacher" in common or relabel is not None
    key = {
        "data": fingerprint(data), "protocol": about, "arch": arch, "counts": counts, "networks": common["networks"],
        "seed": common["seed"], "precision": common["precision"], "whitened": _digest(whitening), "version": 2,
    }  # fmt: skip
    found = compute() if taught or ":" in arch else _cached("random", key, compute)
    assert found is not None
    return found


def on_all_images(
    data: Data,
    arch: str,
    make: Callable[[str], nn.Module],
    device: torch.device,
    precision: str,
    whitening: Whitening | None,
    *,
    compute: bool,
    say: Callable[[str], None],
) -> float | None:
    """Accuracy of one network trained on all real images; None where it is not cached and not asked for.

    A file's network is never cached: its path does not say what is in it.
    """
    kept = ":" not in arch
    key = {
        "data": fingerprint(data), "arch": arch, "steps": WHOLE_STEPS, "precision": precision,
        "whitened": _digest(whitening), "version": 2,
    }  # fmt: skip

    def train() -> dict[str, Any]:
        later = " (kept for later)" if kept else ""
        say(f"training {arch} on all of {data.domain.name} for {WHOLE_STEPS:,} steps{later}")
        assert data.x_train is not None and data.y_train is not None
        protocol = Protocol(
            steps=WHOLE_STEPS, batch_size=128, lr=0.02, schedule="cosine", augmentation="crop_flip", mode="all"
        )
        scores = score_set(
            data.x_train, data.y_train, data, protocol, archs=[arch], networks=1, make=make,
            device=device, precision=precision,
        )  # fmt: skip
        return {"accuracy": scores["accuracy_mean"]}

    if not kept:
        return float(train()["accuracy"]) if compute else None
    found = _cached("whole", key, train if compute else None)
    return None if found is None else float(found["accuracy"])
