"""What batch norm remembers, as moments with squared distances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datafree.losses.statistics import Statistics


def squared_moments(layers: Sequence[Statistics], eps: float = 1e-6) -> Tensor:
    """Sum over layers of ||mean - running_mean||² + ||std - running_std||². Scalar >= 0, 0 iff all statistics agree.

    Args:
        layers: statistics in the order of the forward pass, at least one.
        eps: added to each variance before its square root.

    Source: ZeroQ (Cai et al. 2020), eq. 3. Its release takes the moments of each image by itself and averages the
    squared distances over images; here they are the batch's, as what a layer remembers is that of batches.
    """
    assert layers, "no batch-norm statistics to match"
    terms = [
        (layer.mean - layer.running_mean).square().sum()
        + ((layer.var + eps).sqrt() - (layer.running_var + eps).sqrt()).square().sum()
        for layer in layers
    ]
    return torch.stack(terms).sum()
