"""Experts on disk: one safetensors file an expert, with the checksum of what it holds, beside an index.json."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = "index.json"


class Experts:
    """Recorded experts.

    Args:
        folder: where the files are.
        key: what their files must bear.
        count: how many are used.
        records: of each after the first parameters.
        seconds: what recording them took, in this call or an earlier one.
    """

    def __init__(self, folder: Path, key: str, count: int, records: int, seconds: float) -> None:
        self.folder, self.key, self.count, self.records, self.seconds = folder, key, count, records, seconds

    def at(self, expert: int, *records: int, device: torch.device | str = "cpu") -> list[Tensor]:
        """An expert's parameters, float32 (P,), at each of the `records` from 0 (the first parameters) on."""
        from safetensors import safe_open

        with safe_open(expert_file(self.folder, expert), framework="pt") as file:
            start, moves = file.get_tensor("start"), file.get_slice("moves")
            return [(start + moves[r - 1].float() if r else start).to(device) for r in records]


def expert_file(folder: Path, expert: int) -> Path:
    return folder / f"expert-{expert:04d}.safetensors"


def missing_experts(folder: Path, key: str, count: int) -> list[int]:
    """The experts whose files are not there or torn, or hold what is not finite."""
    found = (about_expert(expert_file(folder, i), key) for i in range(count))
    return [i for i, about in enumerate(found) if about is None or not about["finite"]]


def whole_experts(folder: Path, key: str, most: int | None) -> list[dict[str, Any]]:
    """What the experts' files say of themselves, from the first on to the first that is missing."""
    found: list[dict[str, Any]] = []
    while most is None or len(found) < most:
        about = about_expert(expert_file(folder, len(found)), key)
        if about is None:
            break
        found.append(about)
    return found


def checksum(tensors: dict[str, Tensor]) -> int:
    return zlib.crc32(tensors["moves"].numpy().data, zlib.crc32(tensors["start"].numpy().data))


def about_expert(file: Path, key: str) -> dict[str, Any] | None:
    """What a whole file of that key says of itself, and whether all it holds is "finite".

    None where it is missing, torn, or of something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as archive:
            about: dict[str, Any] = json.loads((archive.metadata() or {})["datafree"])
            tensors = {name: archive.get_tensor(name) for name in ("start", "moves")}
        if about["key"] != key or about["crc"] != checksum(tensors):
            return None
        return {**about, "finite": all(bool(tensor.isfinite().all()) for tensor in tensors.values())}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def read_index(folder: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return content if {"key", "records", "about"} <= set(content) else None
    except (OSError, ValueError, TypeError):
        return None
