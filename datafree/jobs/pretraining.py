"""`pretrain`: a network trained on real data, as a teacher or as the baseline "student with data"."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import parallel
from datafree.config import MachineConfig, PretrainConfig, replace
from datafree.data import Data, crop_and_flip, draw_crops, load_data, to_float
from datafree.data.tensors import Crops
from datafree.domain import DOMAINS, Domain, make_domain
from datafree.evaluation.accuracy import evaluate as score
from datafree.evaluation.cost import multiply_adds, parameters
from datafree.jobs.loading import normalised
from datafree.jobs.machine import autocast, prepare, seed_all
from datafree.models import build_model
from datafree.runs import Run, atomic_write, environment, peak_rss_mb, save_network, write_json
from datafree.training import USUAL, Clock, Seconds, Trainer, make_clock, run

# Chosen for a teacher of the embedded digits job; other data take the field's epochs of 200 where a person says so.
DEFAULTS: dict[str, Any] = {**USUAL, "lr": 0.1, "optimizer": "sgd", "weight_decay": 5e-4, "batch_size": 128}
LENGTH = {"epochs": 30}
EMBEDDED: dict[str, Any] = {"data": "digits", "arch": "resnet20", "epochs": 15}


class Labelled:
    """Batches of a training split, each image once an epoch in random order. A `training.Source`."""

    def __init__(
        self, data: Data, network: torch.nn.Module, batch_size: int, rng: torch.Generator, augmented: bool
    ) -> None:
        assert data.x_train is not None and data.y_train is not None
        self.x, self.y, self.flip = data.x_train, data.y_train, data.domain.flip
        self.network, self.batch_size, self.rng, self.augmented = network, min(batch_size, len(self.x)), rng, augmented
        self.order = torch.empty(0, dtype=torch.int64, device=self.x.device)

    def advance(self, clock: Clock) -> Mapping[str, float]:
        return {}

    def terms(self, clock: Clock) -> Mapping[str, Tensor]:
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.x), generator=self.rng, device=self.x.device)
        rows, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        crops = draw_crops(len(rows), self.rng, pad=(pad := max(1, self.x.shape[-1] // 8)), flip=self.flip)
        rows = parallel.shard(rows)
        images = to_float(self.x[rows])
        if self.augmented:
            images = crop_and_flip(images, Crops(*map(parallel.shard, crops)), pad=pad)
        self.network.train()
        logits = self.network(images.contiguous(memory_format=torch.channels_last))
        return {"cross_entropy": F.cross_entropy(logits.float(), self.y[rows])}


def pretrain(
    config: PretrainConfig | None = None,
    *,
    out: str | Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    show: Callable[[Mapping[str, Any]], None] = lambda _: None,
    **options: Any,
) -> dict[str, Any]:
    """Trains `arch` on `data` and writes OUT/model.safetensors, run.json, result.json; returns the result.

    The accuracy is the last iterate's, on the test split.

    Raises:
        ValueError: something a person can mend; one line.
        FileNotFoundError: the data are not there.
    """
    config = replace(config or PretrainConfig(), options)
    device = prepare(config)

    def start() -> tuple[Run | None, Path]:
        if parallel.rank() != 0:
            return None, Path(out or "runs") / "model.safetensors"
        folder = Run.create(out, f"pretrain-{config.arch.rpartition(':')[2]}", force=force)
        return folder, folder.path / "model.safetensors"

    return _pretrain(config, device, start, say, show)


def embedded_teacher(config: MachineConfig, path: Path, device: torch.device, say: Callable[[str], None]) -> str:
    """The embedded job's teacher: trained on the digits' training split into the file `path`, if it is not there."""
    if not path.exists():
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(MachineConfig)}
        about = PretrainConfig(**{**values, **EMBEDDED, "precision": "32"})
        say(f"teacher: {about.arch}, trained on the training split of {about.data}, which is then forgotten")
        result = _pretrain(about, device, lambda: (None, path), lambda _: None, lambda _: None)
        say(f"teacher: {result['accuracy']:.1%} on the held-out split")
    return parallel.from_first(str(path))


def untrained_teacher(path: Path) -> str:
    """A stand-in for the embedded teacher, to see what would be run."""
    about = replace(PretrainConfig(), EMBEDDED)
    domain = DOMAINS[about.data]
    network = build_model(about.arch, shape=domain.shape, classes=domain.classes)
    save_network(path, network, _about(about, domain))
    return str(path)


def _about(config: PretrainConfig, domain: Domain) -> dict[str, Any]:
    """What a saved network says of itself."""
    known = {"shape": domain.shape, "classes": domain.classes, "mean": domain.mean, "std": domain.std}
    return {"arch": config.arch, "data": config.data, **known}


def _pretrain(
    config: PretrainConfig,
    device: torch.device,
    start: Callable[[], tuple[Run | None, Path]],
    say: Callable[[str], None],
    show: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """`start` gives the run's folder, if there is one, and the file of the weights, once nothing can be wrong."""
    config = replace(config, {name: value for name, value in DEFAULTS.items() if getattr(config, name) is None})
    if config.steps is None and config.epochs is None and config.budget is None:
        config = replace(config, LENGTH)
    data = load_data(config.data, download=config.download, device=device)
    if data.x_train is None:
        raise ValueError(f"{config.data} has no training split: give data that has one")
    domain = make_domain(base=data.domain, mean=config.mean, std=config.std)
    assert config.batch_size is not None
    seed_all(config.seed)
    rng = torch.Generator(device).manual_seed(config.seed)
    network = normalised(build_model(config.arch, shape=domain.shape, classes=domain.classes), domain, device)
    trainer = Trainer(network, config)
    clock = make_clock(config, max(1, len(data.x_train) // config.batch_size), {})
    seconds, cast = Seconds(), autocast(device, config.precision)
    folder, file = start()
    if folder is not None:
        costs = {
            "arch": config.arch,
            "parameters": parameters(network),
            "multiply_adds": multiply_adds(network, domain.shape),
        }
        description = {
            "job": "pretrain",
            **environment(device),
            "config": dataclasses.asdict(config),
            "method_options": {},
            "set_by_user": [],
            "choices": [],
            "seed": config.seed,
            "student": costs,
            "domain": dataclasses.asdict(domain),
        }
        write_json(folder.path / "run.json", description)
    logged = time.monotonic()

    def after_step(terms: Mapping[str, Tensor], _: Mapping[str, float]) -> bool:
        nonlocal logged
        if time.monotonic() - logged >= 1.0 and parallel.rank() == 0:
            logged = time.monotonic()
            row = {"step": clock.step, "seconds": round(clock.elapsed, 3), "lr": trainer.rate}
            row |= {f"student/{name}": float(value.detach()) for name, value in terms.items()}
            if folder is not None:
                folder.log(row)
            show({**row, "fraction": clock.fraction, "seconds_left": clock.seconds_left})
        return False

    source = Labelled(data, network, config.batch_size, rng, config.augment)
    run(trainer, source, clock, seconds=seconds, autocast=cast, after_step=after_step)
    best = trainer.result.eval()
    result: dict[str, Any] = {"accuracy": None, "per_class": None}
    if data.x_test is not None and data.y_test is not None:

        def predict(images: Tensor) -> Tensor:
            with cast():
                logits: Tensor = best(images.contiguous(memory_format=torch.channels_last))
            return logits

        scores = score(predict, data.x_test, data.y_test)
        result = {"accuracy": scores.accuracy, "per_class": {"student": scores.per_class}}
    result |= {
        "student_accuracy": result["accuracy"],
        "steps": clock.step,
        "total_seconds": round(clock.elapsed, 2),
        "peak_rss_mb": peak_rss_mb(),
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "seed": config.seed,
        "student": config.arch,
        "data": config.data,
        "file": str(file),
    }
    if parallel.rank() == 0:
        save_network(file, getattr(best, "network"), _about(config, domain))  # noqa: B009 (a Normalised module)
    if folder is not None:
        from datafree.report import render_report

        write_json(folder.path / "result.json", result)
        folder.close()
        atomic_write(folder.path / "report.html", render_report(folder.path).encode())
    return result
