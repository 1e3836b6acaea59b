"""Networks trained on a small set, quickly.

What costs is the passes through ConvNet. On a CPU they are taken by `datafree.models.fused`, a few images at a time:
their maps then stay in the processor's caches. Instance norm knows no other image, so the gradients are those of the
whole batch up to rounding. All other networks take the batch at once. Networks are trained one after the other: stacked
into one (by grouped convolutions, or by vmap) they took as long or longer for each, on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.data.augmentation import Augmentation, apply, draw, parse_augmentation
from datafree.data.mixing import cutmix, mix_labels, random_resized_crop, shuffle_patches
from datafree.data.tensors import to_float
from datafree.domain import Domain
from datafree.evaluation.protocols import Protocol
from datafree.losses.precision import raised
from datafree.models.batches import in_batches
from datafree.models.convnet import ConvNet
from datafree.models.fused import fused_logits
from datafree.parallel import forked
from datafree.teacher import split_entry
from datafree.training import TermError

# Pixels of a part of a batch: 48 images of 32x32. 32 to 64 were the quickest of 4 to 256, on a core with 1 MB of
# second-level cache; and the first maps (24 MB in float32) stay below the size from which the C library fetches fresh,
# zeroed memory from the system for every tensor.
PART_PIXELS = 48 * 32 * 32

Forward = Callable[[Tensor], Tensor]


def train_networks(
    make: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    domain: Domain,
    generator: torch.Generator,
    *,
    count: int | None = None,
    lr: float | None = None,
    precision: str = "32",
    teacher: Forward | None = None,
) -> list[nn.Module]:
    """Networks trained by `protocol`, each with its own weights, orders and augmentation; in evaluation mode.

    Args:
        make: builds a network that takes images in [0, 1]; its weights come from torch's global generator, which is
            seeded for each network and put back afterwards.
        images: (N, C, H, W), float in [0, 1] or uint8, on the device to train on.
        labels: class numbers (N,), or probabilities (N, classes).
        protocol: how.
        domain: normalisation for the augmentation, and whether mirror images keep their labels.
        generator: moves on by one number a network, whatever is trained: network i is the same for any `count`.
        count: how many; the protocol's number if None.
        lr: first rate, in the place of the protocol's.
        precision: "32", or "bf16" (matrix products and convolutions in bfloat16, on processors that have it much
            quicker).
        teacher: images in [0, 1] to logits; for protocols that want a teacher's labels.

    Raises:
        ValueError: no teacher where one is needed; labels and images that do not fit.
        TermError: a loss is NaN or infinite.
    """
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: give one label an image, at least one image")
    if protocol.labels == "teacher" and teacher is None:
        raise ValueError("this protocol trains on a teacher's labels: give a teacher, --teacher FILE")
    count = protocol.networks if count is None else count
    seeds = torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()
    return [
        train_network(make, images, labels, protocol, domain, seed=seed, lr=lr, precision=precision, teacher=teacher)
        for seed in seeds
    ]


def train_network(
    make: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    domain: Domain,
    *,
    seed: int,
    lr: float | None = None,
    precision: str = "32",
    teacher: Forward | None = None,
) -> nn.Module:
    """One network, all of whose random numbers follow from `seed`. Arguments as `train_networks`."""
    device, rng = images.device, torch.Generator().manual_seed(seed)
    if protocol.labels == "hard" and labels.is_floating_point():
        labels = labels.argmax(1)
    augmentation = parse_augmentation(
        protocol.augmentation, mode=protocol.mode, flip=domain.flip, mean=domain.mean, std=domain.std
    )
    with forked(device):
        torch.manual_seed(seed)  # the weights, and dropout where there is any
        network = make().to(device).train()
        forward = forward_of(network, precision)
        rate = protocol.lr if lr is None else lr
        optimizer = _optimizer(network, protocol, rate)
        for epoch in range(protocol.passes(len(images))):
            for group in optimizer.param_groups:
                group["lr"] = rate * protocol.rate(epoch, len(images))
            loss = torch.zeros((), device=device)
            order = torch.randperm(len(images), generator=rng)
            for rows in in_batches(order, protocol.batch_size, network):
                rows = rows.to(device)
                batch = images[rows]
                batch = to_float(batch) if batch.dtype == torch.uint8 else batch
                with torch.no_grad():
                    batch, targets = _augmented(
                        batch, labels[rows], protocol, augmentation, domain.classes, rng, teacher
                    )
                optimizer.zero_grad()
                loss = loss + add_gradients(network, lambda part: forward(part) / protocol.temperature, batch, targets)
                optimizer.step()
            if not loss.isfinite():
                raise TermError(f"the loss became {float(loss)} in epoch {epoch}: give a lower rate")
            if epoch == protocol.restarts(len(images)):
                optimizer = _optimizer(network, protocol, rate)
    return network.eval()


def forward_of(network: nn.Module, precision: str = "32") -> Forward:
    """The quickest way to `network`'s logits (float32) in its present mode, with derivatives of the first order."""
    if str(precision) not in ("32", "bf16"):
        raise ValueError(f"--precision is {precision!r}: take 32 or bf16")
    front, inner = split_entry(network)
    half = torch.bfloat16 if precision == "bf16" else None

    def fused(images: Tensor) -> Tensor:
        assert isinstance(inner, ConvNet)
        if not torch.is_grad_enabled() and len(images) > part_size(images):
            return torch.cat([fused(part) for part in torch.split(images, part_size(images))])
        return fused_logits(inner, front(images), dtype=half)

    def plain(images: Tensor) -> Tensor:
        # Without autocast's cache: it would go on using weights from before an optimiser's step.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half is not None, cache_enabled=False):
            logits: Tensor = network(images)
        return raised(logits)

    return fused if fusible(network) else plain


