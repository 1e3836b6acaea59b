"""The teacher: frozen, takes images in [0, 1], and shows what a pass through it did."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from datafree.arguments import checked
from datafree.data.whitening import Whitening
from datafree.losses.precision import raised
from datafree.losses.statistics import Statistics
from datafree.models.folding import folded
from datafree.parallel import channel_statistics


class View(NamedTuple):
    """What one pass showed; `tokens`: the patches that came out of each attention block, (N, P, D)."""

    logits: Tensor
    features: Tensor | None
    statistics: list[Statistics]
    tokens: list[Tensor]


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

    It makes no demand on the network: whatever is seen of it is read through hooks that live for one pass.

    Args:
        network: from normalised images to logits.
        mean: normalisation, one value a channel.
        std: normalisation, one value a channel.

    Attributes:
        norms: the batch-norm layers that remember statistics.
        stand_ins: without such layers, the norm layers that stand in for them (see `look`).
        attentions: attention blocks: torch's `nn.MultiheadAttention` and timm's `Attention`.
    """

    @checked()
    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        self.classifier = Normalised(network, mean, std).eval().requires_grad_(False)
        modules = list(network.modules())
        self.norms = [m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self.stand_ins = [] if self.norms else [m for m in modules if _stands_in(m)]
        self.attentions = [m for m in modules if _is_attention(m)]
        self._constants = mean, std

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

    def answering(self) -> Callable[[Tensor], Tensor]:
        """A function from images (N, C, H, W) in [0, 1] to the same logits without a gradient.

        It asks a copy of the present weights with the batch norms folded away, where that can be done. Nothing can be
        watched there: hooks on the network do not see it.
        """
        copied = Normalised(folded(self.network), *self._constants).to(self.classifier.get_buffer("mean").device)

        @torch.no_grad()
        def answer(images: Tensor) -> Tensor:
            logits: Tensor = copied(images)
            return logits

        copied.eval()
        return answer

    def look(self, images: Tensor, *, features: bool = False, statistics: bool = False, tokens: bool = False) -> View:
        """Logits, and if asked for the penultimate features (N, D), the norm layers' statistics, the attended patches.

        The features are the input of the last linear layer that ran or, failing that, of the last convolution, averaged
        over its positions.

        The statistics are those of the batch-norm layers' inputs, beside what the layers remember. A network without
        any has nothing that it remembers. There, by our own reading, the layers that normalise each image over several
        channels (`GroupNorm`, `LayerNorm`), and `InstanceNorm` with running statistics, stand in: the mean and variance
        of each channel of their normalised activations, before the affine part, beside mean 0 and variance 1. All
        channels together have these by construction, and a channel of its own is pulled to them. Layers that normalise
        each channel of each image by itself (`InstanceNorm`, `GroupNorm` with as many groups as channels) are left out:
        there it is so whatever the image, and nothing would be matched.

        The tokens are the outputs of the attention blocks, (N, P, D) each, in the order of the pass. P patches are the
        largest square number of tokens; those before them are taken for class tokens and left out.
        """
        seen: list[Statistics] = []
        last: list[Tensor] = []
        attended: list[Tensor] = []
        with _hooks(self, seen if statistics else None, last if features else None, attended if tokens else None):
            logits = self(images)
        return View(logits, _features(last[-1]) if last else None, seen, attended)


def _features(inputs: Tensor) -> Tensor:
    return inputs.mean((2, 3)) if inputs.dim() == 4 else inputs.flatten(1)


def _stands_in(module: nn.Module) -> bool:
    """Whether a norm layer's channels could have other statistics than 0 and 1 once they are normalised."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups < module.num_channels
    return isinstance(module, nn.LayerNorm) or (isinstance(module, _InstanceNorm) and module.running_mean is not None)


def _is_attention(module: nn.Module) -> bool:
    # timm has an Attention in several of its files, all with this attribute.
    named = type(module).__name__ == "Attention" and hasattr(module, "num_heads")
    return named or isinstance(module, nn.MultiheadAttention)


def _remembered(norm: nn.Module, inputs: Tensor) -> Statistics:
    """The statistics that `Teacher.look` describes, of one layer and its input."""
    if isinstance(norm, _BatchNorm):
        assert norm.running_mean is not None and norm.running_var is not None
        return Statistics(*channel_statistics(inputs), norm.running_mean, norm.running_var)
    mean, var = channel_statistics(_standardised(norm, raised(inputs)))
    return Statistics(mean, var, torch.zeros_like(mean), torch.ones_like(var))


def _standardised(norm: nn.Module, inputs: Tensor) -> Tensor:
    """What a norm layer makes of its input before the affine part: (M, C, ...)."""
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(inputs, norm.num_groups, eps=norm.eps)
    if isinstance(norm, _InstanceNorm):
        return F.instance_norm(inputs, norm.running_mean, norm.running_var, use_input_stats=False, eps=norm.eps)
    assert isinstance(norm, nn.LayerNorm)
    size = tuple(norm.normalized_shape)
    # Subclasses for maps (torchvision's and timm's LayerNorm2d) take (N, C, H, W) and normalise over C alone.
    if inputs.dim() == 4 and len(size) == 1 and type(norm) is not nn.LayerNorm and inputs.shape[1] == size[0]:
        inputs = inputs.movedim(1, -1)
    return F.layer_norm(inputs, size, eps=norm.eps).reshape(-1, *size)


def _patches(attention: nn.Module, output: Any) -> Tensor | None:
    """The patches (N, P, D) among the tokens that an attention block returned; None if there are not two."""
    tokens = output[0] if isinstance(output, tuple) else output
    if not isinstance(tokens, Tensor) or tokens.dim() != 3:
        return None
    if isinstance(attention, nn.MultiheadAttention) and not attention.batch_first:
        tokens = tokens.transpose(0, 1)
    count = math.isqrt(tokens.shape[1]) ** 2
    return tokens[:, -count:] if count > 1 else None


@contextmanager
def _hooks(
    teacher: Teacher, seen: list[Statistics] | None, last: list[Tensor] | None, attended: list[Tensor] | None
) -> Iterator[None]:
    """Fills the lists that are given during the pass inside."""

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert seen is not None
        seen.append(_remembered(norm, inputs[0]))

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert last is not None
        last[:] = [inputs[0]]

    def attend(attention: nn.Module, _: Any, output: Any) -> None:
        assert attended is not None
        if (patches := _patches(attention, output)) is not None:
            attended.append(patches)

    handles = []
    if seen is not None:
        handles += [norm.register_forward_pre_hook(observe) for norm in (*teacher.norms, *teacher.stand_ins)]
    if last is not None:
        heads = [m for m in teacher.network.modules() if isinstance(m, nn.Linear)]
        heads = heads or [m for m in teacher.network.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[misc]
        handles += [head.register_forward_pre_hook(keep) for head in heads]
    if attended is not None:
        handles += [attention.register_forward_hook(attend) for attention in teacher.attentions]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # without gradients older torch would go past the layers inside
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
