"""How fast the methods are, and how much faster than the same arithmetic done the usual way. Prints JSON.

    python scripts/speed.py                  one step of every data-free method; with --baseline dfq the usual way too
    python scripts/speed.py --inner          inner loops of fast, cmi, nayer, deepinversion beside the usual way
    python scripts/speed.py --condensation   dm, dc, mtt and the evaluation of a set beside the usual way

A call runs one of these parts. All take --methods, --precision, --repeats and --threads; --inner --help and
--condensation --help show what else theirs take and what they print (speed_inversion.py, speed_condensation.py).
The first part, for instance:

    python scripts/speed.py --methods dfq,dafl --pairs wrn16_1:resnet8,resnet20:resnet8 --precision 32,bf16
    python scripts/speed.py --methods dfq --baseline

A pair is TEACHER:STUDENT, both untrained, on 3x32x32 images with 10 classes. Every case has a fresh
process, so that its peak memory is its own. Times are milliseconds, medians over the repeats after a warm-up:

    generator_step_ms   one step of the generator, with its share of the round; null where a method has no generator
    pixel_step_ms       one step on a batch of pixels, likewise; null where a method has no such steps
    student_step_ms     one step of the student: images, teacher, student, optimiser
    image_ms            a round (at the method's own numbers of steps) divided by the images that the student saw in it
    cpu                 the same by processor time, which other programs disturb less
    peak_device_mb      on a GPU, the largest memory that tensors took there
    peak_memory_mb      largest resident memory of the process, libraries included (10^6 bytes)

--baseline times rounds of dfq (one generator step, five student steps) beside the usual way, which stands in this
file. All variants run in one process and take turns, and every ratio is the median of the ratios within a turn, so that
a machine whose speed wavers does not spoil them.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.config import TrainConfig
from datafree.distillation import Alternation
from datafree.domain import DOMAINS
from datafree.generators.convolutional import Generator
from datafree.jobs.machine import autocast
from datafree.losses import CRITERIA, Statistics
from datafree.models import build_model
from datafree.runs import peak_rss_mb
from datafree.synthesis import METHODS, load_method
from datafree.synthesis.setting import Setting
from datafree.teacher import Normalised, Teacher
from datafree.training import Clock, Trainer

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts find one another as scripts.NAME
from scripts import timing
from scripts.timing import PROCESSOR, WALL

DOMAIN = DOMAINS["cifar10"]
STUDENT_STEPS = 5  # of the compared round; it has one generator step
PARTS = {"--inner": "speed_inversion", "--condensation": "speed_condensation"}  # flag -> the script that runs instead
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


@contextmanager
def watched(teacher: nn.Module, observe: Callable[[nn.Module, tuple[Tensor, ...]], None]) -> Iterator[None]:
    """Inside, `observe` sees every batch norm and its inputs before it acts."""
    norms = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Ours:
    """A method with its student, as `datafree train` runs them."""

    def __init__(
        self,
        method: str,
        pair: tuple[str, str],
        *,
        batch: int,
        device: str = "cpu",
        augmented: bool | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        teacher, student = (build_model(name, shape=DOMAIN.shape, classes=DOMAIN.classes) for name in pair)
        self.teacher = Teacher(teacher, DOMAIN.mean, DOMAIN.std)
        self.teacher.classifier.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.student = Normalised(student, DOMAIN.mean, DOMAIN.std)
        self.student.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.setting = setting = Setting(
            teacher=self.teacher,
            student=self.student,
            domain=DOMAIN,
            batch_size=batch,
            rng=torch.Generator(self.device).manual_seed(0),
            device=self.device,
        )
        kind = load_method(method)
        known = {field.name for field in dataclasses.fields(kind.Config)}
        options = {"warmup": 0, **options}
        self.method = kind(setting, kind.Config(**{k: v for k, v in options.items() if k in known}))
        chosen = kind.STUDENT
        optimizer, decay, clip = chosen["optimizer"], chosen["weight_decay"], chosen.get("gradient_clip")
        config = TrainConfig(optimizer=optimizer, lr=LR, weight_decay=decay, gradient_clip=clip)
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
        with autocast(self.device, precision)():
            terms: Mapping[str, float] = self.method.update()
        return terms

    def student_step(self, precision: str) -> None:
        with autocast(self.device, precision)():
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
        self.rng = torch.Generator(ours.device).manual_seed(0)
        self.adam = torch.optim.Adam(self.generator.parameters(), lr=self.config.generator_lr, betas=(0.5, 0.999))
        group = ours.trainer.optimizer.param_groups[0]
        names = ("lr", "momentum", "weight_decay", "nesterov")
        self.sgd = torch.optim.SGD(self.student.parameters(), **{name: group[name] for name in names})
        self.criterion, self.temperature = CRITERIA[ours.criterion], ours.temperature

    def images(self) -> Tensor:
        self.generator.train()
        images: Tensor = self.generator(
            torch.randn(self.batch, self.latent, generator=self.rng, device=self.rng.device)
        )
        return images

    def update(self) -> tuple[dict[str, float], Tensor]:
        """One generator step: its terms and its images."""
        config, images, seen = self.config, self.images(), list[Statistics]()

        def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(textbook_statistics(norm, inputs[0]))

        with watched(self.teacher, observe):
            teacher = self.teacher(images)
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


def measure_case(
    method: str, pair: tuple[str, str], precision: str, *, width: int, repeats: int, **sizes: Any
) -> dict[str, Any]:
    """Times and memory of one method, by the method's own defaults but for the generator's width."""
    ours = Ours(method, pair, generator_width=width, **sizes)
    ours.update(precision)
    ours.student_step(precision)
    turns = timing.take_turns(
        {"update": lambda: ours.update(precision), "step": lambda: ours.student_step(precision)}, repeats
    )
    wall, cpu = (
        parts(ours.method, timing.median(turns, "update", clock), timing.median(turns, "step", clock), sizes["batch"])
        for clock in (WALL, PROCESSOR)
    )
    case = {"method": method, "teacher": pair[0], "student": pair[1], "precision": precision}
    return {**case, **wall, "cpu": cpu, "peak_memory_mb": peak_rss_mb(), **timing.peak_device_mb()}


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
    pair: tuple[str, str], precisions: Sequence[str], *, width: int, repeats: int, **sizes: Any
) -> dict[str, Any]:
    """Rounds of dfq, ours and the usual way in turns."""

    def make() -> Ours:
        options: dict[str, Any] = {"generator_width": width, "generator_steps": 1, "student_steps": STUDENT_STEPS}
        return Ours("dfq", pair, augmented=False, **options, **sizes)

    fresh, kept = Usual(make()), Usual(make())
    difference = differences(make())
    rounds: dict[str, Callable[[], None]] = {
        "usual": partial(usual_round, fresh, kept=False),
        "usual_kept": partial(usual_round, kept, kept=True),
        **{name: partial(our_round, make(), precision) for name, precision in timing.ours(precisions).items()},
    }
    for act in rounds.values():
        act()
    turns = timing.take_turns(rounds, repeats)
    return {
        "teacher": pair[0],
        "student": pair[1],
        "round_ms": timing.medians(turns, WALL),
        "speedup": timing.ratios(turns, "usual", WALL, digits=3),
        "speedup_over_kept": timing.ratios(turns, "usual_kept", WALL, digits=3),
        "difference": difference,
    }


def our_round(ours: Ours, precision: str) -> None:
    ours.update(precision)
    for _ in range(STUDENT_STEPS):
        ours.student_step(precision)


def usual_round(usual: Usual, *, kept: bool) -> None:
    """Shows the student the generator step's images where they are kept, else new ones at every step."""
    _, images = usual.update()
    for _ in range(STUDENT_STEPS):
        usual.student_step(images if kept else None)


