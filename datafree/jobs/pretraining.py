"""`pretrain`: a network trained on real data, as a teacher or as the baseline "student with data"."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree import parallel
from datafree.arguments import checked
from datafree.config import MachineConfig, PretrainConfig
from datafree.data import Data, crop_and_flip, draw_crops, get_split, load_data, to_float
from datafree.data.domains import mirrored
from datafree.data.tensors import Crops, usual_pad
from datafree.domain import DOMAINS, Domain, make_domain
from datafree.evaluation.accuracy import evaluate as score
from datafree.evaluation.cost import latencies, multiply_adds, parameters
from datafree.fields import as_config, fields_of, replace
from datafree.idle import TRAIN, check_idle
from datafree.jobs.filling import RATES
from datafree.jobs.fresh import concluded, fresh_run
from datafree.jobs.loading import normalised, own_data
from datafree.jobs.machine import autocast, prepare, random_states, restore_random_states, seed_all
from datafree.jobs.manifest import reading
from datafree.jobs.paths import absolute, absolute_data, check_apart, data_path
from datafree.jobs.same_data import check_unchanged, data_sha256
from datafree.jobs.session import LOG_SECONDS, Interrupted, Say, Show, interruptible, silent
from datafree.models import build_model
from datafree.runs import Run, environment, peak_rss_mb, save_network, write_json
from datafree.training import USUAL, Clock, Seconds, Trainer, make_clock, run

# Chosen for a teacher of the embedded digits job; other data take the field's epochs of 200 where a person says so.
DEFAULTS: dict[str, Any] = {**USUAL, "lr": 0.1, "optimizer": "sgd", "weight_decay": 5e-4, "batch_size": 128}
LENGTH = {"epochs": 30}
EMBEDDED: dict[str, Any] = {"data": "digits", "arch": "resnet20", "epochs": 15}


class Labelled:
    """Batches of a training split, each image at most once an epoch in random order. A `training.Source`.

    What is left of an order and fills no batch is dropped.
    """

    def __init__(
        self, data: Data, network: torch.nn.Module, batch_size: int, rng: torch.Generator, augmented: bool, flip: bool
    ) -> None:
        self.x, self.y = get_split(data, "train")
        self.flip = flip
        self.network, self.batch_size, self.rng, self.augmented = network, min(batch_size, len(self.x)), rng, augmented
        self.order = torch.empty(0, dtype=torch.int64, device=self.x.device)

    def advance(self, clock: Clock) -> Mapping[str, float]:
        return {}

    def terms(self, clock: Clock) -> Mapping[str, Tensor]:
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.x), generator=self.rng, device=self.x.device)
        rows, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        crops = draw_crops(len(rows), self.rng, pad=(pad := usual_pad(self.x.shape)), flip=self.flip)
        rows = parallel.shard(rows)
        images = to_float(self.x[rows])
        if self.augmented:
            images = crop_and_flip(images, Crops(*map(parallel.shard, crops)), pad=pad)
        self.network.train()
        logits = self.network(images.contiguous(memory_format=torch.channels_last))
        return {"cross_entropy": F.cross_entropy(logits.float(), self.y[rows])}


@checked("config")
def pretrain(
    config: PretrainConfig | None = None,
    *,
    out: str | Path | None = None,
    force: bool = False,
    say: Say = silent,
    show: Show = silent,
    **options: Any,
) -> dict[str, Any]:
    """Trains `arch` on `data` and writes OUT/model.safetensors, run.json, result.json; returns the result.

    The accuracy is the last iterate's, on the test split.

    Raises:
        ValueError: something a person can mend; one line.
        FileNotFoundError: the data are not there.
        Interrupted: Ctrl-C, after saving.
    """
    config = replace(as_config(config, PretrainConfig, "datafree.pretrain(data={})"), options)
    check_apart(out, {"--data": data_path(config.data)})
    task = _prepare(config, prepare(config))
    name = f"pretrain-{config.arch.rpartition(':')[2]}"
    with fresh_run(out, name, force=force) as folder:
        for line in task.choices:
            say(line)
        if parallel.rank() == 0:
            write_json(folder.path / "run.json", _manifest(task))
        return _execute(task, folder, None, show)


def dry_run_pretrain(config: PretrainConfig | None = None, **options: Any) -> dict[str, Any]:
    """Resolves everything and trains nothing: what run.json would hold. Writes no file; raises as `pretrain`."""
    config = replace(as_config(config, PretrainConfig, "datafree.pretrain(data={})"), options)
    return _manifest(_prepare(config, prepare(config)))


@checked()
def resume_pretrain(out: str | Path, *, say: Say = silent, show: Show = silent) -> dict[str, Any]:
    """Goes on with the run in `out` from its last whole checkpoint; of a finished run the result is returned.

    Raises:
        ValueError: no such run is there, it is being written by another process, or its data have changed.
        FileNotFoundError: the data are not there.
    """
    folder = Run.open(out)
    about = folder.manifest()
    if about.get("job") != "pretrain":
        raise ValueError(f"{folder.path} holds a {about.get('job')} run: resume it with its own command")
    finished = folder.result()
    if finished is not None:
        say(f"the run in {folder.path} is finished")
        return finished
    with reading("pretrain"):
        config: PretrainConfig = replace(PretrainConfig(), about["config"])
    device = prepare(config)
    with folder.lock() if parallel.rank() == 0 else folder:
        task = _prepare(config, device)
        check_unchanged(about, task.data)
        return _execute(task, folder, folder.last_checkpoint(say), show)


def embedded_teacher(config: MachineConfig, path: Path, device: torch.device, say: Say) -> str:
    """The embedded job's teacher: trained on the digits' training split into the file `path`, if it is not there."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(MachineConfig)}
    about = PretrainConfig(**{**values, **EMBEDDED, "precision": "32"})
    task = _prepare(about, device)  # also where the file is there: what is drawn next is then drawn alike
    if not path.exists():
        say(f"teacher: {about.arch}, trained on the training split of {about.data}, which is then forgotten")
        _train(task, lambda *_: False)
        result = _finish(task, path)
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


