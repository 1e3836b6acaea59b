"""`condense`: a real data set becomes a small synthetic one, from a configuration to a written run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datafree import parallel
from datafree.condensation import METHODS, load_method
from datafree.condensation.initial import initial_images
from datafree.condensation.loop import ImageTrainer, Steps
from datafree.condensation.setting import Real, Setting
from datafree.condensation.synthetic import Synthetic, class_counts
from datafree.config import CondenseConfig, fields_of, parse_duration, replace
from datafree.data import Data, load_data, validation_split
from datafree.data.augmentation import Augmentation, parse_augmentation
from datafree.data.condensed import CondensedSet
from datafree.data.formation import decode, decoded_labels
from datafree.data.sources import cache_folder
from datafree.data.tensors import to_float
from datafree.data.whitening import Whitening
from datafree.data.wrapped import from_dataset
from datafree.domain import Domain, make_domain
from datafree.evaluation.cost import multiply_adds, parameters
from datafree.evaluation.protocols import arch_for
from datafree.jobs.loading import normalised
from datafree.jobs.machine import autocast, prepare, random_states, restore_random_states, seed_all
from datafree.jobs.session import LOG_SECONDS, PICTURES, interruptible
from datafree.jobs.training import Interrupted
from datafree.jobs.writing import write_set
from datafree.models import build_model
from datafree.pictures import grid, png_bytes
from datafree.report import render_report
from datafree.runs import CHECKPOINT, Run, atomic_write, environment, peak_rss_mb, write_json
from datafree.training import Clock, Seconds, TermError, run

# What neither a person nor the method says.
DEFAULTS: dict[str, Any] = {
    "init": "real",
    "factor": 1,
    "augmentation": "none",
    "augmentation_mode": "single",
    "labels": "hard",
    "nets": "fresh",
    "net_pool": 10,
    "net_steps": 100,
    "zca": False,
    "optimizer": "sgd",
    "image_lr": 0.1,
    "image_momentum": 0.5,
    "label_lr": 1.0,
    "schedule": "constant",
    "clip": "step",
}
IPC = 10
LENGTH = {"budget": "10m"}
EMBEDDED_LENGTH = {"steps": 200}

Say = Callable[[str], None]
Show = Callable[[Mapping[str, Any]], None]


def _silent(_: Any) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Condensed:
    """A finished run.

    Attributes:
        path: its folder.
        metrics: what result.json holds.
        set: the condensed set, as written.
    """

    path: Path
    metrics: dict[str, Any]
    set: CondensedSet


@dataclass(kw_only=True)
class CondensePlan:
    """A resolved run. `config` has no field left open that the run depends on."""

    config: CondenseConfig
    method: type[Any]
    method_config: Any
    set_by_user: tuple[str, ...]
    data: Data
    domain: Domain
    arch: str
    costs: dict[str, Any]
    counts: list[int]
    device: torch.device
    choices: list[str]


def condense_plan(
    config: CondenseConfig, options: Mapping[str, Any], device: torch.device, data: Data | None
) -> CondensePlan:
    """Loads the data and resolves everything that was left open.

    Raises:
        ValueError: one line that says what to do.
        FileNotFoundError: the data are not there.
    """
    set_by_user = tuple(f.name for f in fields_of(CondenseConfig) if getattr(config, f.name) != f.default)
    method = load_method(config.method)
    method_config = method_options(config.method, method, options)
    if data is None:
        data = load_data(config.data, download=config.download, device=device, splits=("train",))
    if data.x_train is None or data.y_train is None:
        raise ValueError(f"{config.data} has no training split: give data that has one")
    if config.validation:
        data = validation_split(data)
    assert data.y_train is not None
    domain = make_domain(base=data.domain, mean=config.mean, std=config.std)
    choices: list[str] = []
    arch = config.arch
    if arch == "auto":
        arch = arch_for(domain)
        choices.append(f"networks: {arch} (by the size of the images; --arch names others)")
    values = {**DEFAULTS, **method.LOOP}
    asked = {name: getattr(config, name) for name in values if getattr(config, name) is not None}
    if asked.get("factor", 1) > 1 and "init" not in asked and values["init"] == "real":
        values["init"] = "mosaic"
        choices.append("init: mosaic (real images scaled down to fill --factor)")
    if asked.get("zca") and domain.shape[0] == 1:
        raise ValueError("--zca is for colour images: whitening grey ones is not done in the field; leave it out")
    if domain.shape[0] == 1:
        values["zca"] = False
    if asked.get("init") == "mosaic" and {**values, **asked}["factor"] == 1:
        raise ValueError("--init mosaic fills a --factor of 2 or more: give one, or --init real")
    length: dict[str, Any] = dict(EMBEDDED_LENGTH if config.data == "digits" else LENGTH)
    if config.steps is not None or config.budget is not None or not hasattr(method, "terms"):
        length = {}
    else:
        words = f"{length['steps']} steps" if "steps" in length else f"{length['budget']} of wall clock"
        choices.append(f"length: {words} (--steps or --budget sets another)")
    if config.ipc is None and config.images is None:
        length["ipc"] = IPC
        choices.append(f"images: {IPC} a class (--ipc or --images sets another number)")
    config = dataclasses.replace(config, **{**values, **asked}, **length, arch=arch, mean=domain.mean, std=domain.std)
    assert config.factor is not None
    decode(torch.zeros(1, *domain.shape), config.factor)
    _augmentation(config, domain)
    network = build_model(arch, shape=domain.shape, classes=domain.classes)
    sizes = torch.bincount(data.y_train.cpu(), minlength=domain.classes).tolist()
    counts = class_counts(sizes, config.ipc, config.images, allow_fewer=config.allow_fewer)
    return CondensePlan(
        config=config,
        method=method,
        method_config=method_config,
        set_by_user=(*set_by_user, *options),
        data=data,
        domain=domain,
        arch=arch,
        costs={
            "arch": arch,
            "parameters": parameters(network),
            "multiply_adds": multiply_adds(network, domain.shape),
        },
        counts=counts,
        device=device,
        choices=choices,
    )


def method_options(name: str, method: type[Any], options: Mapping[str, Any]) -> Any:
    """The method's configuration; an option of another method is an error that names its owners."""
    known = {f.name for f in dataclasses.fields(method.Config)}
    for option in options:
        if option not in known:
            owners = [n for n in METHODS if option in {f.name for f in dataclasses.fields(load_method(n).Config)}]
            if owners:
                raise ValueError(f"--{option.replace('_', '-')} belongs to {', '.join(owners)}, not to --method {name}")
    return replace(method.Config(), options)