def differences(ours: Ours) -> dict[str, float]:
    """How far ours and the usual way are apart in float32, from the same weights and latents.

    `images` and `terms` (relative) are those of the first generator step. `images_after_step` are those of other
    latents once both generators have made it, `moved_by_step` is how far the step itself took them. Adam divides by the
    gradient's size, so that where a gradient is all rounding, the step is of full length in a direction of chance.
    """
    usual = Usual(ours)
    z = torch.randn(8, usual.latent, generator=torch.Generator().manual_seed(1)).to(ours.device)
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


def add_parts(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    group = parser.add_mutually_exclusive_group()
    for flag, script in PARTS.items():
        about = f"instead: {script}.py; its flags: {flag} --help"
        group.add_argument(flag, dest="part", action="store_const", const=script, help=about)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = add_parts(timing.common_flags(__doc__, list(METHODS), repeats=9))
    timing.pair_flags(parser)
    parser.add_argument("--baseline", action="store_true", help="also time the usual way and print the ratios")
    return parser.parse_args(arguments)


def measure(**case: Any) -> dict[str, Any]:
    return measure_case(**case) if "method" in case else compare(**case)


def report(args: argparse.Namespace) -> dict[str, Any]:
    common = {"batch": args.batch, "width": args.width, "repeats": args.repeats, "device": args.device}
    measured = partial(timing.in_child, __file__, threads=args.threads)
    cases = [
        measured({"method": method, "pair": pair, "precision": precision, **common})
        for pair in args.pairs
        for method in args.methods
        for precision in args.precision
    ]
    found = {"settings": {"shape": DOMAIN.shape, "threads": args.threads, **common}, "cases": cases}
    if not args.baseline:
        return found
    compared = [measured({"pair": pair, "precisions": args.precision, **common}) for pair in args.pairs]
    return {**found, "baseline": {"description": DESCRIPTION, "comparisons": compared}}


def main(arguments: Sequence[str] | None = None) -> None:
    part = add_parts(argparse.ArgumentParser(add_help=False)).parse_known_args(arguments)[0].part
    if part is not None:
        importlib.import_module(f"scripts.{part}").main(arguments)
    else:
        timing.run(parse(arguments), measure, report)


if __name__ == "__main__":
    main()
