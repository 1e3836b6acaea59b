"""How fast the methods are, and how much faster than the same arithmetic done the usual way. Prints JSON.

    python scripts/speed.py --methods dfq,dafl --pairs wrn16_1:resnet8,resnet20:resnet8 --precision 32,bf16
    python scripts/speed.py --methods dfq --baseline
    python scripts/speed.py --inner --methods fast,cmi,nayer,deepinversion  # their inner loops: speed_inversion.py
    python scripts/speed.py --condensation --methods dm,dc,evaluate,mtt     # condensation: speed_condensation.py

A pair is TEACHER:STUDENT, both untrained, on 3x32x32 images with 10 classes, on the CPU. Every case has a fresh
process, so that its peak memory is its own. Times are milliseconds, medians over the repeats after a warm-up:

    generator_step_ms   one step of the generator, with its share of the round; null where a method has no generator
    pixel_step_ms       one step on a batch of pixels, likewise; null where a method has no such steps
    student_step_ms     one step of the student: images, teacher, student, optimiser
    image_ms            a round (at the method's own numbers of steps) divided by the images that the student saw in it
    cpu                 the same by processor time, which other programs disturb less
    peak_memory_mb      largest resident memory of the process, libraries included (10^6 bytes)

`--baseline` times rounds of dfq (one generator step, five student steps) beside the usual way, which stands in this
file. All variants run in one process and take turns, and every ratio is the median of the ratios within a turn, so that
a machine whose speed wavers does not spoil them.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.config import MachineConfig, TrainConfig
from datafree.distillation import Alternation
from datafree.domain import DOMAINS
from datafree.generators.convolutional import Generator
from datafree.jobs.machine import autocast, prepare
from datafree.losses import CRITERIA, Statistics
from datafree.models import build_model, model_names
from datafree.runs import environment, peak_rss_mb
from datafree.synthesis import METHODS, load_method
from datafree.synthesis.setting import Setting
from datafree.teacher import Normalised, Teacher
from datafree.training import Clock, Trainer

DOMAIN = DOMAINS["cifar10"]
CPU = torch.device("cpu")
STUDENT_STEPS = 5  # of the compared round; it has one generator step
LR = 1e-3  # of the student; untrained networks are to stay finite
DESCRIPTION = (
    "the same terms and networks in float32, contiguous (NCHW); a generator of nearest-neighbour upsampling and 3x3 "
    "convolutions; batch-norm statistics by mean and by var of the transposed maps, in the generator step alone; Adam "
    "and SGD with torch's defaults. usual: new latents are drawn and images generated for each of the 5 student steps, "
    "as the field's releases do. usual_kept: the student is shown the generator step's images five times. "
    "Ours keeps images in the bank. No variant crops or flips."
)


class Textbook(nn.Module):
    """The `small` generator as the field writes it, with the same weights: the oracle of the package's cheaper form."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.first, self.linear, self.norm = generator.first, generator.linear, generator.norm
        self.norms, self.to_image = generator.norms, generator.to_image
        convolutions = []
        for block in generator.blocks:
            assert isinstance(block.weight, Tensor)
            outputs, inputs = block.weight.shape[:2]
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            convolution.weight = nn.Parameter(block.weight.detach().clone())
            convolutions.append(convolution)
        self.blocks = nn.ModuleList(convolutions)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(self.linear(z).view(-1, *self.first))
        for convolution, norm in zip(self.blocks, self.norms, strict=True):
            x = F.leaky_relu(norm(convolution(F.interpolate(x, scale_factor=2, mode="nearest"))), 0.2)
        return torch.sigmoid(self.to_image(x))


