"""One run while it runs: what happens around the steps, and at its end."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree import parallel
from datafree.distillation import Alternation
from datafree.distillation.sources import Mixed
from datafree.evaluation.accuracy import Scores
from datafree.evaluation.accuracy import evaluate as score
from datafree.evaluation.cost import latencies
from datafree.jobs.loading import normalised
from datafree.jobs.machine import autocast, random_states, restore_random_states, seed_all
from datafree.jobs.planning import Plan
from datafree.pictures import grid, png_bytes
from datafree.report.compared import MOST_CLASSES
from datafree.runs import Run, peak_rss_mb, save_network, write_json
from datafree.synthesis import check_parts
from datafree.training import Clock, Seconds, Trainer

Say = Callable[[str], None]  # told each line worth telling
Show = Callable[[Mapping[str, Any]], None]  # told the measurements of the moment

PICTURES = 10  # grids over a run
LOG_SECONDS = 1.0
LOOK_IMAGES = 2000  # test images on which a teacher is tried before its run
NEAR_CHANCE = "the teacher is near chance on"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the step was ended and saved. `path` is the run's folder, `job` the command that goes on."""

    def __init__(self, path: Path, job: str = "train") -> None:
        super().__init__(f"interrupted; go on with: datafree {job} --resume --out {shlex.quote(str(path))}")
        self.path = path


def silent(_: Any) -> None:
    """The `Say` and the `Show` of who wants to be told nothing."""


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


