"""Pretrained networks of torchvision and timm: from the caches on this machine, fetched only when that is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.models.build import build_timm, build_torchvision, import_timm, unknown_name
from datafree.models.checkpoint import file_sha256, read_checkpoint
from datafree.models.naming import best_naming, shapes_of


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A pretrained network in evaluation mode, its image shape (C, H, W), normalisation and the file's SHA-256."""

    network: nn.Module
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str | None
    choices: tuple[str, ...]


def torchvision_names() -> tuple[str, ...]:
    """All of torchvision's classifiers, as ``torchvision:NAME``."""
    from torchvision import models

    return tuple(f"torchvision:{name}" for name in models.list_models(module=models))


def torchvision_weights(name: str) -> Any:
    """torchvision's default pretrained weights for ``torchvision:NAME``."""
    from torchvision import models

    if name not in torchvision_names():
        raise ValueError(unknown_name(name, torchvision_names()))
    return models.get_model_weights(name.removeprefix("torchvision:")).DEFAULT


def usual_side(arch: str) -> int | None:
    """The image side an ImageNet architecture is made for, in pixels; None for the zoo, which takes any."""
    if arch.startswith("torchvision:"):
        return int(torchvision_weights(arch).transforms().crop_size[0])
    if arch.startswith("timm:"):
        cfg = import_timm().get_pretrained_cfg(arch.removeprefix("timm:"))
        return int(cfg.input_size[-1]) if cfg is not None else 224
    return None


def load_pretrained(source: str, *, download: bool) -> Pretrained:
    """The network ``torchvision:NAME`` or ``timm:NAME`` with its default weights.

    Raises ValueError where they are not in the cache and ``download`` is false; the message names the file expected.
    """
    if source.startswith("timm:"):
        return load_timm(source, download=download)
    return load_torchvision(source, download=download)


def not_here(source: str, expected: Path) -> str:
    """The message for weights that would have to be downloaded."""
    return f"no weights of {source} on this machine: put them at {expected}, or allow the download with --download"


def load_torchvision(source: str, *, download: bool) -> Pretrained:
    """torchvision's default weights, from torch hub's cache folder."""
    weights = torchvision_weights(source)
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not file.is_file():
        if not download:
            raise ValueError(not_here(source, file))
        fetch(source, weights.url, file)
    preset = weights.transforms()
    shape, classes = (3, preset.crop_size[0], preset.crop_size[0]), len(weights.meta["categories"])
    checkpoint = read_checkpoint(file)
    # GoogLeNet's and Inception's ImageNet weights expect another normalisation, which the network then does itself.
    options = {"transform_input": True} if source.endswith((":googlenet", ":inception_v3")) else {}
    with torch.random.fork_rng(devices=[]):
        network = build_torchvision(source, shape=shape, classes=classes, **options)
    expected = network.state_dict()
    _, keys = best_naming(checkpoint.state, expected)
    state = {keys[key]: value for key, value in checkpoint.state.items() if keys[key] in expected}
    misshapen = [key for key, value in state.items() if value.shape != expected[key].shape]
    if misshapen or set(shapes_of(expected)) - set(state):
        raise ValueError(f"{file} is not what torchvision has under that name: remove it")
    network.load_state_dict(state, strict=False)
    return Pretrained(
        network=network.eval(),
        shape=shape,
        classes=classes,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        sha256=checkpoint.sha256,
        choices=(f"weights: {weights} (torchvision's default)",),
    )


def fetch(source: str, url: str, file: Path) -> None:
    """Download to ``file`` (written beside it and renamed, its hash checked)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    prefix = torch.hub.HASH_REGEX.search(file.name)
    try:
        torch.hub.download_url_to_file(url, str(file), prefix.group(1) if prefix else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the weights of {source} could not be downloaded from {url}: {error}") from error


def load_timm(source: str, *, download: bool) -> Pretrained:
    """timm's default weights, from the Hugging Face cache or torch hub's."""
    timm = import_timm()
    short = source.removeprefix("timm:")
    cfg = timm.get_pretrained_cfg(short) if timm.is_model(short) else None
    if cfg is None:
        build_timm(source, shape=(3, 224, 224), classes=1000)  # raises with the closest names if it is not known
        raise ValueError(f"timm has no pretrained weights for {source}")
    file = timm_file(cfg)
    if not file.is_file() and not download:
        raise ValueError(not_here(source, file))
    overlay = {"file": str(file)} if file.is_file() else None
    try:
        network = build_timm(
            source, shape=cfg.input_size, classes=cfg.num_classes, pretrained=True, pretrained_cfg_overlay=overlay
        )
    except OSError as error:
        raise ValueError(f"the weights of {source} could not be downloaded: {str(error).splitlines()[0]}") from error
    return Pretrained(
        network=network.eval(),
        shape=cfg.input_size,
        classes=cfg.num_classes,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        sha256=file_sha256(file) if file.is_file() else None,
        choices=(f"weights: {short}.{cfg.tag} (timm's default)",),
    )


def timm_file(cfg: Any) -> Path:
    """Where the weights of a timm configuration lie once they are fetched."""
    if not cfg.hf_hub_id:
        return Path(torch.hub.get_dir()) / "checkpoints" / str(cfg.url).rpartition("/")[2]
    from huggingface_hub import constants, try_to_load_from_cache

    repository, name = cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors"
    found = try_to_load_from_cache(repository, name)
    if isinstance(found, str):
        return Path(found)
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots" / "main" / name
