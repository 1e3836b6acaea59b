"""What a class is to a class-conditional generator."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from datafree.synthesis.setting import Setting

WORDS = ("teacher", "onehot", "orthogonal")  # anything else is a file


def class_embeddings(kind: str, setting: Setting) -> Tensor:
    """One row a class, float32 (classes, D), each of length sqrt(D), so that entries have the size of normal draws.

    Args:
        kind: "teacher" takes the rows of the teacher's last layer, linear or a 1x1 convolution, which know what classes
            resemble each other without any data; "onehot" the unit vectors; "orthogonal" random ones at right angles
            (from the run's seed); anything else is a file with an array (classes, D): .npy, or .pt / .pth with one
            tensor.
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
        rows = _classifier_rows(setting)
    else:
        rows = _from_file(kind)
    if len(rows) != classes:
        raise ValueError(f"--embedding {kind} has {len(rows)} rows, the teacher {classes} classes: give one a class")
    rows = rows.to(setting.device, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * (math.sqrt(rows.shape[1]) / lengths.clamp_min(1e-12))


@torch.no_grad()
def _classifier_rows(setting: Setting) -> Tensor:
    """Weights (classes, D) of the layer with a row a class that runs last; if none runs, that is registered last."""
    classes, teacher = setting.domain.classes, setting.teacher
    layers = [module for module in teacher.network.modules() if _has_rows(module, classes)]
    if not layers:
        raise ValueError(
            f"--embedding teacher: no linear layer or 1x1 convolution of the teacher has {classes} outputs; take "
            "onehot or orthogonal"
        )
    ran: list[nn.Module] = []
    handles = [layer.register_forward_hook(lambda module, *_: ran.append(module)) for layer in layers]
    try:
        teacher(torch.full((1, *setting.domain.shape), 0.5, device=setting.device))
    finally:
        for handle in handles:
            handle.remove()
    last = (ran or layers)[-1]
    return torch.as_tensor(last.weight).detach().flatten(1)


def _has_rows(module: nn.Module, classes: int) -> bool:
    """Whether a layer has a row of weights for each class."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1 and module.out_channels == classes
    return isinstance(module, nn.Linear) and module.out_features == classes


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
    if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.is_complex() or not rows.shape[1]:
        raise ValueError(f"--embedding {name}: give one finite array (classes, D) of real numbers")
    rows = rows.to(torch.float32)
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if not lengths.isfinite().all():
        raise ValueError(f"--embedding {name}: give one finite array (classes, D), of numbers that float32 can square")
    if not lengths.all():
        raise ValueError(f"--embedding {name}: a row of zeros says nothing of its class; give no row of zeros")
    return rows
