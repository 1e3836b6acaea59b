"""Experts: trajectories of networks trained on the real data, on disk.

An expert is recorded as its first parameters (float32) and how far it has gone from there at each later record
(float16: an error of 0.05 % of the way). One safetensors file an expert, which carries the checksum of what it holds,
and an index.json that says what they are of. What is torn or missing is made again; what is there is used again. SGD
without momentum on augmented batches as MTT's release records them (Cazenavette et al. 2022), or with sharpness-aware
steps: the gradient is taken at θ + rho g/||g|| (Foret et al. 2021, eq. 2-3).

Networks are trained one after another: torch.func.vmap over four of them took twice as long a network on one core
(ConvNet-3-128, batches of 64 and 256).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from datafree import parallel
from datafree.condensation.expert_files import (
    INDEX,
    Experts,
    about_expert,
    checksum,
    expert_file,
    missing_experts,
    read_index,
    whole_experts,
)
from datafree.condensation.setting import Setting, operations_a_second
from datafree.condensation.unrolling import Forward, flat, quick
from datafree.config import TrajectoryOptions
from datafree.data.tensors import to_float
from datafree.data.whitening import EPS
from datafree.evaluation.cost import multiply_adds
from datafree.runs import atomic_write, write_json
from datafree.training import TermError

FORMAT = 1
STEP_IMAGES = 500  # what a run whose length is in steps may spend on experts, a step
RECORDS = 24  # of an expert, where nothing else is said


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How experts are made. `count` alone is no part of what they are.

    steps: of an expert, a multiple of `every`, the steps between two records.
    """

    count: int
    steps: int
    every: int
    lr: float = 0.01
    batch_size: int = 64
    rho: float = 0.0
    seed: int = 0

    def about(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "count"}


