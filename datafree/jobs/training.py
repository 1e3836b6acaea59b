"""`train`: a teacher is distilled without its data, from a configuration to a written run."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree import parallel
from datafree.config import TrainConfig, replace
from datafree.distillation import Alternation, distill
from datafree.evaluation.accuracy import Scores
from datafree.evaluation.accuracy import evaluate as score
from datafree.jobs.loading import normalised
from datafree.jobs.machine import autocast, prepare, random_states, restore_random_states, seed_all
from datafree.jobs.planning import Plan, expected_memory_mb, make_plan, method_options, network_costs
from datafree.jobs.pretraining import embedded_teacher
from datafree.pictures import grid, png_bytes
from datafree.report import render_report
from datafree.runs import Run, atomic_write, environment, peak_rss_mb, save_network, write_json
from datafree.synthesis import load_method
from datafree.synthesis.imaging import Setting
from datafree.training import Clock, Seconds, Trainer

Say = Callable[[str], None]
Show = Callable[[Mapping[str, Any]], None]
PICTURES = 10  # grids over a run
LOG_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the step was ended and saved. `path` is the run's folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"interrupted; go on with: datafree train --resume --out {path}")
        self.path = path


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Attributes:
        path: its folder.
        metrics: what result.json holds.
        student: takes images in [0, 1], in evaluation mode.
    """

    path: Path
    metrics: dict[str, Any]
    student: nn.Module


def _silent(_: Any) -> None:
    pass


def train(
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    force: bool = False,
    say: Say = _silent,
    show: Show = _silent,
    **options: Any,
) -> Result:
    """Distils a teacher data-free.

    Args:
        config: the run; or give its fields as keywords.
        out: folder of the run; default runs/NAME-N.
        force: overwrite a run that stands in `out`.
        say: called with each line worth telling (choices, warnings).
        show: called with the measurements of the moment, about once a second.
        options: fields of `TrainConfig` and of the method's configuration.

    Raises:
        ValueError: something a person can mend; one line.
        TermError: a term became NaN or infinite.
        Interrupted: Ctrl-C, after saving.
    """
    config, options = split_options(config or TrainConfig(), options)
    method_options(config.method, load_method(config.method), options)
    device = prepare(config)
    main = parallel.rank() == 0
    run = Run.create(out, f"train-{config.method}", force=force) if main else Run(Path(out or "runs"))
    file = None
    if config.teacher is None:
        file = embedded_teacher(config, run, device, say)
    plan = make_plan(config, options, device, embedded_teacher=file)
    for line in plan.choices:
        say(line)
    for line in plan.warnings:
        say(f"warning: {line}")
    if main:
        write_json(run.path / "run.json", manifest(plan))
    return _execute(plan, run, None, say, show)


def resume(out: str | Path, *, say: Say = _silent, show: Show = _silent) -> Result:
    """Goes on with the run in `out` from its last whole checkpoint; a finished run is returned as it is.

    Raises:
        ValueError: no run is there, or its teacher has changed.
    """
    run = Run.open(out)
    about = run.manifest()
    if about.get("job") != "train":
        raise ValueError(f"{run.path} holds a {about.get('job')} run: start that again, it is not resumed")
    config, options = from_manifest(about)
    device = prepare(config)
    file = None
    if config.teacher is None:
        file = embedded_teacher(config, run, device, say)
    plan = make_plan(config, options, device, embedded_teacher=file)
    if about["teacher"]["sha256"] != plan.teacher.loaded.sha256:
        raise ValueError(f"{plan.teacher.loaded.source} has changed since the run began: start anew with another --out")
    finished = run.result()
    if finished is not None:
        from datafree.jobs.loading import load_student

        say(f"the run in {run.path} is finished")
        return Result(path=run.path, metrics=finished, student=load_student(str(run.path), arch=config.student)[0])
    state, warnings = run.load_checkpoint()
    for line in warnings:
        say(f"warning: {line}")
    say(f"going on from step {state['clock']['step']}" if state else "no checkpoint yet: starting from step 0")
    return _execute(plan, run, state, say, show)


def dry_run(config: TrainConfig | None = None, **options: Any) -> dict[str, Any]:
    """Resolves everything and computes nothing: configuration, networks, the memory expected (MB). Writes no file.

    Without a teacher (the embedded digits job) an untrained network stands in for it.
    """
    config, options = split_options(config or TrainConfig(), options)
    device = prepare(config)
    plan = make_plan(config, options, device, embedded_teacher=embedded_teacher(config, None, device, _silent))
    return {**manifest(plan), "expected_memory_mb": expected_memory_mb(plan)}