def make_setting(plan: CondensePlan, clock: Clock, say: Say, stop: Callable[[], bool]) -> Setting:
    """What the method is given."""
    config, domain, data, device = plan.config, plan.domain, plan.data, plan.device
    assert data.x_train is not None and data.y_train is not None
    assert config.net_pool is not None and config.net_steps is not None and config.nets is not None
    whitening = None
    if config.zca:
        whitening = Whitening.fit(to_float(data.x_train))

    def new_network() -> torch.nn.Module:
        network = build_model(plan.arch, shape=domain.shape, classes=domain.classes)
        return normalised(network, domain, device, whitening)

    return Setting(
        real=Real(data.x_train, data.y_train, domain.classes),
        domain=domain,
        new_network=new_network,
        arch=plan.arch,
        augmentation=_augmentation(config, domain),
        whitening=whitening,
        rng=torch.Generator(device).manual_seed(config.seed),
        device=device,
        clock=clock,
        cast=autocast(device, config.precision),
        cache=cache_folder() / "networks",
        say=say,
        nets=config.nets,
        net_pool=config.net_pool,
        net_steps=config.net_steps,
        stopping=stop,
    )


def _augmentation(config: CondenseConfig, domain: Domain) -> Augmentation | None:
    assert config.augmentation is not None and config.augmentation_mode is not None
    if config.augmentation == "none":
        return None
    return parse_augmentation(
        config.augmentation, mode=config.augmentation_mode, flip=domain.flip, mean=domain.mean, std=domain.std
    )