def make_recipe(
    *, count: int, epochs: int, images: int | None, every: int | None, available: int, **rest: Any
) -> Recipe:
    """A recipe of whole epochs of `images` of the `available` images; a record at each epoch's end, or at `every`."""
    epoch = math.ceil(min(images or available, available) / rest["batch_size"])
    every = min(every or epoch, epochs * epoch)
    return Recipe(count=count, steps=epochs * epoch // every * every, every=every, **rest)


def scaled_recipe(setting: Setting, options: TrajectoryOptions) -> Recipe:
    """The recipe of `options`; what they leave open is chosen so that the experts take about as long as the run."""
    available, batch = len(setting.real.x), options.expert_batch
    rest: dict[str, Any] = {"lr": options.expert_lr, "batch_size": batch, "rho": options.expert_rho}
    if setting.clock.seconds is not None:
        operations = 6 * multiply_adds(empty_network(setting), setting.domain.shape) * (2 if options.expert_rho else 1)
        images = setting.clock.seconds * operations_a_second(setting.device) / operations
    else:
        images = float(STEP_IMAGES * (setting.clock.steps or 0))
    total = max(32, int(images / batch))  # steps of all experts
    count = options.experts or min(100, max(2, int(math.sqrt(total / 20))))
    epochs, epoch_images = options.expert_epochs, options.expert_images
    if epochs is not None:
        count = options.experts or max(
            2, min(100, total * batch // (epochs * min(epoch_images or available, available)))
        )
        return make_recipe(
            count=count, epochs=epochs, images=epoch_images, every=options.expert_every, available=available, **rest
        )
    epoch = math.ceil(min(epoch_images or available, available) / batch)
    steps = min(total // count, 50 * epoch)
    # A target is 4 times as far as the student's steps: few images have large gradients, and would overshoot.
    reach = math.ceil(4 * options.inner_steps * options.rate / (options.expert_lr * options.expert_span))
    every = options.expert_every or max(reach, min(epoch, steps // RECORDS))
    return Recipe(count=count, steps=max(steps // every, options.expert_span + 1) * every, every=every, **rest)


def empty_network(setting: Setting) -> nn.Module:
    """A network of the run whose weights do not matter; the global random state stays."""
    with parallel.forked(setting.device):
        return setting.new_network()


def describe(setting: Setting) -> dict[str, Any]:
    """What experts depend on beside the recipe: the data, the network and what it sees."""
    network = empty_network(setting)
    if any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in network.modules()):
        raise ValueError(
            f"{setting.arch} has batch norm, whose running statistics are no part of a trajectory: "
            "take a network without, such as --arch convnet3"
        )
    domain, whitening = setting.domain, setting.whitening
    source = Path(setting.arch.rpartition(":")[0])
    return {
        "data": _hash(setting.real.x, setting.real.y),
        "network": {
            "arch": setting.arch,
            "source": hashlib.sha256(source.read_bytes()).hexdigest()[:16] if source.is_file() else None,
            "parameters": [list(p.shape) for p in network.parameters()],
            "mean": list(domain.mean),
            "std": list(domain.std),
            # By its rule, which follows from the data above: the matrix's last bits are those of a processor.
            "whitening": None if whitening is None else ["zca", EPS],
        },
        "augmentation": None if setting.augmentation is None else dataclasses.asdict(setting.augmentation),
        "precision": setting.precision,
    }


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def find_experts(setting: Setting, options: TrajectoryOptions) -> Experts:
    """The experts of a condensation: those of `--expert-folder`, or of the cache, where missing ones are made.

    Raises:
        ValueError: a network with batch norm; a folder without experts, or with ones of another network or other data,
            or with one that diverged.
        TermError: an expert that is made diverges.
    """
    if options.expert_folder is not None:
        return open_experts(setting, Path(options.expert_folder), options.experts)
    return record(setting, scaled_recipe(setting, options), rate_flag="--expert-lr")


def planned_records(setting: Setting, options: TrajectoryOptions) -> int | None:
    """How many records each expert of `find_experts` has; None of `--expert-folder`, where they are made already."""
    if options.expert_folder is not None:
        return None
    recipe = scaled_recipe(setting, options)
    return recipe.steps // recipe.every


def needed_experts(setting: Setting, options: TrajectoryOptions) -> tuple[str, int]:
    """A line on the experts that `find_experts` will give, and how many records each has. Makes none.

    Raises:
        ValueError: as `find_experts`.
    """
    if options.expert_folder is not None:
        found = open_experts(setting, Path(options.expert_folder), options.experts)
        return f"{found.count} experts: kept in {found.folder}", found.records
    recipe = scaled_recipe(setting, options)
    key = _key(_about(setting, recipe))
    folder = _default_folder(setting, key)
    missing = recipe.count if folder is None else len(missing_experts(folder, key, recipe.count))
    if missing:
        where = (
            "have to be made" if missing == recipe.count else f"{missing} have to be made, the others are in {folder}"
        )
    else:
        where = f"kept in {folder}"
    what = f"{recipe.count} experts of {recipe.steps} steps on {recipe.batch_size} real images"
    return f"{what}: {where}", recipe.steps // recipe.every


def open_experts(setting: Setting, folder: Path, count: int | None = None) -> Experts:
    """The experts in a folder, all or the first `count`. Raises ValueError as `find_experts`."""
    index = read_index(folder)
    if index is None:
        raise ValueError(f"{folder} holds no experts: datafree experts --out {folder} records them")
    mine = describe(setting)
    for name, what in (("data", "other data"), ("network", "another network")):
        theirs = index["about"].get(name)
        if theirs != mine[name]:
            hint = (
                f" ({_difference(theirs, mine[name])})"
                if name == "network"
                else ", or of more or fewer of its images (--validation)"
            )
            raise ValueError(f"the experts in {folder} are of {what}{hint}: record some with datafree experts")
    whole = whole_experts(folder, index["key"], count)
    if lost := [number for number, about in enumerate(whole) if not about["finite"]]:
        raise ValueError(
            f"expert {lost[0] + 1} of {folder} diverged, some of its records are NaN or infinite: record others with "
            "datafree experts and a lower --lr"
        )
    if len(whole) < (count or 1):
        raise ValueError(f"{folder} holds {len(whole)} whole experts: make more with datafree experts --out {folder}")
    return Experts(folder, index["key"], len(whole), int(index["records"]), sum(s["seconds"] for s in whole))


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """What is another in the experts' network than in this run's (see `describe`), in words."""
    entry = f"normalised by {theirs['mean']} and {theirs['std']}"
    words = {
        "arch": theirs["arch"],
        "source": "of a file that has changed",
        "parameters": "of other sizes",
        "mean": entry,
        "std": entry,
        "whitening": "whitened by --zca" if theirs["whitening"] else "without --zca",
    }
    return ", ".join(dict.fromkeys(text for name, text in words.items() if theirs[name] != mine[name]))


def record(setting: Setting, recipe: Recipe, folder: Path | None = None, *, rate_flag: str = "--lr") -> Experts:
    """Records what is missing of a recipe's experts, in `folder` or the cache. Several processes share the work.

    Where a person asks to stop, the experts are fewer than wanted. `rate_flag` is the option that sets their rate.

    Raises:
        ValueError: a network with batch norm; the folder holds experts of something else.
        TermError: an expert diverges; those before it are kept.
    """
    about = _about(setting, recipe)
    key = _key(about)
    folder = folder or _default_folder(setting, key)
    if folder is None:
        folder = Path(parallel.from_first(tempfile.mkdtemp(prefix="datafree-"))) / f"experts-{key}"
    records = recipe.steps // recipe.every
    held = read_index(folder)
    if held is not None and held["key"] != key:
        raise ValueError(f"{folder} holds experts of another recipe, network or data: give another --out")
    # The first process's list for all: a process that looks for itself may find what another has made by then, and
    # shares of different lists leave experts out.
    missing: list[int] = json.loads(parallel.from_first(json.dumps(missing_experts(folder, key, recipe.count))))
    if missing:
        size = sum(math.prod(shape) for shape in about["network"]["parameters"])
        megabytes = len(missing) * size * (4 + 2 * records) / 1e6
        setting.say(
            f"experts: {len(missing)} × {recipe.steps} steps on {recipe.batch_size} real images, {records} records "
            f"each: {megabytes:,.0f} MB in {folder}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        if held is None and parallel.rank() == 0:
            write_json(folder / INDEX, {"key": key, "records": records, "about": about})
    for index in missing[parallel.rank() :: parallel.world_size()]:
        try:
            if not _record_one(setting, recipe, index, expert_file(folder, index), key):
                break
        except _DivergedError as error:
            _leave(folder, key)
            raise TermError(f"{error}: give a lower {rate_flag}, which is {recipe.lr:g}") from None
    parallel.latest(0.0)  # all wait for all
    whole = whole_experts(folder, key, recipe.count)
    return Experts(folder, key, len(whole), records, sum(s["seconds"] for s in whole))


def _about(setting: Setting, recipe: Recipe) -> dict[str, Any]:
    """All that experts depend on."""
    return {**describe(setting), "recipe": recipe.about(), "format": FORMAT}


def _key(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _default_folder(setting: Setting, key: str) -> Path | None:
    return None if setting.cache is None else setting.cache / f"experts-{key}"


class _DivergedError(Exception):
    """An expert's parameters are NaN or infinite, or have gone farther than half precision reaches."""


def _leave(folder: Path, key: str) -> None:
    """Takes the index away where no expert is beside it: experts of another rate may be recorded there then."""
    alone = parallel.world_size() == 1  # others may be recording
    if alone and not any(about_expert(file, key) is not None for file in folder.glob("expert-*.safetensors")):
        (folder / INDEX).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is there
            folder.rmdir()


def _record_one(setting: Setting, recipe: Recipe, index: int, file: Path, key: str) -> bool:
    """Trains an expert and writes its file; False if a person asked to stop. Raises _DivergedError."""
    from safetensors.torch import save

    begin, (x, y) = time.monotonic(), (setting.real.x, setting.real.y)
    rng = torch.Generator(setting.device).manual_seed(recipe.seed * 100_003 + index)
    setting = dataclasses.replace(setting, rng=rng)
    with parallel.forked(setting.device):
        torch.manual_seed(recipe.seed * 100_003 + index)
        network = setting.new_network().train()
    forward, batch, parameters = quick(setting).forward, min(recipe.batch_size, len(x)), list(network.parameters())
    start = flat([p.detach() for p in parameters]).float()
    moves: list[Tensor] = []
    right: deque[float] = deque(maxlen=20)
    order = torch.empty(0, dtype=torch.int64, device=x.device)
    for step in range(1, recipe.steps + 1):
        if setting.stopping():
            return False
        if len(order) < batch:
            order = torch.randperm(len(x), generator=rng, device=x.device)
        rows, order = order[:batch], order[batch:]
        logits = train_step(forward, network, setting.augment_each(to_float(x[rows])), y[rows], recipe)
        right.append(float((logits.argmax(1) == y[rows]).float().mean()))
        if step % recipe.every == 0:
            moves.append((flat([p.detach() for p in parameters]).float() - start).half().cpu())
            if not bool(moves[-1].isfinite().all()):
                passes = math.ceil(step * batch / len(x))
                raise _DivergedError(
                    f"expert {index + 1} of {recipe.count} diverged by step {step} of {recipe.steps}, in pass {passes} "
                    "through the images"
                )
    tensors = {"start": start.cpu(), "moves": torch.stack(moves)}
    seconds = time.monotonic() - begin
    about = {"key": key, "crc": checksum(tensors), "seconds": round(seconds, 2)}
    atomic_write(file, save(tensors, metadata={"datafree": json.dumps(about)}))
    setting.say(
        f"expert {index + 1} of {recipe.count}: {seconds:.0f} s, {sum(right) / len(right):.0%} right at its end"
    )
    return True


def train_step(forward: Forward, network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """One step of an expert; returns the logits before it."""
    parameters: list[Tensor] = list(network.parameters())

    def look() -> tuple[tuple[Tensor, ...], Tensor]:
        logits = forward(network, images).float()
        return torch.autograd.grad(F.cross_entropy(logits, labels), parameters), logits.detach()

    gradient, logits = look()
    if recipe.rho:
        here = [p.detach().clone() for p in parameters]
        norm = torch.stack([g.square().sum() for g in gradient]).sum().sqrt()
        with torch.no_grad():
            torch._foreach_add_(parameters, gradient, alpha=recipe.rho / (float(norm) + 1e-12))
        gradient, _ = look()
        with torch.no_grad():
            torch._foreach_copy_(parameters, here)
    with torch.no_grad():
        # A rate beyond single precision is infinite there: torch would raise what is no word for a person.
        torch._foreach_add_(parameters, gradient, alpha=-min(recipe.lr, torch.finfo(torch.float32).max))
    return logits