def split_options(config: TrainConfig, options: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """Parts keywords into fields of `TrainConfig` and the method's own."""
    common = {f.name for f in dataclasses.fields(TrainConfig)}
    config = replace(config, {k: v for k, v in options.items() if k in common})
    return config, {k: v for k, v in options.items() if k not in common}


def from_manifest(about: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """Configuration and method options of a saved run."""
    try:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()}
        config: TrainConfig = replace(TrainConfig(), values)
        return config, dict(about["method_options"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no run.json of datafree train ({error}): give one that a run wrote") from error


def manifest(plan: Plan) -> dict[str, Any]:
    """run.json."""
    costs, loaded = network_costs(plan), plan.teacher.loaded
    teacher = {"source": loaded.source, "sha256": loaded.sha256, **costs["teacher"]}
    # The architecture and the embedded teacher are found again by the same rules; the rest is pinned.
    config = dataclasses.asdict(plan.config)
    if "arch" not in plan.set_by_user:
        config["arch"] = None
    if config["teacher"] is None:
        config.update(shape=None, classes=None, mean=None, std=None)
    return {
        "job": "train",
        **environment(plan.device),
        "config": config,
        "method_options": dataclasses.asdict(plan.method_config),
        "set_by_user": list(plan.set_by_user),
        "choices": plan.choices,
        "warnings": plan.warnings,
        "seed": plan.config.seed,
        "processes": parallel.world_size(),
        "teacher": teacher,
        "student": costs["student"],
        "domain": dataclasses.asdict(plan.domain),
    }


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C (or SIGTERM) only asks to stop; the second acts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _Session:
    """What happens around the steps of one run: logs, tests, pictures, checkpoints. Rank 0 alone writes."""

    def __init__(self, plan: Plan, run: Run, show: Show, stop: Callable[[], bool]) -> None:
        config = plan.config
        self.plan, self.run, self.show, self.stop = plan, run, show, stop
        self.main = parallel.rank() == 0
        self.rng = torch.Generator(plan.device).manual_seed(config.seed)
        seed_all(config.seed)
        student = normalised(plan.network, plan.domain, plan.device)
        assert config.batch_size is not None and config.criterion is not None and config.temperature is not None
        self.trainer = Trainer(student, config)
        self.setting = Setting(
            teacher=plan.teacher.teacher, student=student, domain=plan.domain, batch_size=config.batch_size, rng=self.rng, device=plan.device
        )  # fmt: skip
        self.method = plan.method(self.setting, plan.method_config)
        self.alternation = Alternation(
            self.method, self.setting, criterion=config.criterion, temperature=config.temperature, augmented=bool(config.augment)
        )  # fmt: skip
        self.clock: Clock = plan.clock()
        self.seconds = Seconds()
        self.autocast = autocast(plan.device, config.precision)
        self.round_terms: dict[str, float] = {}
        self.marks = {"test": 0, "picture": 0}
        self.logged = self.saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer.state_dict(),
            "alternation": self.alternation.state_dict(),
            "clock": self.clock.state_dict(),
            "seconds": dataclasses.asdict(self.seconds),
            "marks": self.marks,
            "random": random_states(self.rng),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.alternation.load_state_dict(state["alternation"])
        self.clock.load_state_dict(state["clock"])
        self.seconds = Seconds(**state["seconds"])
        self.marks = dict(state["marks"])
        restore_random_states(state["random"], self.rng)

    def save(self) -> None:
        if self.main:
            self.run.save_checkpoint(self.state_dict())
        self.saved = time.monotonic()

    def after_step(self, terms: Mapping[str, Tensor], round_terms: Mapping[str, float]) -> bool:
        self.round_terms.update(round_terms)
        now, fraction, config = time.monotonic(), self.clock.fraction, self.plan.config
        stopping = bool(parallel.latest(float(self.stop())))
        row: dict[str, Any] = {}
        if now - self.logged >= LOG_SECONDS:
            row = self._row(terms)
        if terms and config.evaluations and fraction * config.evaluations >= self.marks["test"] + 1 and fraction < 1:
            self.marks["test"] = int(fraction * config.evaluations)
            scores = self._paused(self.test)
            if scores is not None:
                row = {**self._row(terms), "test/accuracy": scores.accuracy}
        if fraction * PICTURES >= self.marks["picture"]:
            self.marks["picture"] = int(fraction * PICTURES) + 1
            self._paused(self.picture)
        if row and self.main:
            self.run.log(row)
            self.show({**row, "fraction": fraction, "seconds_left": self.clock.seconds_left})
        if row:
            self.logged = now
        if stopping or now - self.saved >= config.checkpoint_every:
            self._paused(self.save)
        return stopping

    def _row(self, terms: Mapping[str, Tensor]) -> dict[str, Any]:
        row: dict[str, Any] = {"step": self.clock.step, "seconds": round(self.clock.elapsed, 3)}
        row.update({f"generator/{name}": value for name, value in self.round_terms.items()})
        row.update({f"student/{name}": float(value.detach()) for name, value in terms.items()})
        if terms:
            row.update({"agreement": float(self.alternation.agreement), "lr": self.trainer.rate})
        return row

    def _paused(self, act: Callable[[], Any]) -> Any:
        self.clock.pause()
        result = act()
        self.clock.start()
        return result

    def test(self, teacher: bool = False) -> Scores | None:
        """The student on the test data, if there are any; on rank 0."""
        data = self.plan.test
        if data is None or data.x_test is None or data.y_test is None or not self.main:
            return None
        student = self.trainer.result.eval()

        def predict(images: Tensor) -> Tensor:
            with self.autocast():
                logits: Tensor = student(images.contiguous(memory_format=torch.channels_last))
            return logits

        return score(predict, data.x_test, data.y_test, teacher=self.plan.teacher.teacher if teacher else None)

    @torch.no_grad()
    def picture(self) -> None:
        """A grid of what the student is shown, labelled with the teacher's decision and confidence. Draws no random number."""
        if not self.main:
            return
        held = getattr(getattr(self.method, "imaging", None), "last", None)
        images = held if held is not None else self._sample()
        images = images[:40].float()
        confidence, decision = self.plan.teacher.teacher(images).softmax(1).max(1)
        names = self.plan.domain.class_names or tuple(map(str, range(self.plan.domain.classes)))
        labels = [f"{names[d]} {c:.0%}" for d, c in zip(decision.tolist(), confidence.tolist(), strict=True)]
        self.run.picture(f"step-{self.clock.step:07d}", png_bytes(grid(images.cpu(), labels)))

    def _sample(self) -> Tensor:
        state = random_states(self.rng)
        made = self.method.made
        images: Tensor = self.method.sample(self.setting.batch_size).images
        restore_random_states(state, self.rng)
        self.method.made = made
        return images


def _execute(plan: Plan, run: Run, state: Mapping[str, Any] | None, say: Say, show: Show) -> Result:
    with interruptible() as stop:
        session = _Session(plan, run, show, stop)
        if state is not None:
            session.load_state_dict(state)
        if session.main:
            run.start_log(int(state["metrics_bytes"]) if state else 0, session.clock.step)
        try:
            ended = distill(
                session.alternation,
                session.trainer,
                session.clock,
                seconds=session.seconds,
                autocast=session.autocast,
                after_step=session.after_step,
            )
            if not ended:
                raise Interrupted(run.path)
            session.save()
            metrics = _finish(session, say)
        finally:
            run.close()
            if session.main and (run.path / "run.json").exists():
                atomic_write(run.path / "report.html", render_report(run.path).encode())
    return Result(path=run.path, metrics=metrics, student=session.trainer.result.eval())


def _finish(session: _Session, say: Say) -> dict[str, Any]:
    """Last evaluation, networks and result.json."""
    plan, run, clock = session.plan, session.run, session.clock
    config, domain = plan.config, plan.domain
    metrics: dict[str, Any] = {}
    if not session.main:
        return metrics
    session.picture()
    scores = session.test(teacher=True)
    warnings = list(plan.warnings)
    if scores is not None:
        chance = 1 / domain.classes
        assert scores.teacher_accuracy is not None
        if scores.teacher_accuracy < 2 * chance and scores.teacher_accuracy < 0.5:
            warnings.append(
                f"the teacher is near chance on the test data ({scores.teacher_accuracy:.1%}): wrong normalisation (--mean, --std) or class order?"
            )
            say(f"warning: {warnings[-1]}")
    about = {
        "arch": config.student,
        "shape": domain.shape,
        "classes": domain.classes,
        "mean": domain.mean,
        "std": domain.std,
        "data": config.data,
    }
    network = getattr(session.trainer.result, "network")  # noqa: B009 (a Normalised module)
    save_network(run.path / "student.safetensors", network, about)
    imaging = getattr(session.method, "imaging", None)
    if imaging is not None:
        imaging.generator.load_state_dict(imaging.grown())
        save_network(run.path / "generator.safetensors", imaging.generator, imaging.about())
    metrics = {
        "teacher_accuracy": scores.teacher_accuracy if scores else None,
        "student_accuracy": scores.accuracy if scores else None,
        "agreement": scores.agreement if scores else None,
        "kl": scores.kl if scores else None,
        "images": session.method.made,
        "steps": clock.step,
        "rounds": session.alternation.rounds,
        "synthesis_seconds": round(session.seconds.synthesis, 2),
        "distillation_seconds": round(session.seconds.training, 2),
        "total_seconds": round(clock.elapsed, 2),
        "peak_rss_mb": peak_rss_mb(),
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "processes": parallel.world_size(),
        "seed": config.seed,
        "method": config.method,
        "teacher": plan.teacher.loaded.arch,
        "student": config.student,
        "data": config.data,
        "per_class": {"teacher": scores.teacher_per_class, "student": scores.per_class} if scores else None,
        "warnings": warnings,
    }
    if plan.device.type == "cuda":
        metrics["peak_device_mb"] = round(torch.cuda.max_memory_allocated(plan.device) / 1e6, 1)
    write_json(run.path / "result.json", metrics)
    return metrics
