"""Networks that objectives look through: fresh ones, a pool trained on the real data, or ones used several times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from datafree import parallel
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.data.mixing import cutmix, mix_labels
from datafree.evaluation.cost import multiply_adds
from datafree.evaluation.networks import add_gradients, forward_of, fusible, part_size
from datafree.losses.precision import raised
from datafree.models.batches import mixes
from datafree.models.convnet import ConvNet
from datafree.models.fused import fused_features
from datafree.teacher import split_entry


def look(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The field's embedding (N, D), which is the input of the network's last linear layer, and the logits.

    With gradients. For the zoo's ConvNet the embedding is its flattened last pooled map.

    Raises:
        ValueError: the network has no linear layer.
    """
    heads = linear_layers(network)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handles = [head.register_forward_pre_hook(keep) for head in heads]
    try:
        logits: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen[-1].flatten(1), logits


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """What an embedding is read before. Raises ValueError where there is none."""
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not heads:
        raise ValueError(f"{_kind(network)} has no linear layer to read features before: take another --arch")
    return heads


def check_embeddings(setting: Setting) -> None:
    """Raises ValueError where the run's networks have no embedding: before one is trained for it. Draws nothing."""
    with parallel.forked(setting.device):
        linear_layers(setting.new_network())


def count_layers(setting: Setting) -> int:
    """How many maps `look_at_layers` sees in the run's networks; its errors before one is trained. Draws nothing."""
    with parallel.forked(setting.device), torch.no_grad():
        network = setting.new_network().eval()
        image = next(network.parameters()).new_zeros(1, *setting.domain.shape)
        return len(look_at_layers(network, image, lambda maps: maps)[0])


def look_at_layers(
    network: nn.Module, images: Tensor, keep: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What `keep` makes of the maps (N, C, H, W) behind each activation, in order; embedding and logits as `look`.

    Activations are modules or functions. For the zoo's ConvNet they are the maps between each block's norm and pooling.

    Raises:
        ValueError: the network has no such maps, or no linear layer.
    """
    with _Activations(keep) as activations:
        features, logits = look(network, images)
    if not activations.kept:
        known = ", ".join(sorted({activation.__name__.strip("_") for activation in ACTIVATIONS}))
        raise ValueError(
            f"{_kind(network)} has no activations of maps to look at ({known}): take a convolutional --arch with some"
        )
    return activations.kept, features, logits


def _kind(network: nn.Module) -> str:
    """The class that a person named, under what normalises its images."""
    return type(getattr(network, "network", network)).__name__


# Sigmoids are none: in most networks they weigh maps, as gates.
ACTIVATIONS = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.prelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus,
    F.hardswish, F.hardtanh, torch.relu, torch.tanh, Tensor.relu, Tensor.relu_, Tensor.tanh,
}  # fmt: skip


class _Activations(TorchFunctionMode):
    """Sees every call of an activation, by modules too. Hooks would miss the functions, which most networks call."""

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.keep = keep
        self.kept: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in ACTIVATIONS and result.dim() == 4:
            self.kept.append(self.keep(result))
        return result


def embed(setting: Setting, network: nn.Module, images: Tensor) -> Tensor:
    """The embedding of `look` without the logits, quickly: (N, D) in float32 at least, with gradients of first order.

    On a CPU a ConvNet is taken by `fused_features`, a few images at a time. One core, ConvNet-3-128, 28x28 pixels: a
    plain pass of 64 images takes 0.9 ms an image, this one 0.6 ms, in bfloat16 0.4 ms.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    if not fusible(network):
        whole = torch.is_grad_enabled() or mixes(network)
        size = len(images) if whole else (4 if images.device.type == "cpu" else 32) * part_size(images)
        with setting.cast():
            return raised(torch.cat([look(network, part)[0] for part in torch.split(images, size)]))
    dtype = torch.bfloat16 if setting.precision == "bf16" else None
    front, inner = split_entry(network)
    assert isinstance(inner, ConvNet)
    parts = torch.split(images, part_size(images))
    return torch.cat([fused_features(inner, front(part), dtype=dtype) for part in parts])


def embed_layers(
    setting: Setting, network: nn.Module, images: Tensor, keep: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], Tensor]:
    """`look_at_layers` without the logits, on a CPU a few images at a time.

    Returns:
        For each activation what `keep` makes of the parts' maps, concatenated (a row an image, or a row a part); and
        the embedding (N, D). Maps and embedding are raised to float32 at least.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    size = len(images) if mixes(network) or images.device.type != "cpu" else part_size(images)
    kept, features = [], []
    for part in torch.split(images, size):
        with setting.cast():
            maps, embedding, _ = look_at_layers(network, part, lambda x: keep(raised(x)))
        kept.append(maps)
        features.append(raised(embedding))
    return [torch.cat(rows) for rows in zip(*kept, strict=True)], torch.cat(features)


def shared_classes(setting: Setting, network: nn.Module) -> tuple[list[int], float]:
    """The classes whose terms this process computes, and the factor that makes the processes' terms add up.

    A network that mixes its batch sees all classes at once, as published, on every process. A process that is left
    without a class, because there are more processes than classes, takes the first with a factor of 0: no batch is
    empty.
    """
    if mixes(network):
        return list(range(setting.domain.classes)), 1 / parallel.world_size()
    own = setting.own_classes()
    return (own, 1.0) if own else ([0], 0.0)


def augmented_pairs(
    setting: Setting, synthetic: Synthetic, real_batch: int, own: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Real and synthetic images of the classes in `own`, after one draw of the augmentation for each class (siamese).

    Every process draws for all classes, so that all draw alike.

    Returns:
        Real images (K real_batch, C, H, W), class by class; synthetic ones (M, C, H, W); the latter's classes (M,).
    """
    real, made, classes = [], [], []
    for label in range(setting.domain.classes):
        images = setting.real.of_class(label, real_batch, setting.rng)
        if label not in own:
            setting.augment_alike()
            continue
        both = setting.augment_alike(images, synthetic.of_class(label))
        real.append(both[0])
        made.append(both[1])
        classes += [label] * len(both[1])
    return torch.cat(real), torch.cat(made), torch.tensor(classes, device=setting.device)


