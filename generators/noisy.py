"""Generators whose variety comes from layers that are drawn anew, not from a latent vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoisyLinear(nn.Module):
    """Several linear layers, each for its own rows: slot s belongs to layer s // rows.

    All run as one batched product, and all are trained. `reset_parameters` draws them anew.

    Args:
        inputs: size of a row, D.
        outputs: size of a result, E.
        layers: their number.
        rows: how many rows a layer serves at most.

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

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        """(N, E) of the rows (N, D) that stand in the slots (N,), each slot taken once."""
        layers, inputs = self.weight.shape[:2]
        padded = x.new_zeros(layers * self.rows, inputs).index_copy(0, slots, x)
        return torch.baddbmm(self.bias, padded.view(layers, self.rows, inputs), self.weight).flatten(0, 1)[slots]


def slots_of(classes: Tensor, rows: int) -> Tensor:
    """Slots (N,) for the classes (N,) of a batch: a class's k-th image goes to layer k, so that no two are alike.

    Within a layer rows keep their order. `rows` is a layer's number of slots.
    """
    layer = count_before(classes)
    return layer * rows + count_before(layer)


def count_before(values: Tensor) -> Tensor:
    """For each entry (N,), how many before it are equal to it."""
    return (values[:, None] == values[None]).tril(-1).sum(1)


class Noisy(nn.Module):
    """A class's row -> batch norm -> noisy layers -> a generator. There is no latent vector.

    Batch norm is over the rows of all classes, whichever of them a batch holds: where it holds each equally often,
    as in NAYER, that is the same.

    Args:
        generator: takes (N, latent).
        embeddings: one row a class, (classes, D); kept with the weights.
        latent: size of the generator's input.
        layers: noisy layers; no class is more often in a batch.
        rows: different classes in a batch, at most.
    """

    def __init__(self, generator: nn.Module, embeddings: Tensor, latent: int, layers: int, rows: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        self.norm = nn.BatchNorm1d(embeddings.shape[1])
        self.noise = NoisyLinear(embeddings.shape[1], latent, layers, rows)
        self.generator = generator

    def slots(self, targets: Tensor) -> Tensor:
        """Where the classes (N,) of a whole batch stand, (N,)."""
        return slots_of(targets, self.noise.rows)

    def forward(self, targets: Tensor, slots: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) of classes (N,): a whole batch, or a part of one with its slots."""
        # An index's gradient is added up by all threads at once, in no fixed order; this one row by row.
        rows = F.embedding(targets, self.norm(self.get_buffer("embeddings")))
        images: Tensor = self.generator(self.noise(rows, self.slots(targets) if slots is None else slots))
        return images
