"""Networks trained on the real data: selections embed with them, soft labels are theirs, `sre2l` inverts one.

Made once and found again by what they depend on: data, architecture, recipe, seed. How long they are trained follows
from the run's length by a fixed rule, not from the clock on the wall: the same run has the same network on any machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datafree import parallel
from datafree.condensation.networks import embed
from datafree.condensation.setting import Setting, operations_a_second
from datafree.data.tensors import augment, to_float, usual_pad
from datafree.domain import Domain
from datafree.evaluation.cost import multiply_adds
from datafree.evaluation.networks import add_gradients, forward_of
from datafree.models import Loaded, build_model, load_model, model_names
from datafree.models.build import check_logits, is_file_arch
from datafree.models.checkpoint import SUFFIXES
from datafree.runs import save_network
from datafree.teacher import Normalised
from datafree.training import cosine

SHARE = 0.15  # of a run's time that one network may take
SELECTION_SECONDS = 600.0  # the length that selections are scaled to, which have none of their own
EPOCHS = 20  # no network is trained longer
FEWEST = 10  # steps
# Chosen among .01 to .2 on validation splits of digits and Fashion-MNIST.
NORMED_RATE, PLAIN_RATE = 0.1, 0.03


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, cosine, cropped and (where labels allow) flipped images."""

    steps: int
    lr: float
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "32"
    version: int = 1  # of this file's arithmetic


def trained_network(setting: Setting, arch: str | None = None, *, selecting: bool = False) -> Normalised:
    """A network from images in [0, 1] to logits, trained on the real data; evaluation mode, no gradients.

    Nothing is drawn from the run's random numbers, whether the network is found or made.

    Args:
        setting: data, networks, length, cache.
        arch: a name; None for the networks of the run (whitened, where those are). A named one always sees the
            domain's normalisation.
        selecting: for a method without steps, whose clock says nothing unless a length was asked for.

    Raises:
        KeyboardInterrupt: a person asked to stop.
    """
    with parallel.forked(setting.device):
        wanted = _wanted(setting, arch, selecting)
        network, path = wanted.network, wanted.path
        if parallel.rank() == 0 and not _load(network, path):
            where = f", kept in {path}" if path is not None else ""
            setting.say(f"training {wanted.what}{where}")
            begin = time.monotonic()
            train(network, setting, wanted.recipe, torch.Generator(setting.device).manual_seed(wanted.seed))
            _save(network, path, setting, arch)
            setting.prepared(time.monotonic() - begin)
    if parallel.world_size() > 1:
        _broadcast(network)
    return network.eval().requires_grad_(False)


def needed_network(setting: Setting, arch: str | None = None, *, selecting: bool = False) -> str:
    """A line on the network that `trained_network` will give: whether it is kept, or has to be trained. Trains none."""
    with parallel.forked(setting.device):
        wanted = _wanted(setting, arch, selecting)
        kept = _load(wanted.network, wanted.path)
    return f"{wanted.what}: {f'kept in {wanted.path}' if kept else 'has to be trained'}"


def is_checkpoint(name: str) -> bool:
    """Whether a teacher's name is that of a trained network's file or run folder, not of an architecture to train."""
    if name in model_names() or is_file_arch(name) or name.startswith(("torchvision:", "timm:")):
        return False
    path = Path(os.path.expanduser(name))
    return path.suffix in SUFFIXES or bool(name and path.exists())


def load_checkpoint(name: str, arch: str | None, domain: Domain) -> Loaded:
    """The trained network of a file or run folder, for images of the domain's size and classes.

    Raises:
        FileNotFoundError, ValueError: one line that says what to do.
    """
    try:
        loaded = load_model(name, arch=arch, shape=domain.shape, classes=domain.classes)
    except ValueError as error:
        raise ValueError(str(error).replace("--arch", "--teacher-arch")) from error
    with torch.no_grad():
        check_logits(loaded.network(torch.full((1, *domain.shape), 0.5)), name)
    return loaded


def loaded_network(setting: Setting, name: str, arch: str | None) -> Normalised | None:
    """The network of a checkpoint as `trained_network` gives one it has trained; None where `name` is no checkpoint's.

    It sees the normalisation that its file says, else the data's.
    """
    if not is_checkpoint(name):
        return None
    domain, loaded = setting.domain, load_checkpoint(name, arch, setting.domain)
    network = Normalised(loaded.network, loaded.mean or domain.mean, loaded.std or domain.std).to(setting.device)
    network = network.to(memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)


class _Wanted(NamedTuple):
    """A network before it is trained, how it is, where it is kept and what is said of it."""

    network: Normalised
    recipe: Recipe
    seed: int
    path: Path | None
    what: str


def _wanted(setting: Setting, arch: str | None, selecting: bool) -> _Wanted:
    """Seeds the global generator."""
    seed = setting.rng.initial_seed() % 2**63
    torch.manual_seed(seed)
    network = _build(setting, arch)
    name = arch or setting.arch
    macs = multiply_adds(network, setting.domain.shape)
    recipe = Recipe(
        steps=training_steps(setting, macs, selecting=selecting),
        lr=NORMED_RATE if any(isinstance(m, _BatchNorm) for m in network.modules()) else PLAIN_RATE,
        precision=setting.precision,
    )
    what = f"{name} on the real data for {recipe.steps} steps of {recipe.batch_size}"
    return _Wanted(network, recipe, seed, _cache_path(setting, name, arch is None, recipe, seed), what)