class CondenseSession:
    """What happens around the steps: logs, pictures, checkpoints. Rank 0 alone writes."""

    def __init__(self, plan: CondensePlan, folder: Run, say: Say, show: Show, stop: Callable[[], bool]) -> None:
        config = plan.config
        self.plan, self.run, self.say, self.show, self.stop = plan, folder, say, show, stop
        self.main = parallel.rank() == 0
        seed_all(config.seed)
        seconds = parse_duration(config.budget) if config.budget is not None else None
        self.clock = Clock(steps=(config.steps or 1) if seconds is None else None, seconds=seconds)
        self.setting = make_setting(plan, self.clock, say, stop)
        self.seconds = Seconds()
        self.preparation = 0.0
        self.picture_mark = 0
        self.logged = self.saved = time.monotonic()

    def start(self) -> None:
        """The set as it is at the beginning, and the objective with what it needs."""
        plan, config = self.plan, self.plan.config
        assert config.init is not None and config.factor is not None
        begin = time.monotonic()
        self.objective = plan.method(self.setting, plan.method_config)
        own = getattr(self.objective, "first_images", None)
        if own is not None and config.init == "real" and config.factor == 1:
            images, labels = own(plan.counts)
        else:
            images, labels = initial_images(self.setting, plan.counts, config.init, config.factor)
        logits = None
        if config.labels != "hard":
            logits = self._first_labels(decode(images, config.factor), decoded_labels(labels, config.factor))
        self.synthetic = Synthetic(
            images,
            labels,
            factor=config.factor,
            label_logits=logits,
            learn_labels=config.labels == "learned",
            learning_rate=getattr(plan.method_config, "rate", None),
        )
        self.trainer = ImageTrainer(self.synthetic, config)
        self.preparation += time.monotonic() - begin

    def _first_labels(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        own = getattr(self.objective, "first_labels", None)
        if own is not None:
            logits: torch.Tensor = own(images, classes)
            return logits
        from datafree.condensation.trained import trained_network

        with torch.no_grad():
            logits = trained_network(self.setting)(images)
        return logits

    def state_dict(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer.state_dict(),
            "objective": self.objective.state_dict(),
            "clock": self.clock.state_dict(),
            "seconds": dataclasses.asdict(self.seconds),
            "preparation": self.preparation,
            "picture": self.picture_mark,
            "random": random_states(self.setting.rng),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.objective.load_state_dict(state["objective"])
        self.clock.load_state_dict(state["clock"])
        self.seconds = Seconds(**state["seconds"])
        self.preparation, self.picture_mark = float(state["preparation"]), int(state["picture"])
        restore_random_states(state["random"], self.setting.rng)

    def save(self) -> None:
        """Keeps the last good checkpoint where a pixel is not finite any more: the next term will say so."""
        if self.main and bool(self.synthetic.images.isfinite().all()):
            self.run.save_checkpoint(self.state_dict())
        self.saved = time.monotonic()

    def after_step(self, terms: Mapping[str, torch.Tensor], _: Mapping[str, float]) -> bool:
        now = time.monotonic()
        stopping = bool(parallel.latest(float(self.stop())))
        if self.clock.fraction * PICTURES >= self.picture_mark:
            self.picture_mark = int(self.clock.fraction * PICTURES) + 1
            self.picture()
        if now - self.logged >= LOG_SECONDS and self.main:
            row = {"step": self.clock.step, "seconds": round(self.clock.elapsed, 3)}
            row |= {f"condensation/{name}": float(value.detach()) for name, value in terms.items()}
            if self.synthetic.log_rate is not None:
                row["rate"] = float(self.synthetic.rate.detach())
            self.run.log(row)
            self.show({**row, "fraction": self.clock.fraction, "seconds_left": self.clock.seconds_left})
            self.logged = now
        if stopping or now - self.saved >= self.plan.config.checkpoint_every:
            self.save()
        return stopping

    def picture(self) -> None:
        """A grid of the decoded images, at most 10 of a class and 100 in all, labelled with their classes."""
        if not self.main:
            return
        images = decode(self.trainer.images, self.synthetic.factor).clamp(0, 1)
        classes = decoded_labels(self.synthetic.labels, self.synthetic.factor)
        rows = class_rows(classes, self.plan.domain.classes)
        names = self.plan.domain.class_names or tuple(map(str, range(self.plan.domain.classes)))
        labels = [names[int(c)] for c in classes[rows]]
        self.run.picture(f"step-{self.clock.step:07d}", png_bytes(grid(images[rows].cpu().float(), labels)))

    def result_set(self) -> CondensedSet:
        """The condensed set of the moment, brought back into [0, 1]."""
        plan, synthetic, whitening = self.plan, self.synthetic, self.setting.whitening
        logits = synthetic.label_logits
        return CondensedSet(
            images=self.trainer.images.clamp(0, 1).float().cpu(),
            labels=(synthetic.labels if logits is None else logits.detach().float()).cpu(),
            domain=plan.domain,
            factor=synthetic.factor,
            whitening=Whitening(*(t.cpu() for t in whitening)) if whitening is not None else None,
            learning_rate=float(synthetic.rate.detach()) if synthetic.log_rate is not None else None,
            info=set_info(plan),
        )


def class_rows(classes: torch.Tensor, count: int, each: int = 10, most: int = 100) -> torch.Tensor:
    """Rows of the first `each` images of every class, class by class, `most` in all."""
    rows = [(classes == label).nonzero().flatten()[:each] for label in range(count)]
    return torch.cat(rows)[:most]


def set_info(plan: CondensePlan) -> dict[str, Any]:
    """What a condensed set says of its origin."""
    import datafree

    config = plan.config
    return {
        "method": config.method,
        "data": config.data,
        "arch": plan.arch,
        "seed": config.seed,
        "validation": config.validation,
        "images_per_class": plan.counts,
        "options": dataclasses.asdict(plan.method_config),
        "clip": config.clip,
        "datafree": datafree.__version__,
    }


def condense(
    config: CondenseConfig | None = None,
    *,
    data: Any = None,
    out: str | Path | None = None,
    force: bool = False,
    say: Say = _silent,
    show: Show = _silent,
    **options: Any,
) -> Condensed:
    """Condenses a data set.

    Args:
        config: the run; or give its fields as keywords.
        data: a name, a `datafree.Data`, or any `torch.utils.data.Dataset` of (image, class number) items.
        out: folder of the run; default runs/condense-METHOD-N.
        force: overwrite a run that stands in `out`.
        say: called with each line worth telling.
        show: called with the measurements of the moment, about once a second.
        options: fields of `CondenseConfig` and of the method's configuration.

    Raises:
        ValueError: something a person can mend; one line.
        FileNotFoundError: the data are not there.
        TermError: a term became NaN or infinite.
        Interrupted: Ctrl-C, after saving.
    """
    config = config or CondenseConfig()
    given = None
    if isinstance(data, str):
        config = replace(config, {"data": data})
    elif isinstance(data, Data):
        given, config = data, replace(config, {"data": data.domain.name})
    elif data is not None:
        given = from_dataset(data)
        config = replace(config, {"data": given.domain.name})
    common = {f.name for f in dataclasses.fields(CondenseConfig)}
    config = replace(config, {k: v for k, v in options.items() if k in common})
    own = {k: v for k, v in options.items() if k not in common}
    device = prepare(config)
    plan = condense_plan(config, own, device, given)  # whatever is wrong is found before anything is written
    folder = Run.create(out, f"condense-{config.method}", force=force) if parallel.rank() == 0 else Run(Path())
    folder.path = Path(parallel.from_first(str(folder.path)))
    for line in plan.choices:
        say(line)
    if parallel.rank() == 0:
        write_json(folder.path / "run.json", manifest(plan))
    return _execute(plan, folder, None, say, show)


def resume_condense(out: str | Path, *, data: Any = None, say: Say = _silent, show: Show = _silent) -> Condensed:
    """Goes on with the condensation in `out`; a finished one is returned as it is. `data` as for `condense`.

    Raises:
        ValueError: no such run is there.
    """
    from datafree.data.condensed import load_condensed

    folder = Run.open(out)
    about = folder.manifest()
    if about.get("job") != "condense":
        raise ValueError(f"{folder.path} holds a {about.get('job')} run: resume it with its own command")
    config, own = from_manifest(about)
    finished = folder.result()
    if finished is not None:
        say(f"the run in {folder.path} is finished")
        return Condensed(path=folder.path, metrics=finished, set=load_condensed(folder.path))
    device = prepare(config)
    given = data if isinstance(data, Data) or data is None else from_dataset(data)
    plan = condense_plan(config, own, device, given)
    state, warnings = folder.load_checkpoint()
    for line in warnings:
        say(f"warning: {line}")
    say(f"going on from step {state['clock']['step']}" if state else "no checkpoint yet: starting from step 0")
    return _execute(plan, folder, state, say, show)


def from_manifest(about: Mapping[str, Any]) -> tuple[CondenseConfig, dict[str, Any]]:
    """Configuration and method options of a saved run."""
    try:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()}
        config: CondenseConfig = replace(CondenseConfig(), values)
        return config, dict(about["method_options"])
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"this is no run.json of datafree condense ({what}): give one that a run wrote") from error


