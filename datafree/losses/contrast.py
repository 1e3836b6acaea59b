"""Which of many candidates belongs to a sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.losses.precision import raised


def info_nce(rows: Tensor, columns: Tensor, temperature: float, first: int = 0) -> Tensor:
    """Cross-entropy of each row with its own column, by cosine. Mean over the rows, scalar >= 0.

    CE(row_i · columns / τ, first + i), both scaled to unit length.

    Args:
        rows: (N, D).
        columns: (M, D), M >= first + N.
        temperature: τ > 0.
        first: the column that belongs to the first row.

    Source: van den Oord et al. 2018, eq. 4; by cosines, as CMI (Fang et al. 2021) takes it.
    """
    with torch.autocast(rows.device.type, enabled=False):  # cosines over a small τ: not in half precision
        logits = F.normalize(raised(rows), dim=1) @ F.normalize(raised(columns), dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(rows), device=rows.device) + first)