def training_steps(setting: Setting, macs: int, *, selecting: bool = False) -> int:
    """As many steps as the run has; of a run with a time limit, what `SHARE` of it allows. `EPOCHS` at most.

    Args:
        setting: length and data.
        macs: multiply-adds of a pass of one image.
        selecting: see `trained_network`.
    """
    clock, size = setting.clock, Recipe.batch_size
    if clock.steps is not None and not (selecting and clock.steps == 1):
        wanted = float(clock.steps)
    else:
        seconds = clock.seconds or SELECTION_SECONDS
        operations = 6 * macs * size  # two a multiply-add, forward once and backward twice
        wanted = SHARE * seconds * operations_a_second(setting.device) / operations
    most = math.ceil(EPOCHS * len(setting.real.x) / size)
    return max(FEWEST, min(most, int(wanted)))


def train(network: nn.Module, setting: Setting, recipe: Recipe, rng: torch.Generator) -> None:
    """Trains in place, by the recipe, on the setting's real images.

    Raises:
        KeyboardInterrupt: a person asked to stop.
    """
    real, domain, network = setting.real, setting.domain, network.train()
    size, pad = min(recipe.batch_size, len(real.x)), usual_pad(domain.shape)
    forward = forward_of(network, recipe.precision)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    order = torch.empty(0, dtype=torch.int64, device=real.x.device)
    for step in range(recipe.steps):
        if setting.stopping():
            raise KeyboardInterrupt
        if len(order) < size:
            order = torch.randperm(len(real.x), generator=rng, device=real.x.device)
        rows, order = order[:size], order[size:]
        images = augment(to_float(real.x[rows]), rng, pad=pad, flip=domain.flip)
        add_gradients(network, forward, images.contiguous(memory_format=torch.channels_last), real.y[rows])
        optimizer.param_groups[0]["lr"] = recipe.lr * cosine(step / recipe.steps)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, size: int = 256) -> Tensor:
    """`function` of images (N, ...), a batch at a time, without gradients. uint8 images become floats in [0, 1]."""
    parts = [to_float(part) if part.dtype == torch.uint8 else part for part in torch.split(images, size)]
    return torch.cat([function(part.contiguous(memory_format=torch.channels_last)).float() for part in parts])


def embeddings(setting: Setting, network: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer of `network` is given, float32 (N, D), for images (N, C, H, W), uint8 or in [0, 1]."""

    return in_batches(lambda part: embed(setting, network, part), images)


def _build(setting: Setting, arch: str | None) -> Normalised:
    if arch is None:
        network = setting.new_network()
    else:
        domain = setting.domain
        inner = build_model(arch, shape=domain.shape, classes=domain.classes)
        network = Normalised(inner, domain.mean, domain.std).to(setting.device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[return-value]


def _cache_path(setting: Setting, name: str, own: bool, recipe: Recipe, seed: int) -> Path | None:
    """Where the network is kept: its name holds a hash of all that it depends on."""
    if setting.cache is None:
        return None
    domain, real = setting.domain, setting.real
    about = {
        "arch": name,
        "file": Path(name.rpartition(":")[0]).read_text() if is_file_arch(name) else "",
        "domain": [domain.shape, domain.classes, domain.mean, domain.std, domain.flip],
        "whitened": own and setting.whitening is not None,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
    }
    down, right = usual_pad(domain.shape)
    if down != right:  # those of square images keep their names
        about["pad"] = [down, right]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for tensor in (real.x, real.y):
        digest.update(tensor.cpu().contiguous().numpy().data)
    plain = "".join(letter if letter.isalnum() else "_" for letter in name.rpartition("/")[2])
    return setting.cache / f"{plain}-{digest.hexdigest()[:24]}.safetensors"


def _load(network: Normalised, path: Path | None) -> bool:
    """Whether the network was there. A damaged file counts as missing."""
    from safetensors.torch import load_file

    if path is None or not path.is_file():
        return False
    try:
        network.network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _save(network: Normalised, path: Path | None, setting: Setting, arch: str | None) -> None:
    if path is None:
        return
    domain, name = setting.domain, arch or setting.arch
    known: dict[str, Any] = {"shape": domain.shape, "classes": domain.classes}
    if arch is None and setting.whitening is not None:  # it sees whitened images, and how is not kept here
        known["whitened"] = True
    else:
        known |= {"mean": domain.mean, "std": domain.std}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_network(path, network.network, {"arch": name, "data": domain.name, **known})
    except (OSError, ValueError) as error:  # a run need not fail for its cache
        setting.say(f"warning: the trained network is not kept: {error}")


@torch.no_grad()
def _broadcast(network: nn.Module) -> None:
    """Rank 0's weights and buffers to all."""
    for tensor in network.state_dict().values():
        held = tensor.contiguous()
        dist.broadcast(held, 0)
        tensor.copy_(held)