def textbook_statistics(norm: nn.Module, x: Tensor) -> Statistics:
    """Mean and variance of each channel of a layer's input (N, C, H, W), beside what the layer remembers."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    rows = x.transpose(0, 1).contiguous().view(x.shape[1], -1)
    return Statistics(x.mean((0, 2, 3)), rows.var(1, correction=0), norm.running_mean, norm.running_var)


class Ours:
    """A method with its student, as `datafree train` runs them."""

    def __init__(
        self, method: str, pair: tuple[str, str], *, batch: int, augmented: bool | None = None, **options: int
    ) -> None:
        torch.manual_seed(0)
        teacher, student = (build_model(name, shape=DOMAIN.shape, classes=DOMAIN.classes) for name in pair)
        self.teacher = Teacher(teacher, DOMAIN.mean, DOMAIN.std)
        self.teacher.classifier.to(memory_format=torch.channels_last)
        self.student = Normalised(student, DOMAIN.mean, DOMAIN.std)
        self.student.to(memory_format=torch.channels_last)
        rng = torch.Generator().manual_seed(0)
        self.setting = setting = Setting(
            teacher=self.teacher, student=self.student, domain=DOMAIN, batch_size=batch, rng=rng, device=CPU
        )
        kind = load_method(method)
        known = {field.name for field in dataclasses.fields(kind.Config)}
        options = {"warmup": 0, **options}
        self.method = kind(setting, kind.Config(**{k: v for k, v in options.items() if k in known}))
        chosen = {**kind.STUDENT, "lr": LR}
        config = TrainConfig(
            optimizer=chosen["optimizer"],
            lr=LR,
            weight_decay=chosen["weight_decay"],
            gradient_clip=chosen.get("gradient_clip"),
        )
        self.trainer = Trainer(self.student, config)
        self.criterion, self.temperature = chosen["criterion"], chosen["temperature"]
        self.alternation = Alternation(
            self.method,
            setting,
            criterion=self.criterion,
            temperature=self.temperature,
            augmented=chosen["augment"] if augmented is None else augmented,
            attention=chosen.get("attention", 0.0),
        )
        self.clock = Clock(steps=10**9)

    def update(self, precision: str) -> Mapping[str, float]:
        with autocast(CPU, precision)():
            terms: Mapping[str, float] = self.method.update()
        return terms

    def student_step(self, precision: str) -> None:
        with autocast(CPU, precision)():
            terms = self.alternation.terms(self.clock)
        self.trainer.step(terms, 0.0)


class Usual:
    """dfq the usual way, from the same weights and the same latents as `Ours`."""

    def __init__(self, ours: Ours) -> None:
        plain = torch.contiguous_format
        self.config, imaging = ours.method.config, ours.method.imaging
        self.batch, self.latent = imaging.batch_size, self.config.latent
        self.generator = Textbook(copy.deepcopy(imaging.generator)).to(memory_format=plain)
        self.teacher = copy.deepcopy(ours.teacher.classifier).to(memory_format=plain)
        self.student = copy.deepcopy(ours.student).to(memory_format=plain)
        self.rng = torch.Generator().manual_seed(0)
        self.adam = torch.optim.Adam(self.generator.parameters(), lr=self.config.generator_lr, betas=(0.5, 0.999))
        group = ours.trainer.optimizer.param_groups[0]
        names = ("lr", "momentum", "weight_decay", "nesterov")
        self.sgd = torch.optim.SGD(self.student.parameters(), **{name: group[name] for name in names})
        self.criterion, self.temperature = CRITERIA[ours.criterion], ours.temperature

    def images(self) -> Tensor:
        self.generator.train()
        images: Tensor = self.generator(torch.randn(self.batch, self.latent, generator=self.rng))
        return images

    def update(self) -> tuple[dict[str, float], Tensor]:
        """One generator step: its terms and its images."""
        config, images, seen = self.config, self.images(), list[Statistics]()

        def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(textbook_statistics(norm, inputs[0]))

        norms = [module for module in self.teacher.modules() if isinstance(module, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
        teacher = self.teacher(images)
        for hook in hooks:
            hook.remove()
        self.student.eval()
        student = self.student(images)
        self.student.train()
        terms = {
            "onehot": config.onehot * losses.onehot(teacher),
            "balance": config.balance * losses.class_balance(teacher),
            "bn": config.bn * losses.batch_norm_statistics(seen),
            "adv": -config.adv * losses.disagreement(student, teacher, masked=config.masked),
        }
        self.adam.zero_grad()
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        self.adam.step()
        return {name: float(term.detach()) for name, term in terms.items()}, images.detach()

    def student_step(self, kept: Tensor | None) -> None:
        """One step on the kept images, or on new ones."""
        with torch.no_grad():
            images = kept if kept is not None else self.images()
            teacher = self.teacher(images)
        self.sgd.zero_grad()
        torch.autograd.backward(self.criterion(self.student(images), teacher, self.temperature))
        self.sgd.step()


def times(act: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds by the wall clock and by the processor's."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def measure_case(
    method: str, pair: tuple[str, str], precision: str, *, batch: int, width: int, repeats: int
) -> dict[str, Any]:
    """Times and memory of one method, by the method's own defaults but for the generator's width."""
    ours = Ours(method, pair, batch=batch, generator_width=width)
    ours.update(precision)
    ours.student_step(precision)
    updates, steps = [], []
    for _ in range(repeats):
        updates.append(times(lambda: ours.update(precision)))
        steps.append(times(lambda: ours.student_step(precision)))
    wall, cpu = (
        parts(ours.method, statistics.median(update), statistics.median(step), batch)
        for update, step in zip(zip(*updates, strict=True), zip(*steps, strict=True), strict=True)
    )
    case = {"method": method, "teacher": pair[0], "student": pair[1], "precision": precision}
    return {**case, **wall, "cpu": cpu, "peak_memory_mb": peak_rss_mb()}


def parts(method: Any, update: float, step: float, batch: int) -> dict[str, float | None]:
    """Where the time of a round of synthesis and of a student's step goes, from milliseconds of each."""
    config = method.config
    generator = update / getattr(config, "generator_steps", 1) if hasattr(method, "imaging") else None
    pixels = update / config.pixel_steps if hasattr(config, "pixel_steps") else None
    return {
        "generator_step_ms": generator and round(generator, 3),
        "pixel_step_ms": pixels and round(pixels, 3),
        "student_step_ms": round(step, 3),
        "image_ms": round((update / config.student_steps + step) / batch, 4),
    }


