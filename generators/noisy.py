"""Generators whose variety comes from layers that are drawn anew, not from a latent vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoisyLinear(nn.Module):
    """Several linear layers, each for its own rows of a batch: layer i takes rows i·rows to (i+1)·rows.

    All run as one batched product, and all are trained. `reset_parameters` draws them anew.

    Args:
        inputs: size of a row, D.
        outputs: size of a result, E.
        layers: their number.
        rows: how many rows a layer serves; the classes' number where a layer is to serve every class once.

    Source: NAYER (Tran et al. 2024), noisy layer and K-to-1 generation; W from N(0, 1) and b = 0 as in its release.
    """

    def __init__(self, inputs: int, outputs: int, layers: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(layers, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(layers, 1, outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def draw(self, rng: torch.Generator) -> None:
        """New weights from a generator of random numbers on the CPU."""
        self.weight.copy_(torch.randn(self.weight.shape, generator=rng))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """(N, E) of the rows (N, D) that stand at `first` and after it in the batch."""
        layers, inputs = self.weight.shape[:2]
        after = layers * self.rows - first - len(x)
        assert first >= 0 and after >= 0, "more rows than the layers serve"
        padded = F.pad(x, (0, 0, first, after)).view(layers, self.rows, inputs)
        return torch.baddbmm(self.bias, padded, self.weight).flatten(0, 1)[first : first + len(x)]


class Noisy(nn.Module):
    """A class's row -> batch norm -> noisy layers -> a generator. There is no latent vector.

    Args:
        generator: takes (N, latent).
        embeddings: one row a class, (classes, D); kept with the weights.
        latent: size of the generator's input.
        batch: images a batch, which has a noisy layer for each set of classes that it holds.
    """

    def __init__(self, generator: nn.Module, embeddings: Tensor, latent: int, batch: int) -> None:
        super().__init__()
        classes, inputs = embeddings.shape
        self.register_buffer("embeddings", embeddings)
        self.norm = nn.BatchNorm1d(inputs)
        self.noise = NoisyLinear(inputs, latent, -(-batch // classes), classes)
        self.generator = generator

    def forward(self, targets: Tensor, first: int = 0) -> Tensor:
        """Images (N, C, H, W) of classes (N,), which stand at `first` and after it in the batch."""
        images: Tensor = self.generator(self.noise(self.norm(self.get_buffer("embeddings")[targets]), first))
        return images
