"""What a network asks of the batches that it is trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def mixes(network: nn.Module) -> bool:
    """Whether what an image gives depends on the others of its batch: batch norm in training mode."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in network.modules())


def in_batches(order: Tensor, size: int, network: nn.Module) -> list[Tensor]:
    """Parts of `order` (N,), `size` >= 1 long but for the last, in which the network sees the images.

    A last one of a single image joins the part before where the network mixes: there is no variance over one image.
    """
    parts = list(torch.split(order, size))
    if len(parts) > 1 and len(parts[-1]) == 1 and mixes(network):
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