def manifest(plan: CondensePlan) -> dict[str, Any]:
    """run.json."""
    return {
        "job": "condense",
        **environment(plan.device),
        "config": dataclasses.asdict(plan.config),
        "method_options": dataclasses.asdict(plan.method_config),
        "set_by_user": list(plan.set_by_user),
        "choices": plan.choices,
        "warnings": [],
        "seed": plan.config.seed,
        "processes": parallel.world_size(),
        "networks": plan.costs,
        "images_per_class": plan.counts,
        "domain": dataclasses.asdict(plan.domain),
    }


def _execute(plan: CondensePlan, folder: Run, state: Mapping[str, Any] | None, say: Say, show: Show) -> Condensed:
    with interruptible() as stop:
        session = CondenseSession(plan, folder, say, show, stop)
        if session.main:
            folder.start_log(int(state["metrics_bytes"]) if state else 0, state["clock"]["step"] if state else 0)
        try:
            if not hasattr(plan.method, "terms"):
                result = _select(session)
            else:
                session.start()
                if state is not None:
                    session.load_state_dict(state)
                ended = not stop() and run(
                    session.trainer,
                    Steps(session.objective, session.synthetic),
                    session.clock,
                    seconds=session.seconds,
                    autocast=nullcontext,  # objectives set the arithmetic of their passes themselves
                    after_step=session.after_step,
                )
                if not ended:
                    raise Interrupted(folder.path, "condense")
                session.save()
                if (end := getattr(session.objective, "finish", None)) is not None:
                    end(session.synthetic)
                session.picture()
                result = session.result_set()
            metrics = _finish(session, result)
        except TermError as error:
            kept = "the last good checkpoint is kept" if (folder.path / CHECKPOINT).exists() else "none was due yet"
            raise TermError(f"{error}; {kept}") from error
        finally:
            folder.close()
            if session.main and (folder.path / "run.json").exists():
                atomic_write(folder.path / "report.html", render_report(folder.path).encode())
    return Condensed(path=folder.path, metrics=metrics, set=result)


