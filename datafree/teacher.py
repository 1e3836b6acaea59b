"""The teacher: frozen, takes images in [0, 1], and shows what a pass through it did."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datafree.data.whitening import Whitening
from datafree.losses.statistics import Statistics
from datafree.parallel import channel_statistics


class View(NamedTuple):
    """What one pass showed."""

    logits: Tensor
    features: Tensor | None
    statistics: list[Statistics]


class Normalised(nn.Module):
    """A classifier with its normalisation in front, so that it takes images in [0, 1].

    Args:
        network: any module from normalised images (N, C, H, W) to logits (N, classes).
        mean: one value a channel.
        std: one value a channel, > 0.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits


class Whitened(nn.Module):
    """A network with ZCA whitening in front instead of the normalisation, so that it takes images in [0, 1].

    Args:
        network: any module from whitened images (N, C, H, W) to logits (N, classes).
        whitening: fitted to the training images.
    """

    def __init__(self, network: nn.Module, whitening: Whitening) -> None:
        super().__init__()
        self.network = network
        for name, tensor in whitening._asdict().items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        whitening = Whitening(*map(self.get_buffer, Whitening._fields))
        logits: Tensor = self.network(whitening.apply(images))
        return logits


def split_entry(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """What stands before a classifier (`Normalised`, `Whitened`, else nothing), and the classifier itself."""
    inner = network._modules.get("network")
    if inner is None:
        return nn.Identity(), network
    front = copy.copy(network)  # shares the buffers
    front._modules = {**network._modules, "network": nn.Identity()}
    return front, inner


class Teacher:
    """A trained classifier that is never changed: evaluation mode, no gradients for its parameters.

    It makes no demand on the network: features and batch-norm statistics are read through hooks that live for one pass.

    Args:
        network: from normalised images to logits.
        mean: normalisation, one value a channel.
        std: normalisation, one value a channel.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        self.classifier = Normalised(network, mean, std).eval().requires_grad_(False)
        self.norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]

    @property
    def network(self) -> nn.Module:
        return self.classifier.network

    @property
    def has_statistics(self) -> bool:
        """Whether any batch-norm layer remembers statistics."""
        return bool(self.norms)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.classifier(images)
        return logits

    def look(self, images: Tensor, *, features: bool = False, statistics: bool = False) -> View:
        """Logits, and if asked for the penultimate features (N, D) and the batch-norm layers' input statistics.

        The features are the input of the last linear layer (or, failing that, of the last convolution) that ran.
        """
        seen: list[Statistics] = []
        last: list[Tensor] = []
        with _hooks(self.network, self.norms if statistics else [], seen, last if features else None):
            logits = self(images)
        return View(logits, last[-1].flatten(1) if last else None, seen)


@contextmanager
def _hooks(
    network: nn.Module, norms: list[_BatchNorm], seen: list[Statistics], last: list[Tensor] | None
) -> Iterator[None]:
    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
        seen.append(Statistics(*channel_statistics(inputs[0]), norm.running_mean, norm.running_var))

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert last is not None
        last[:] = [inputs[0]]

    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    if last is not None:
        heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
        heads = heads or [m for m in network.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[misc]
        handles += [head.register_forward_pre_hook(keep) for head in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
