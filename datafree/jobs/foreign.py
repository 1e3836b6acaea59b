"""Condensed sets of others: tensors in a file, in pixel space or normalised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.arguments import checked
from datafree.data.condensed import CondensedSet
from datafree.domain import Domain


@checked()
def foreign_set(
    images: str | Path | Tensor,
    labels: str | Path | Tensor,
    *,
    domain: Domain,
    space: str = "pixel",
    learning_rate: float | None = None,
) -> CondensedSet:
    """A condensed set of others.

    Args:
        images: a tensor (N, C, H, W), or a file with one (.pt, .npy, or .safetensors with one tensor).
        labels: class numbers (N,), or soft labels as logits (N, classes); likewise.
        domain: what the images are of; its mean and std are undone for `space="normalised"`.
        space: "pixel" for [0, 1] (uint8 is divided by 255), "normalised" for (x - mean) / std.
        learning_rate: the set's own, if any.

    Pixels of a normalised set are cut to [0, 1], since it was learned without bounds.

    Raises:
        ValueError: what the file holds does not fit; soft labels are probabilities, which would be softmaxed again.
    """
    x, y = read_tensor(images), read_tensor(labels)
    if x.dim() != 4 or tuple(x.shape[1:]) != domain.shape:
        raise ValueError(f"the images have the shape {tuple(x.shape)}: give (N, C, H, W) of {domain.shape} images")
    if x.dtype == torch.uint8:
        x = x.float() / 255
    if space == "normalised":
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (domain.mean, domain.std))
        x = (x.float() * std + mean).clamp(0, 1)
    elif space != "pixel":
        raise ValueError(f"--space {space}: give pixel or normalised")
    x = x.float().contiguous()
    y = y.float() if y.is_floating_point() else y.long()
    if y.is_floating_point() and y.dim() == 2 and len(y) and bool((y >= 0).all() & ((y.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError("these look like probabilities: give logits, such as labels.clamp_min(1e-8).log()")
    return CondensedSet(images=x, labels=y, domain=domain, learning_rate=learning_rate, info={"method": "foreign"})


def read_tensor(source: str | Path | Tensor) -> Tensor:
    """The tensor that a file holds; no code is executed.

    Raises:
        ValueError: the file cannot be read or holds something else.
    """
    if isinstance(source, Tensor):
        _check_dense(source)
        return source.detach().cpu()
    path = Path(source)
    try:
        held: Any
        if path.suffix == ".npy":
            import numpy as np

            held = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
            held = next(iter(tensors.values())) if len(tensors) == 1 else None
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: name a file that holds a tensor") from None
    except Exception as error:  # whatever a foreign file may hold
        raise ValueError(
            f"{path} cannot be read as a tensor ({type(error).__name__}): save one with torch.save"
        ) from error
    if not isinstance(held, Tensor):
        raise ValueError(f"{path} holds {type(held).__name__}, not one tensor: save the tensor alone with torch.save")
    _check_dense(held)
    return held.detach()


def _check_dense(tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise ValueError("a sparse tensor: give tensor.to_dense()")