def compare(
    pair: tuple[str, str], precisions: Sequence[str], *, batch: int, width: int, repeats: int
) -> dict[str, Any]:
    """Rounds of dfq, ours and the usual way in turns."""

    def make() -> Ours:
        options = {"generator_width": width, "generator_steps": 1, "student_steps": STUDENT_STEPS}
        return Ours("dfq", pair, batch=batch, augmented=False, **options)

    fresh, kept = Usual(make()), Usual(make())

    def usual() -> None:
        fresh.update()
        for _ in range(STUDENT_STEPS):
            fresh.student_step(None)

    def usual_kept() -> None:
        images = kept.update()[1]
        for _ in range(STUDENT_STEPS):
            kept.student_step(images)

    def our_round(ours: Ours, precision: str) -> Callable[[], None]:
        def act() -> None:
            ours.update(precision)
            for _ in range(STUDENT_STEPS):
                ours.student_step(precision)

        return act

    difference = differences(make())
    rounds: dict[str, Callable[[], None]] = {"usual": usual, "usual_kept": usual_kept}
    rounds.update({f"ours_{precision}": our_round(make(), precision) for precision in precisions})
    for act in rounds.values():
        act()
    turns = [{name: times(act)[0] for name, act in rounds.items()} for _ in range(repeats)]

    def ratio(slow: str, quick: str) -> float:
        return round(statistics.median(turn[slow] / turn[quick] for turn in turns), 3)

    ours = [f"ours_{precision}" for precision in precisions]
    return {
        "teacher": pair[0],
        "student": pair[1],
        "round_ms": {name: round(statistics.median(turn[name] for turn in turns), 1) for name in rounds},
        "speedup": {name: ratio("usual", name) for name in ours},
        "speedup_over_kept": {name: ratio("usual_kept", name) for name in ours},
        "difference": difference,
    }


