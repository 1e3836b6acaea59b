"""Half types are raised before anything is summed or exponentiated."""

from __future__ import annotations

from torch import Tensor


def raised(x: Tensor) -> Tensor:
    """`x` in float32 if it is of a half type; float32 and float64 stay."""
    return x if x.dtype.itemsize >= 4 else x.float()
