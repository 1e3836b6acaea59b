"""Generators that are told what class to make."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conditional(nn.Module):
    """A generator whose input is a latent followed by its class's row.

    Args:
        generator: takes (N, latent + D).
        embeddings: one row a class, (classes, D); kept with the weights.
    """

    def __init__(self, generator: nn.Module, embeddings: Tensor) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("embeddings", embeddings)

    def forward(self, z: Tensor, targets: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) of latents z (N, latent) and classes (N,); all classes in turn where none are given."""
        rows = self.get_buffer("embeddings")
        if targets is None:
            targets = torch.arange(len(z), device=z.device) % len(rows)
        images: Tensor = self.generator(torch.cat([z, rows[targets]], 1))
        return images