def cut_and_mixed(images: Tensor, labels: Tensor, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019) of images (N, C, H, W) with class numbers (N,): images and probabilities (N, classes).

    A class has as much of an image's label as of its pixels. Differentiable in the images.
    """
    mixed = cutmix(images, rng)
    return mixed.images, mix_labels(F.one_hot(labels, classes).to(images), mixed.order, mixed.share)


class Networks:
    """`take()` gives the network of a step, `advance()` moves on. The kinds are those of `CondenseConfig.nets`.

    fresh: new random weights at every step.
    trained: a pool; the network that was used is trained further on real images, `train_steps` steps at a time, and is
        renewed when it has seen `net_steps` of them. At the start the pool's networks are of staggered ages, up to
        `net_steps`, or as far as training them fits a short run.
    reused: random weights that serve `net_steps` steps.

    Args:
        setting: what the method is given.
        batch_size: real images a training step.
        train_steps: training steps of the pool between two steps on the images; `net_steps` at most.
        keep_initial: keep the first weights too, for `between`.
        cutmix: probability that a training batch is mixed, in [0, 1]. Where it is above 0, cutout is left out of these
            batches' augmentation, as in IDC's release.
    """

    RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4  # the field's evaluation constants

    def __init__(
        self,
        setting: Setting,
        *,
        batch_size: int = 128,
        train_steps: int = 1,
        keep_initial: bool = False,
        cutmix: float = 0.0,
    ) -> None:
        self.setting, self.batch_size, self.train_steps = setting, batch_size, train_steps
        self.keep_initial, self.cutmix = keep_initial, cutmix
        self.pool: list[nn.Module] = []
        self.initial: list[dict[str, Tensor]] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.ages: list[int] = []
        self.current = 0
        self.used = False

    def take(self) -> nn.Module:
        """The network of this step; weights without gradients in every kind."""
        setting = self.setting
        self.used = True
        if setting.nets == "fresh":
            return setting.new_network().requires_grad_(False)
        if not self.pool:
            self._fill()
        return self.pool[self.current].requires_grad_(False)

    def between(self, share: float) -> nn.Module:
        """The network of this step with weights between its first ones (share 0) and its present ones (share 1)."""
        network = self.take()
        if not self.initial:  # a network that is not trained
            return network
        mixed, first = copy.deepcopy(network), self.initial[self.current]
        with torch.no_grad():
            for name, weight in mixed.state_dict().items():
                if weight.is_floating_point():
                    weight.copy_(first[name].lerp(weight, share))
        return mixed

    def advance(self) -> None:
        """After a step: trains the used network or counts its use, and takes the next."""
        setting = self.setting
        if not self.used or setting.nets == "fresh":
            return
        self.used = False
        if setting.nets == "reused":
            self.ages[0] += 1
            if self.ages[0] >= setting.net_steps:
                self._renew(0)
            return
        if self.ages[self.current] + self.train_steps > setting.net_steps:
            self._renew(self.current)
        else:
            self._train(self.current, self.train_steps)
        self.current = int(torch.randint(len(self.pool), (1,), generator=setting.rng, device=setting.device))

    def _fill(self) -> None:
        setting = self.setting
        size = setting.net_pool if setting.nets == "trained" else 1
        for index in range(size):
            self.pool.append(setting.new_network())
            self.optimizers.append(self._optimizer(self.pool[index]))
            self.ages.append(0)
            if self.keep_initial:
                self.initial.append(_copied(self.pool[index]))
            if setting.nets == "trained":
                self._train(index, index * self._oldest(size) // size)

    def _oldest(self, size: int) -> int:
        """Up to which age the pool is staggered at the start: `net_steps`, or less where the run is short."""
        from datafree.condensation.trained import Recipe, training_steps

        macs = multiply_adds(self.pool[0], self.setting.domain.shape)
        affordable = training_steps(self.setting, macs) * Recipe.batch_size // self.batch_size
        return min(self.setting.net_steps, 2 * affordable // size)  # on the average a network is half as old

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), self.RATE, self.MOMENTUM, weight_decay=self.DECAY)

    def _renew(self, index: int) -> None:
        self.pool[index] = self.setting.new_network()
        self.optimizers[index] = self._optimizer(self.pool[index])
        self.ages[index] = 0
        if self.keep_initial:
            self.initial[index] = _copied(self.pool[index])

    def _train(self, index: int, steps: int) -> None:
        setting, network = self.setting, self.pool[index].requires_grad_(True).train()
        forward = forward_of(network, setting.precision)
        for _ in range(steps):
            images, labels = self._batch()
            add_gradients(network, forward, images.contiguous(memory_format=torch.channels_last), labels)
            self.optimizers[index].step()
            self.optimizers[index].zero_grad()
            self.ages[index] += 1

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Real images (N, C, H, W), augmented, and class numbers (N,), or where they are mixed probabilities."""
        setting = self.setting
        images, labels = setting.real.batch(self.batch_size, setting.rng)
        images = setting.augment_each(images, but="cutout" if self.cutmix else "")
        # Without mixing nothing is drawn.
        if self.cutmix and torch.rand((), generator=setting.rng, device=setting.device).item() < self.cutmix:
            return cut_and_mixed(images, labels, setting.domain.classes, setting.rng)
        return images, labels

    def state_dict(self) -> dict[str, Any]:
        return {
            "pool": [network.state_dict() for network in self.pool],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "initial": list(self.initial),
            "ages": list(self.ages),
            "current": self.current,
            "used": self.used,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool = [self.setting.new_network() for _ in state["pool"]]
        self.optimizers = [self._optimizer(network) for network in self.pool]
        for network, held in zip(self.pool, state["pool"], strict=True):
            network.load_state_dict(held)
        for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
        device = self.setting.device  # checkpoints are read to the CPU
        self.initial = [{name: tensor.to(device) for name, tensor in held.items()} for held in state["initial"]]
        self.ages, self.current, self.used = list(state["ages"]), int(state["current"]), bool(state["used"])


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}