@dataclass(kw_only=True)
class _Task:
    """A network to be trained, and all that its steps depend on. `config` has no field left open."""

    config: PretrainConfig
    set_by_user: tuple[str, ...]
    device: torch.device
    data: Data
    domain: Domain
    trainer: Trainer
    source: Labelled
    clock: Clock
    autocast: Callable[[], Any]
    choices: list[str]

    def state_dict(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer.state_dict(),
            "order": self.source.order.clone(),
            "clock": self.clock.state_dict(),
            "random": random_states(self.source.rng),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.source.order = state["order"].to(self.device)
        self.clock.load_state_dict(state["clock"])
        restore_random_states(state["random"], self.source.rng)


def _prepare(config: PretrainConfig, device: torch.device) -> _Task:
    """Finds whatever is wrong, before anything is written."""
    set_by_user = tuple(f.name for f in fields_of(PretrainConfig) if getattr(config, f.name) != f.default)
    config, choices = _filled(config)
    data = load_data(config.data, download=config.download, device=device)
    _, labels = get_split(data, "train")
    domain = mirrored(make_domain(base=data.domain, mean=config.mean, std=config.std), config.flip)
    flip = config.augment and domain.flip
    choices = own_data(data, mirrored(domain, flip)) + choices
    known = {"mean": domain.mean, "std": domain.std, "flip": flip}
    config = replace(config, {"data": absolute_data(config.data), "arch": absolute(config.arch), **known})
    assert config.batch_size is not None
    missing = (torch.bincount(labels, minlength=domain.classes) == 0).nonzero().flatten().tolist()
    if missing:
        named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        choices.append(
            f"warning: no training image is of class {named}: where none should be, number the classes from 0 without "
            "gaps"
        )
    seed_all(config.seed)
    rng = torch.Generator(device).manual_seed(config.seed)
    network = normalised(build_model(config.arch, shape=domain.shape, classes=domain.classes), domain, device)
    return _Task(
        config=config,
        set_by_user=set_by_user,
        device=device,
        data=data,
        domain=domain,
        trainer=Trainer(network, config),
        source=Labelled(data, network, config.batch_size, rng, config.augment, domain.flip),
        clock=make_clock(config, max(1, len(labels) // config.batch_size)),
        autocast=autocast(device, config.precision),
        choices=choices,
    )


def _filled(config: PretrainConfig) -> tuple[PretrainConfig, list[str]]:
    """The configuration with all that was left open, and a line on each choice that a person would want to know.

    Raises:
        ValueError: an option that nothing reads.
    """
    asked, choices = config, list[str]()
    usual = {field.name: field.default for field in fields_of(PretrainConfig)}
    given = {name: value for name, default in usual.items() if (value := getattr(config, name)) != default}
    check_idle(given, usual | DEFAULTS, TRAIN)
    defaults, optimizer = dict(DEFAULTS), config.optimizer or DEFAULTS["optimizer"]
    if optimizer != DEFAULTS["optimizer"]:
        defaults["lr"] = RATES[optimizer]
    config = replace(config, {name: value for name, value in defaults.items() if getattr(config, name) is None})
    if config.steps is None and config.epochs is None and config.budget is None:
        config = replace(config, LENGTH)
        choices.append(f"length: {LENGTH['epochs']} epochs (--steps, --epochs or --budget sets another)")
    if asked.lr is None:
        choices.append(
            f"rate: {config.lr:g} ({config.optimizer}, {config.batch_size} images a step, weight decay "
            f"{config.weight_decay:g}; --lr sets another)"
        )
    return config, choices


def _manifest(task: _Task) -> dict[str, Any]:
    """run.json."""
    network = task.trainer.network
    return {
        "job": "pretrain",
        **environment(task.device),
        "config": dataclasses.asdict(task.config),
        "method_options": {},
        "set_by_user": list(task.set_by_user),
        "choices": task.choices,
        "seed": task.config.seed,
        "student": {
            "arch": task.config.arch,
            "parameters": parameters(network),
            "multiply_adds": multiply_adds(network, task.domain.shape),
        },
        "domain": dataclasses.asdict(task.domain),
        "data_sha256": data_sha256(task.data),
    }


def _train(task: _Task, after_step: Callable[[Mapping[str, Tensor], Mapping[str, float]], bool]) -> bool:
    """Whether the training came to its end."""
    return run(task.trainer, task.source, task.clock, seconds=Seconds(), autocast=task.autocast, after_step=after_step)


def _execute(task: _Task, folder: Run, state: Mapping[str, Any] | None, show: Show) -> dict[str, Any]:
    """Trains, from the checkpoint `state` where there is one, and writes what a run's folder holds."""
    main, clock, trainer = parallel.rank() == 0, task.clock, task.trainer
    logged = saved = time.monotonic()

    def save() -> None:
        if all(bool(p.isfinite().all()) for p in trainer.network.parameters()):  # else the next term will say so
            folder.save_checkpoint(task.state_dict())

    def after_step(terms: Mapping[str, Tensor], _: Mapping[str, float]) -> bool:
        nonlocal logged, saved
        now = time.monotonic()
        stopping = bool(parallel.latest(float(stop())))
        if main and (now - logged >= LOG_SECONDS or clock.ended):
            logged = now
            row = {"step": clock.step, "seconds": round(clock.elapsed, 3), "lr": trainer.rate}
            row |= {f"student/{name}": float(value.detach()) for name, value in terms.items()}
            folder.log(row)
            show({**row, "fraction": clock.fraction, "seconds_left": clock.seconds_left})
        if main and (stopping or now - saved >= task.config.checkpoint_every):
            save()
            saved = time.monotonic()
        return stopping

    if state is not None:
        task.load_state_dict(state)
    if main:
        folder.start_log(int(state["metrics_bytes"]) if state else 0, clock.step)
    with concluded(folder):
        with interruptible() as stop:
            if not _train(task, after_step):
                raise Interrupted(folder.path, "pretrain")
        if main:
            save()  # whatever comes between this and the result, no step is taken again
        result = _finish(task, folder.path / "model.safetensors")
        if main:
            result |= latencies({"student": trainer.result}, task.domain.shape, task.device)
            write_json(folder.path / "result.json", result)
        return result


def _finish(task: _Task, file: Path) -> dict[str, Any]:
    """The result, measured in float32, and the weights in `file`."""
    config, data, last = task.config, task.data, task.trainer.result.eval()
    result: dict[str, Any] = {"accuracy": None, "per_class": None}
    if data.x_test is not None and data.y_test is not None:

        def predict(images: Tensor) -> Tensor:
            logits: Tensor = last(images.contiguous(memory_format=torch.channels_last))
            return logits

        scores = score(predict, data.x_test, data.y_test)
        result = {"accuracy": scores.accuracy, "per_class": {"student": scores.per_class}}
    if parallel.rank() == 0:
        save_network(file, getattr(last, "network"), _about(config, task.domain))  # noqa: B009 (a Normalised module)
    return result | {
        "student_accuracy": result["accuracy"],
        "steps": task.clock.step,
        "total_seconds": round(task.clock.elapsed, 2),
        "peak_rss_mb": peak_rss_mb(),
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "seed": config.seed,
        "student": config.arch,
        "data": config.data,
        "file": str(file),
    }
