"""Reading checkpoint files without ever running code from them: files in, named tensors and plain facts out."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors")
FOLDER_FILES = ("student.safetensors", "model.safetensors", "pytorch_model.bin")  # ours, then Hugging Face's
NESTED_UNDER = ("state_dict", "model", "model_state_dict", "net")
AVERAGES_UNDER = ("state_dict_ema", "model_ema", "ema")  # moving averages, read where there is no other state dict
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state dict and what its file says about it.

    ``metadata`` is our own (keys arch, shape, classes, mean, std, data, whitened), empty for foreign files. ``hint`` is
    a foreign file's word on its architecture (the key ``arch`` beside the state dict), "" where there is none.
    """

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    hint: str = ""
    sha256: str = ""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images, as our own metadata say."""
        if not self.metadata.get("shape"):
            return None
        channels, height, width = self.metadata["shape"]
        return channels, height, width


def find_checkpoint(source: str) -> Path:
    """The file meant by ``source``: itself, or the first of ``FOLDER_FILES`` in a folder."""
    path = Path(os.path.expanduser(source))
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        inside = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror or error}") from error
    if inside is not None:
        return inside
    if is_folder and (path / "run.json").is_file() and not (path / "result.json").exists():
        raise FileNotFoundError(f"the run in {source} is not finished: go on with it (--resume --out {source})")
    if is_folder:
        raise FileNotFoundError(f"{source} is a folder without {' or '.join(FOLDER_FILES)}: name the checkpoint file")
    if not is_file:
        raise FileNotFoundError(
            f"no file {source}: give a checkpoint ({', '.join(SUFFIXES)}), a run folder or torchvision:NAME"
        )
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state dict (torch's or safetensors' format), its prefixes removed, half types raised to float32.

    Raises ValueError where the file cannot be read, is no checkpoint, or would run code when loaded.
    """
    try:
        sha256 = file_sha256(path)
        content, metadata = read_safetensors(path) if is_safetensors(path) else (read_torch(path), {})
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    hint = content.get("arch", "")
    state = {key: raised(value) for key, value in plain_names(state_dict_in(content, path)).items()}
    return Checkpoint(
        path=path, state=state, metadata=metadata, hint=hint if isinstance(hint, str) else "", sha256=sha256
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do (the header's length as 8 bytes, little-endian, JSON) or is called so."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return path.suffix.lower() == ".safetensors" or (head[8:] == b"{" and 8 + length <= path.stat().st_size)


def architecture_beside(path: Path) -> str:
    """The ``architecture`` that config.json beside a file names, ``timm:NAME`` where timm wrote it; "" for none."""
    config = json_beside(path, "config.json")
    name = config.get("architecture")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):  # never a path, of which code could be run
        return ""
    return f"timm:{name}" if "pretrained_cfg" in config else name


def normalisation_beside(path: Path) -> tuple[list[float], list[float]] | None:
    """Mean and std that lie beside a file of Hugging Face's names, one value a channel; None for none.

    They are ``pretrained_cfg`` in timm's config.json, or ``image_mean`` and ``image_std`` in transformers'
    preprocessor_config.json.
    """
    if path.name not in FOLDER_FILES[1:]:
        return None
    timms = json_beside(path, "config.json").get("pretrained_cfg")
    others = json_beside(path, "preprocessor_config.json")
    pairs = [(timms.get("mean"), timms.get("std"))] if isinstance(timms, dict) else []
    if others.get("do_normalize", True):
        pairs.append((others.get("image_mean"), others.get("image_std")))
    for mean, std in pairs:
        if all_numbers(mean) and all_numbers(std) and len(mean) == len(std) > 0 and min(std) > 0:
            return mean, std
    return None


def json_beside(path: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file beside ``path``; empty where there is none. It is anybody's: no more than a hint."""
    try:
        config = json.loads((path.parent / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def all_numbers(values: Any) -> TypeGuard[list[float]]:
    """Whether these are a list of finite numbers."""
    return isinstance(values, list) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in values
    )


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors of a safetensors file, and our own metadata in it (empty for foreign files)."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            text = (file.metadata() or {}).get("datafree", "{}")
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is cut short: {str(error).splitlines()[0]}") from error
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its metadata 'datafree' is not JSON: {error}") from error
    check_metadata(metadata, path)
    return tensors, metadata


def check_metadata(metadata: Any, path: Path) -> None:
    """Raise ValueError where our own metadata hold anything that cannot be."""
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: its metadata 'datafree' is not a JSON object")
    for key, value in metadata.items():
        numbers = isinstance(value, list) and all(isinstance(each, int | float) for each in value)
        right = {
            "arch": isinstance(value, str),
            "data": isinstance(value, str),
            "classes": isinstance(value, int) and value > 0,
            "shape": numbers and len(value) == 3 and all(isinstance(each, int) and each > 0 for each in value),
            "mean": numbers and len(value) > 0,
            "std": numbers and len(value) > 0 and min(value) > 0,
        }
        if value is not None and not right.get(key, True):
            raise ValueError(f"{path}: its metadata say {key} = {value}, which cannot be: save it anew")


def read_torch(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, read with ``weights_only``: it must be a dict."""
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        raise ValueError(f"{path} is empty")
    archive = zipped_names(path)
    if any(name.endswith("constants.pkl") for name in archive):
        raise ValueError(pickled(path, "a TorchScript program"))
    try:
        with warnings.catch_warnings(), harmless_beside_weights():
            warnings.simplefilter("ignore")  # torch's remarks on other pickle protocols; the outcome is told below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = str(error)  # older versions of torch say so of the end of a file too
        if archive or (head[:1] == b"\x80" and "invalid load key" not in said and "unexpected EOF" not in said):
            raise ValueError(pickled(path, "a pickled object")) from error
        raise ValueError(no_checkpoint(path)) from error
    except (EOFError, RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # What torch raises depends on where a file that is cut short or of another kind stops making sense.
        raise ValueError(no_checkpoint(path)) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not a state dict: save model.state_dict()")
    return content


def harmless_beside_weights() -> AbstractContextManager[Any]:
    """Lets ``weights_only`` read what many training scripts save beside the weights: their arguments, NumPy's numbers
    and arrays, paths. None of these runs code. Before torch 2.6, which cannot be told both of NumPy's module names,
    such files are refused as pickles.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        return nullcontext()
    known: list[Any] = [argparse.Namespace, PosixPath, PurePosixPath, np.dtype, np.ndarray]
    known += [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    for core in ("numpy.core", "numpy._core"):  # NumPy's name of it, before and since 2.0
        known += [(scalar, f"{core}.multiarray.scalar"), (array, f"{core}.multiarray._reconstruct")]
    return torch.serialization.safe_globals(known)


def zipped_names(path: Path) -> tuple[str, ...]:
    """Names in a zip archive; empty where the file is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except zipfile.BadZipFile:
        return ()


def pickled(path: Path, what: str) -> str:
    """The message that refuses a pickle."""
    return (
        f"{path} holds {what}, which would run code when loaded; "
        f"convert it: torch.save(model.state_dict(), '{path.stem}_weights.pt')"
    )


def no_checkpoint(path: Path) -> str:
    """The message for a file that torch cannot read."""
    return f"{path} is no checkpoint, or is cut short: give a file that torch.save or safetensors wrote"


def state_dict_in(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict itself: bare, or nested under one of the usual keys (at any depth); else a moving average."""
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    bare = any(value.ndim for value in state.values())
    for key in NESTED_UNDER if bare else (*NESTED_UNDER, *AVERAGES_UNDER):
        if isinstance(content.get(key), Mapping):
            return state_dict_in(content[key], path)
    if not bare:
        keys = ", ".join(str(key) for key in list(content)[:5]) or "none"
        raise ValueError(
            f"{path} holds no state dict (its keys: {keys}): expected tensors, bare or under {', '.join(NESTED_UNDER)}"
        )
    return state


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without ``module.`` and ``_orig_mod.``, in any combination, and without AveragedModel's counter."""
    plain = {key: value for key, value in state.items() if key != "n_averaged"}
    while prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in plain)), ""):
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    return {re.sub(r"(^|\.)_orig_mod\.", r"\1", key): value for key, value in plain.items()}


def without_prefixes(state: Mapping[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
    """The prefixes that all names share, shortest first, each with the state dict without it; the first is none.

    A wrapper (Lightning's module, a class around a backbone) leaves one such as ``model.``; so does an honest network.
    """
    shorter = [("", dict(state))]
    while True:
        prefix, latest = shorter[-1]
        firsts = {key.partition(".")[0] for key in latest}
        if len(firsts) != 1 or not all("." in key for key in latest):
            return shorter
        first = f"{firsts.pop()}."
        shorter.append((prefix + first, {key.removeprefix(first): value for key, value in latest.items()}))


def largest_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below the first part of a name that more than half have (below a prefix of all), under their names.

    Empty where no part has, or where nothing lies beside it. Lightning's module holds a criterion or metrics so.
    """
    prefix, latest = without_prefixes(state)[-1]
    counts = Counter(key.partition(".")[0] for key in latest if "." in key)
    first, count = counts.most_common(1)[0] if counts else ("", 0)
    return {key: state[key] for key in state if key.startswith(f"{prefix}{first}.")} if 2 * count > len(latest) else {}


def raised(value: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; anything else as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