def _select(session: CondenseSession) -> CondensedSet:
    """The set of a method that makes it in one go."""
    plan = session.plan
    session.clock.start()
    images, labels = plan.method(session.setting, plan.method_config).build(plan.counts)
    if plan.config.labels == "soft" and not labels.is_floating_point():
        from datafree.condensation.trained import in_batches, trained_network

        labels = in_batches(trained_network(session.setting, selecting=True), images)
    elif plan.config.labels == "hard" and labels.is_floating_point():
        labels = labels.argmax(1)
    session.clock.pause()
    return CondensedSet(
        images=images.clamp(0, 1).float().cpu(), labels=labels.cpu(), domain=plan.domain,
        factor=1, info=set_info(plan),
    )  # fmt: skip


def _finish(session: CondenseSession, result: CondensedSet) -> dict[str, Any]:
    """The set's files and result.json."""
    plan, clock = session.plan, session.clock
    config = plan.config
    metrics = {
        **result.budget(),
        "steps": clock.step,
        "preparation_seconds": round(session.preparation, 2),
        "total_seconds": round(clock.elapsed, 2),
        "peak_rss_mb": peak_rss_mb(),
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "processes": parallel.world_size(),
        "seed": config.seed,
        "method": config.method,
        "arch": plan.arch,
        "data": config.data,
        "learning_rate": result.learning_rate,
    }
    if session.main:
        write_set(session.run.path, result, metrics)
        write_json(session.run.path / "result.json", metrics)
    return metrics