def fusible(network: nn.Module) -> bool:
    """Whether `network` is a ConvNet (behind a normalisation or not) on a CPU."""
    inner = split_entry(network)[1]
    return isinstance(inner, ConvNet) and inner.classifier.weight.device.type == "cpu"


def part_size(images: Tensor) -> int:
    """How many images to take at a time, so that the parts are of about one size."""
    most = max(1, PART_PIXELS // (images.shape[2] * images.shape[3]))
    return math.ceil(len(images) / max(1, math.ceil(len(images) / most))) or 1


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")


def add_gradients(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    losses: Callable[[Tensor, Tensor], Tensor] = _cross_entropies,
) -> Tensor:
    """Adds the gradients of a batch's mean loss to the parameters, part by part where the passes are fused; the loss.

    Args:
        network: whose passes they are.
        forward: from images (N, C, H, W) to logits (`forward_of`).
        images: (N, C, H, W).
        targets: class numbers (N,), probabilities or what `losses` takes, (N, ...).
        losses: the sum over images of their losses, of logits and targets.
    """
    size = part_size(images) if fusible(network) else len(images)
    total = torch.zeros((), device=images.device)
    for part, wanted in zip(torch.split(images, size), torch.split(targets, size), strict=True):
        loss = losses(forward(part), wanted) / len(images)
        torch.autograd.backward(loss)
        total = total + loss.detach()
    return total


def _augmented(
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    augmentation: Augmentation,
    classes: int,
    rng: torch.Generator,
    teacher: Forward | None,
) -> tuple[Tensor, Tensor]:
    """A batch as the network sees it, and its labels: class numbers, or probabilities."""
    images = shuffle_patches(images, protocol.patches, rng)
    if protocol.smallest_crop < 1:
        images = random_resized_crop(images, protocol.smallest_crop, rng)
    images = apply(images, draw(augmentation, len(images), rng), augmentation)
    if protocol.cutmix and torch.rand((), generator=rng).item() < protocol.cutmix:
        images, order, share = cutmix(images, rng)
        if protocol.labels != "teacher":
            soft = labels if labels.is_floating_point() else F.one_hot(labels, classes).to(images.dtype)
            labels = mix_labels(soft, order, share)
    if protocol.labels == "teacher":
        assert teacher is not None
        labels = (teacher(images).float() / protocol.temperature).softmax(1)
    return images, labels


def _optimizer(network: nn.Module, protocol: Protocol, rate: float) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    if protocol.optimizer == "adamw":
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, rate, weight_decay=protocol.weight_decay)
    return torch.optim.SGD(parameters, rate, protocol.momentum, weight_decay=protocol.weight_decay)
