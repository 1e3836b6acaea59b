"""What a class is to a class-conditional generator."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from datafree.synthesis.setting import Setting


def class_embeddings(kind: str, setting: Setting) -> Tensor:
    """One row a class, float32 (classes, D), each of length sqrt(D), so that entries have the size of normal draws.

    Args:
        kind: "teacher" takes the rows of the teacher's last linear layer, which know what classes resemble each other
            without any data; "onehot" the unit vectors; "orthogonal" random ones at right angles (from the run's seed);
            anything else is a file with an array (classes, D): .npy, or .pt / .pth with one tensor.
        setting: the method's.

    Raises:
        ValueError: no such layer, or a file that cannot be used.

    Source: rows of the classifier: Qimera (Choi et al. 2021); text embeddings from a file: NAYER (Tran et al. 2024).
    """
    classes = setting.domain.classes
    if kind == "onehot":
        rows = torch.eye(classes)
    elif kind == "orthogonal":
        draws = torch.randn(max(64, classes), classes, generator=setting.rng, device=setting.device)
        rows = torch.linalg.qr(draws.cpu()).Q.T
    elif kind == "teacher":
        rows = _classifier_rows(setting.teacher.network, classes)
    else:
        rows = _from_file(kind)
    if len(rows) != classes:
        raise ValueError(f"--embedding {kind} has {len(rows)} rows, the teacher {classes} classes: give one a class")
    rows = rows.to(setting.device, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * (math.sqrt(rows.shape[1]) / lengths.clamp_min(1e-12))


def _classifier_rows(network: nn.Module, classes: int) -> Tensor:
    layers = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not layers:
        raise ValueError(
            f"--embedding teacher: no linear layer of the teacher has {classes} outputs; take onehot or orthogonal"
        )
    return torch.as_tensor(layers[-1].weight.detach())


def _from_file(name: str) -> Tensor:
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--embedding {name}: take teacher, onehot, orthogonal, or a file that exists")
    try:
        if path.suffix == ".npy":
            rows = torch.from_numpy(numpy.load(path, allow_pickle=False))
        else:
            rows = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"--embedding {name}: not a .npy or .pt file with one array ({error})") from None
    if not isinstance(rows, Tensor) or rows.dim() != 2 or not rows.isfinite().all():
        raise ValueError(f"--embedding {name}: give one finite array (classes, D)")
    return rows