class Session:
    """What happens around the steps of one run: logs, tests, pictures, checkpoints. Rank 0 alone writes."""

    def __init__(self, plan: Plan, run: Run, show: Show, stop: Callable[[], bool]) -> None:
        config = plan.config
        self.plan, self.run, self.show, self.stop = plan, run, show, stop
        self.main = parallel.rank() == 0
        self.rng = torch.Generator(plan.device).manual_seed(config.seed)
        seed_all(config.seed)
        student = normalised(plan.network, plan.domain, plan.device)
        assert config.criterion is not None and config.temperature is not None
        self.trainer = Trainer(student, config)
        self.setting = plan.setting(student, self.rng)
        self.method = plan.build_method(self.setting)
        check_parts(self.method.method if isinstance(self.method, Mixed) else self.method)
        self.alternation = Alternation(
            self.method,
            self.setting,
            criterion=config.criterion,
            temperature=config.temperature,
            augmented=bool(config.augment),
            attention=config.attention or 0.0,
        )
        self.clock: Clock = plan.clock()
        self.seconds = Seconds()
        self.autocast = autocast(plan.device, config.precision)
        self.round_terms: dict[str, float] = {}
        self.marks = {"test": 0, "picture": 0}
        self.testing = 0.0
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
        """Keeps the last good checkpoint where a weight is not finite any more: the next term will say so."""
        generator = getattr(_maker(self.method), "generator", None)
        networks = [self.trainer.network, *([generator] if generator is not None else [])]
        sound = all(bool(p.isfinite().all()) for network in networks for p in network.parameters())
        if self.main and sound:
            self.run.save_checkpoint(self.state_dict())
        self.saved = time.monotonic()

    def after_step(self, terms: Mapping[str, Tensor], round_terms: Mapping[str, float]) -> bool:
        self.round_terms.update(round_terms)
        now, fraction, config = time.monotonic(), self.clock.fraction, self.plan.config
        stopping = bool(parallel.latest(float(self.stop())))
        row: dict[str, Any] = {}
        if now - self.logged >= LOG_SECONDS or self.clock.ended:
            row = self._row(terms)
        if terms and config.evaluations and fraction * config.evaluations >= self.marks["test"] + 1 and fraction < 1:
            self.marks["test"] = int(fraction * config.evaluations)
            scores = self._aside(self.test_for_log) if self._test_is_cheap() else None
            self.testing += time.monotonic() - now
            if scores is not None:
                row = {**self._row(terms), "test/accuracy": scores.accuracy}
        if fraction * PICTURES >= self.marks["picture"]:
            self.marks["picture"] = int(fraction * PICTURES) + 1
            self._aside(self.picture)
        if row and self.main:
            self.run.log(row)
            self.show({**row, "fraction": fraction, "seconds_left": self.clock.seconds_left})
        if row:
            self.logged = now
        if stopping or now - self.saved >= config.checkpoint_every:
            self._aside(self.save)
        return stopping

    def _row(self, terms: Mapping[str, Tensor]) -> dict[str, Any]:
        row: dict[str, Any] = {"step": self.clock.step, "seconds": round(self.clock.elapsed, 3)}
        row.update({f"generator/{name}": value for name, value in self.round_terms.items()})
        row.update({f"student/{name}": float(value.detach()) for name, value in terms.items()})
        if terms:
            row.update({"agreement": float(self.alternation.agreement), "lr": self.trainer.rate})
        return row

    def _aside(self, act: Callable[[], Any]) -> Any:
        """Does what is not training; a budget of wall clock goes on meanwhile."""
        if self.clock.seconds is None:
            self.clock.pause()
        result = act()
        self.clock.start()
        return result

    def _test_is_cheap(self) -> bool:
        """Tests for the log may take a thirtieth of a budget, not more."""
        return self.clock.seconds is None or self.testing <= self.clock.elapsed / 30

    def try_teacher(self, say: Say) -> None:
        """Says how the teacher does on some of the test images, if there are any: a wrong normalisation shows at once.

        To be called before the clock starts. No random draw of the run changes.
        """
        data = self.plan.test
        if data is None or data.x_test is None or data.y_test is None or not self.main:
            return
        every = -(-len(data.x_test) // LOOK_IMAGES)  # a folder's images come class by class
        images, labels = data.x_test[::every], data.y_test[::every]
        state = random_states(self.rng)
        accuracy = score(self.plan.teacher.teacher, images, labels).accuracy
        restore_random_states(state, self.rng)
        which = "held-out training" if self.plan.config.validation else "test"
        say(f"teacher: {accuracy:.1%} of {len(images):,} {which} images are right")
        if accuracy <= min(1.5 / self.plan.domain.classes, 0.6):
            self.plan.warnings.append(_near_chance(f"{len(images):,} {which} images", accuracy))
            say(f"warning: {self.plan.warnings[-1]}")

    def test_for_log(self) -> Scores | None:
        """None for a student whose logits are not finite: the next term will stop the run, and names itself."""
        try:
            return self.test()
        except ValueError:
            return None

    def test(self, final: bool = False) -> Scores | None:
        """The student on the test data, if there are any; on rank 0. `final`: in float32, beside the teacher."""
        data = self.plan.test
        if data is None or data.x_test is None or data.y_test is None or not self.main:
            return None
        student = self.trainer.result.eval()

        def predict(images: Tensor) -> Tensor:
            with nullcontext() if final else self.autocast():
                logits: Tensor = student(images.contiguous(memory_format=torch.channels_last))
            return logits

        return score(predict, data.x_test, data.y_test, teacher=self.plan.teacher.teacher if final else None)

    @torch.no_grad()
    def picture(self) -> None:
        """A grid of the images made, labelled with the teacher's decision and confidence. Real ones are not shown."""
        if not self.main or self.plan.real is not None:
            return
        held = getattr(getattr(self.method, "store", None), "last", None)
        images = held if held is not None else self._sample()
        images = images[:40].float()
        confidence, decision = self.plan.teacher.teacher(images).softmax(1).max(1)
        names = self.plan.domain.class_names or tuple(map(str, range(self.plan.domain.classes)))
        labels = [f"{names[d]} {c:.0%}" for d, c in zip(decision.tolist(), confidence.tolist(), strict=True)]
        self.run.picture(f"step-{self.clock.step:07d}", png_bytes(grid(images.cpu(), labels)))

    def _sample(self) -> Tensor:
        state = random_states(self.rng)
        store = getattr(self.method, "store", self.method)
        made = store.made
        images: Tensor = self.method.sample(self.setting.batch_size).images
        restore_random_states(state, self.rng)
        store.made = made
        return images


def _near_chance(images: str, accuracy: float) -> str:
    return f"{NEAR_CHANCE} {images} ({accuracy:.1%}): wrong normalisation (--mean, --std) or class order?"


def _maker(method: Any) -> Any:
    """What holds a method's `generator`, and can say how it is built (`about`) and what its weights are (`grown`)."""
    return getattr(method, "imaging", method)


def finish(session: Session, say: Say) -> dict[str, Any]:
    """Last evaluation, networks and result.json, by the first process; to every one what it found."""
    metrics = _conclude(session, say) if session.main else {}
    told = parallel.from_first(json.dumps(metrics))
    return metrics if session.main else dict(json.loads(told))


def _conclude(session: Session, say: Say) -> dict[str, Any]:
    plan, run, clock = session.plan, session.run, session.clock
    config, domain = plan.config, plan.domain
    session.picture()
    scores = session.test(final=True)
    warnings = list(plan.warnings)
    if scores is not None:
        chance = 1 / domain.classes
        assert scores.teacher_accuracy is not None
        said = any(line.startswith(NEAR_CHANCE) for line in warnings)
        if scores.teacher_accuracy < 2 * chance and scores.teacher_accuracy < 0.5 and not said:
            warnings.append(_near_chance("the test data", scores.teacher_accuracy))
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
    maker = _maker(session.method)
    if hasattr(maker, "about"):
        maker.generator.load_state_dict(maker.grown())
        save_network(run.path / "generator.safetensors", maker.generator, maker.about())
    metrics: dict[str, Any] = {
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
        "method": plan.made_by,
        "teacher": plan.teacher.loaded.arch,
        "student": config.student,
        "data": config.data,
        "per_class": {"teacher": scores.teacher_per_class, "student": scores.per_class} if scores else None,
        "warnings": warnings,
    }
    if scores is not None and domain.classes <= MOST_CLASSES:
        metrics["confusion"] = scores.decisions
    if (queries := getattr(session.method, "queries", None)) is not None:
        metrics["queries"] = queries
    if plan.device.type == "cuda":
        metrics["peak_device_mb"] = round(torch.cuda.max_memory_allocated(plan.device) / 1e6, 1)
    networks = {"student": session.trainer.result, "teacher": plan.teacher.teacher.classifier}
    metrics |= latencies(networks, domain.shape, plan.device)  # last: it takes memory and time of its own
    write_json(run.path / "result.json", metrics)
    return metrics