def differences(ours: Ours) -> dict[str, float]:
    """How far ours and the usual way are apart in float32, from the same weights and latents.

    `images` and `terms` (relative) are those of the first generator step. `images_after_step` are those of other
    latents once both generators have made it, `moved_by_step` is how far the step itself took them. Adam divides by the
    gradient's size, so that where a gradient is all rounding, the step is of full length in a direction of chance.
    """
    usual = Usual(ours)
    z = torch.randn(8, usual.latent, generator=torch.Generator().manual_seed(1))
    start = copy.deepcopy(usual.generator)
    theirs, before = usual.update()
    mine = ours.update("32")
    with torch.no_grad():
        untouched, textbook, cheap = start(z), usual.generator(z), ours.method.imaging.generator(z)
    return {
        "images": float((ours.method.imaging.store.last - before).abs().max()),
        "terms": max(abs(mine[name] - theirs[name]) / max(abs(theirs[name]), 1e-3) for name in theirs),
        "images_after_step": float((textbook - cheap).abs().max()),
        "moved_by_step": float((textbook - untouched).abs().max()),
    }


def options(about: str, methods: Sequence[str]) -> argparse.ArgumentParser:
    """The flags that all timings of data-free methods have."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--methods", default=",".join(methods), help="default: %(default)s")
    parser.add_argument("--pairs", default="wrn16_1:resnet8", help="TEACHER:STUDENT,...; default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="images a step; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--precision", default="32,bf16", help="default: %(default)s")
    parser.add_argument("--width", type=int, default=64, help="channels of the generator; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=9, help="measurements a case; default: %(default)s")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case as JSON: what a child process measures
    return parser


def checked(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, methods: Sequence[str]
) -> argparse.Namespace:
    """The parsed flags; what is not known, or below 1, ends the program with a line."""
    args = parser.parse_args(arguments)
    args.methods, args.precision = args.methods.split(","), args.precision.split(",")
    args.pairs = [tuple(pair.split(":")) for pair in args.pairs.split(",")]
    for name, value in vars(args).items():
        if isinstance(value, int) and value < 1 and not isinstance(value, bool):
            parser.error(f"--{name} is {value}: give 1 or more")
    for given, known, flag in (
        (args.methods, list(methods), "--methods"),
        (args.precision, ["32", "bf16"], "--precision"),
        ([name for pair in args.pairs for name in pair], list(model_names()), "--pairs"),
    ):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{flag}: {unknown[0]!r} is unknown: take one of {', '.join(known)}")
    if any(len(pair) != 2 for pair in args.pairs):
        parser.error("--pairs: give TEACHER:STUDENT, such as wrn16_1:resnet8")
    return args


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options("Times the methods on the CPU and prints JSON.", list(METHODS))
    parser.add_argument("--baseline", action="store_true", help="also time the usual way and print the ratios")
    parser.add_argument("--inner", action="store_true", help="instead: see --inner --help")
    parser.add_argument("--condensation", action="store_true", help="instead: see --condensation --help")
    return checked(parser, arguments, list(METHODS))


def in_child(case: Mapping[str, Any], threads: int, *flags: str) -> dict[str, Any]:
    """The case measured in a process of its own, by the part of this script that the flags ask for."""
    print(json.dumps(case), file=sys.stderr, flush=True)
    command = [sys.executable, __file__, *flags, "--threads", str(threads), "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    prepare(MachineConfig(device="cpu", threads=args.threads))
    if args.case is not None:
        case = json.loads(args.case)
        act: Callable[..., dict[str, Any]] = measure_case if "method" in case else compare
        print(json.dumps(act(**case)))
        return
    common = {"batch": args.batch, "width": args.width, "repeats": args.repeats}
    cases = [
        {"method": method, "pair": pair, "precision": precision, **common}
        for pair in args.pairs
        for method in args.methods
        for precision in args.precision
    ]
    report: dict[str, Any] = {
        **environment(CPU),
        "settings": {"shape": DOMAIN.shape, "threads": args.threads, **common},
        "cases": [in_child(case, args.threads) for case in cases],
    }
    if args.baseline:
        compared = [
            in_child({"pair": pair, "precisions": args.precision, **common}, args.threads) for pair in args.pairs
        ]
        report["baseline"] = {"description": DESCRIPTION, "comparisons": compared}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    OTHERS = {"--condensation": "speed_condensation.py", "--inner": "speed_inversion.py"}
    if asked := [name for flag, name in OTHERS.items() if flag in sys.argv]:
        sys.path.insert(0, str(Path(__file__).parents[1]))  # one script imports parts of another as scripts.NAME
        runpy.run_path(str(Path(__file__).with_name(asked[0])), run_name="__main__")
    else:
        main()
