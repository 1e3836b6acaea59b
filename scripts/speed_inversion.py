"""How fast methods invert the teacher, and how much faster than by the same arithmetic the usual way. Prints JSON.

    python scripts/speed.py --inner
    python scripts/speed.py --inner --methods fast,cmi --pairs wrn16_1:resnet8,resnet20:resnet8 --repeats 5

A case is a method of `USUAL` with a TEACHER:STUDENT pair, both untrained, on 3x32x32 images of 10 classes.
Only the inner loop is timed: one call of the method, `--steps` steps of the generator (or of the pixels) on one batch.
The student has begun, so that the adversarial term is part of every step. All variants of a case run in one process and
take turns, and every ratio is the median of the ratios within a turn.

    step_ms, speedup           wall clock: the call's time divided by its steps, medians over the turns; usual / ours
    speedup_over_frozen        frozen / ours: what is left of it where the usual way takes no gradients of weights that
                               nobody steps
    cpu_step_ms, cpu_speedup, cpu_speedup_over_frozen    the same by processor time, which other programs disturb less
    difference                 of ours from the usual way after one step from the same weights and random numbers:
                               `terms`, the largest of |ours - usual| / |usual| (of terms below 0.001: / 0.001), and
                               `images`, the largest |ours - usual| of a pixel (deepinversion keeps what the step began
                               from)

DESCRIPTION says what the usual way is.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.data import crop_and_flip, draw_crops
from datafree.losses import Statistics
from datafree.synthesis.contrast import contrast_term
from datafree.synthesis.pixels import moved
from datafree.synthesis.views import local_view

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts find one another as scripts.NAME
from scripts import timing
from scripts.speed import DOMAIN, Ours, Textbook, textbook_statistics, watched
from scripts.timing import PROCESSOR, WALL

STEPS = 5
BETAS = (0.5, 0.999)
DESCRIPTION = (
    "usual: the same terms, weights and number of steps in float32, contiguous (NCHW); a generator that upsamples by "
    "nearest neighbours and then takes 3x3 convolutions; batch-norm statistics by mean and by var of the transposed "
    "maps; loss.item() at every step; a backward pass that computes the gradients of teacher's and student's weights "
    "too, as in the releases of fast and cmi. frozen: without those. Draws, crops, Adam and the losses' small sums "
    "are alike in all variants. deepinversion has no generator. Ours, as `datafree train` runs it."
)


class Judges:
    """Teacher and student the usual way, and the terms that they give."""

    def __init__(self, ours: Ours, *, frozen: bool) -> None:
        self.setting, self.config = ours.setting, ours.method.config
        plain, needed = torch.contiguous_format, not frozen
        self.teacher = copy.deepcopy(ours.teacher.classifier).to(memory_format=plain).requires_grad_(needed)
        self.student = copy.deepcopy(ours.student).to(memory_format=plain).requires_grad_(needed).eval()
        self.rng = torch.Generator(ours.device).set_state(ours.setting.rng.get_state())
        self.average: list[tuple[Tensor, Tensor]] = []
        self.seen: list[Statistics] = []

    def targets(self, n: int) -> Tensor:
        return torch.randint(DOMAIN.classes, (n,), generator=self.rng, device=self.rng.device)

    def view(self, images: Tensor) -> Tensor:
        """As `Setting.view` of one process."""
        pad = images.shape[-1] // 8
        return crop_and_flip(images, draw_crops(len(images), self.rng, pad=pad, flip=DOMAIN.flip), pad=pad)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, and the spatial means (N, C) of its norm layers' inputs; `seen` are the statistics."""
        seen, means = list[Statistics](), list[Tensor]()

        def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(textbook_statistics(norm, inputs[0]))
            means.append(inputs[0].mean((2, 3)))

        with watched(self.teacher, observe):
            logits: Tensor = self.teacher(images)
        self.seen = seen
        return logits, torch.cat(means, 1)

    def adversarial(self, images: Tensor, teacher: Tensor) -> Tensor:
        config = self.config
        apart = losses.disagreement(self.student(images), teacher, config.distance, config.masked)
        return apart * -float(config.adv)

    def statistics(self) -> Tensor:
        """The statistics' term, where the last batches may stand in for part of this one."""
        momentum = getattr(self.config, "bn_momentum", 0.0)
        seen = losses.mix_statistics(self.seen, self.average, momentum)
        return losses.batch_norm_statistics(seen) * float(self.config.bn)

    def remember(self) -> None:
        self.average = losses.update_average(self.average, self.seen, self.config.bn_momentum)

    def inversion(self, view: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms of fast and nayer."""
        teacher, _ = self.look(view)
        return {
            "onehot": self.config.onehot * F.cross_entropy(teacher, targets),
            "bn": self.statistics(),
            "adv": self.adversarial(view, teacher),
        }


Shown = tuple[dict[str, Tensor], tuple[Tensor, ...]]
Result = tuple[dict[str, float], Tensor]


def loop(
    steps: int,
    look: Callable[[int], Shown],
    optimizers: Sequence[torch.optim.Optimizer],
    after: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], tuple[Tensor, ...]]:
    """Steps on the sum of the terms. Returns the terms' means, and the tensors of the step with the least loss.

    Args:
        steps: how many.
        look: the terms of the step of that number, and the tensors.
        optimizers: take the steps.
        after: called when they have; the gradients are still there.
    """
    least, sums = math.inf, dict[str, float]()
    held: tuple[Tensor, ...] = ()
    for step in range(steps):
        terms, tensors = look(step)
        loss = torch.stack(list(terms.values())).sum()
        if loss.item() < least:
            least, held = loss.item(), tuple(tensor.detach() for tensor in tensors)
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        after()
        sums = {name: sums.get(name, 0.0) + term.item() for name, term in terms.items()}
    return {name: value / steps for name, value in sums.items()}, held


class UsualFast:
    """A copy of the meta-generator for every call; its gradients are added up for the meta-generator's own step."""

    def __init__(self, ours: Ours, *, frozen: bool = False) -> None:
        self.judges, self.config = Judges(ours, frozen=frozen), ours.method.config
        self.batch = ours.method.imaging.batch_size
        self.generator = textbook(ours.method.imaging.generator)
        rate = self.config.meta_lr or self.config.generator_lr * self.config.generator_steps
        self.adam = torch.optim.Adam(self.generator.parameters(), rate, betas=BETAS)

    def call(self) -> Result:
        config, judges = self.config, self.judges
        generator = copy.deepcopy(self.generator)
        z = torch.randn(self.batch, config.latent, generator=judges.rng, device=judges.rng.device).requires_grad_()
        targets = judges.targets(self.batch)
        groups = [{"params": list(generator.parameters())}, {"params": [z], "lr": config.latent_lr}]
        adam = torch.optim.Adam(groups, config.generator_lr, betas=BETAS)

        def look(_: int) -> Shown:
            images = generator(z)
            return judges.inversion(judges.view(images), targets), (images,)

        def add_gradients() -> None:
            for theta, phi in zip(self.generator.parameters(), generator.parameters(), strict=True):
                assert phi.grad is not None
                theta.grad = phi.grad.clone() if theta.grad is None else theta.grad.add_(phi.grad)

        terms, (images,) = loop(config.generator_steps, look, [adam], add_gradients)
        self.adam.step()
        self.adam.zero_grad()
        judges.remember()
        return terms, images


class UsualCMI:
    """A new generator for every call, and a second pass of the teacher for the contrast."""

    def __init__(self, ours: Ours, *, frozen: bool = False) -> None:
        self.judges, self.config = Judges(ours, frozen=frozen), ours.method.config
        self.batch = ours.method.imaging.batch_size
        self.source, self.calls = copy.deepcopy(ours.method.imaging.generator), 0
        contrast = ours.method.contrast
        self.head, self.pairs = copy.deepcopy(contrast.head), contrast.pairs.clone()
        self.head_adam = torch.optim.Adam(self.head.parameters(), self.config.generator_lr)

    def call(self) -> Result:
        config, judges = self.config, self.judges
        if self.calls:
            for module in self.source.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        self.calls += 1
        generator = textbook(self.source)
        z = torch.randn(self.batch, config.latent, generator=judges.rng, device=judges.rng.device).requires_grad_()
        targets = judges.targets(self.batch)
        adam = torch.optim.Adam([*generator.parameters(), z], config.generator_lr, betas=BETAS)

        def look(_: int) -> Shown:
            images = generator(z)
            view = judges.view(images)
            teacher, whole = judges.look(view)
            terms = {
                "onehot": config.onehot * F.cross_entropy(teacher, targets),
                "bn": judges.statistics(),
                "adv": judges.adversarial(view, teacher),
            }
            part = judges.look(local_view(images, judges.rng, flip=DOMAIN.flip).contiguous())[1]
            earlier = self.pairs[
                torch.randperm(len(self.pairs), generator=judges.rng, device=judges.rng.device)[: config.negatives]
            ]
            contrast = contrast_term(self.head, part, whole, earlier, config.contrast_temperature)
            return {**terms, "contrast": config.contrast * contrast}, (images, part, whole)

        terms, (images, part, whole) = loop(config.generator_steps, look, [adam, self.head_adam])
        self.pairs = torch.cat([self.pairs, torch.stack([part, whole], 1)])[-config.contrast_bank :]
        return terms, images


class UsualNAYER:
    """New noisy layers, with a new Adam, for every call. That a generator is made anew every 20 calls is left out."""

    def __init__(self, ours: Ours, *, frozen: bool = False) -> None:
        self.judges, self.config = Judges(ours, frozen=frozen), ours.method.config
        self.batch = ours.method.imaging.batch_size
        self.generator = copy.deepcopy(ours.method.imaging.generator)
        self.generator.generator = textbook(self.generator.generator)

    def call(self) -> Result:
        config, judges, generator = self.config, self.judges, self.generator
        generator.noise.reset_parameters()
        adam = torch.optim.Adam(generator.parameters(), config.generator_lr, betas=BETAS)
        whole = self.batch // DOMAIN.classes * DOMAIN.classes
        rest = torch.randperm(DOMAIN.classes, generator=judges.rng, device=judges.rng.device)[: self.batch - whole]
        targets = torch.cat([torch.arange(whole, device=judges.rng.device) % DOMAIN.classes, rest])

        def look(_: int) -> Shown:
            images = generator(targets)
            return judges.inversion(judges.view(images), targets), (images,)

        terms, (images,) = loop(config.generator_steps, look, [adam])
        judges.remember()
        return terms, images


class UsualDeepInversion:
    """The pixels of one batch a call."""

    def __init__(self, ours: Ours, *, frozen: bool = False) -> None:
        self.judges, self.config = Judges(ours, frozen=frozen), ours.method.config
        self.method = ours.method

    def call(self) -> Result:
        config, judges, space = self.config, self.judges, self.method.space
        targets = judges.targets(self.method.batch_size)
        drawn = torch.randn(len(targets), *DOMAIN.shape, generator=judges.rng, device=judges.rng.device)
        pixels = space.clip(drawn).requires_grad_()
        adam = torch.optim.Adam([pixels], config.pixel_lr, betas=config.pixel_betas)

        def look(step: int) -> Shown:
            adam.param_groups[0]["lr"] = self.method.descent.rate(step / config.pixel_steps)
            view = moved(pixels, judges.rng, self.method.jitter, flip=DOMAIN.flip)
            images = view * space.std + space.mean
            teacher, _ = judges.look(images)
            divergence = losses.js_per_sample(judges.student(images), teacher, 3.0).mean()
            terms = {
                "onehot": config.onehot * F.cross_entropy(teacher, targets),
                "bn": judges.statistics(),
                "adv": config.adv * (1 - divergence),
                "tv_l2": config.tv_l2 * losses.total_variation(view, "l2"),
            }
            return terms, (pixels.clone(), *terms.values())

        def clip() -> None:
            with torch.no_grad():
                pixels.copy_(space.clip(pixels))

        means, (best, *values) = loop(config.pixel_steps, look, [adam], clip)
        return dict(zip(means, map(float, values), strict=True)), space.images(best)


USUAL: dict[str, Any] = {
    "fast": UsualFast,
    "cmi": UsualCMI,
    "nayer": UsualNAYER,
    "deepinversion": UsualDeepInversion,
}


def textbook(generator: nn.Module) -> Textbook:
    """The same generator the usual way, with copies of the weights."""
    return Textbook(copy.deepcopy(generator)).to(memory_format=torch.contiguous_format)  # type: ignore[arg-type]


def make(method: str, pair: tuple[str, str], *, width: int, steps: int, **options: Any) -> Ours:
    return Ours(method, pair, generator_width=width, generator_steps=steps, pixel_steps=steps, **options)


def compare(
    method: str, pair: tuple[str, str], precisions: Sequence[str], *, repeats: int, steps: int, **sizes: Any
) -> dict[str, Any]:
    """Calls of one method in turns: the usual way, frozen, and ours."""
    ours = timing.ours(precisions)
    calls: dict[str, Callable[[], object]] = {
        "usual": USUAL[method](make(method, pair, steps=steps, **sizes)).call,
        "frozen": USUAL[method](make(method, pair, steps=steps, **sizes), frozen=True).call,
    }
    for name, precision in ours.items():
        calls[name] = partial(make(method, pair, steps=steps, **sizes).update, precision)
    for call in calls.values():
        call()
    turns = timing.take_turns(calls, repeats)
    return {
        "method": method,
        "teacher": pair[0],
        "student": pair[1],
        "step_ms": timing.medians(turns, WALL, steps),
        "speedup": timing.ratios(turns, "usual", WALL),
        "speedup_over_frozen": timing.ratios(turns, "frozen", WALL),
        "cpu_step_ms": timing.medians(turns, PROCESSOR, steps),
        "cpu_speedup": timing.ratios(turns, "usual", PROCESSOR),
        "cpu_speedup_over_frozen": timing.ratios(turns, "frozen", PROCESSOR),
        "difference": {name: difference(method, pair, precision, **sizes) for name, precision in ours.items()},
    }


def difference(method: str, pair: tuple[str, str], precision: str, **sizes: Any) -> dict[str, float]:
    """How far ours is from the usual way after one step from the same weights and random numbers."""
    ours = make(method, pair, steps=1, **sizes)
    usual = USUAL[method](ours)
    torch.manual_seed(1)
    theirs, images = usual.call()
    torch.manual_seed(1)
    mine = ours.update(precision)
    return {
        "terms": farthest(mine, theirs),
        "images": float((ours.method.store.last.float() - images).abs().max()),
    }


def farthest(mine: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """The largest relative difference of a term."""
    assert mine.keys() == theirs.keys(), (mine, theirs)
    return max(abs(mine[name] - value) / max(abs(value), 1e-3) for name, value in theirs.items())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.common_flags(__doc__, list(USUAL), repeats=9)
    timing.pair_flags(parser)
    parser.add_argument("--steps", type=timing.count, default=STEPS, help="inner steps a call; default: %(default)s")
    parser.add_argument("--inner", action="store_true", help="this part of speed.py")
    return parser.parse_args(arguments)


def report(args: argparse.Namespace) -> dict[str, Any]:
    common = {"batch": args.batch, "width": args.width, "steps": args.steps, "repeats": args.repeats}
    common["device"] = args.device
    cases = [
        {"method": method, "pair": pair, "precisions": args.precision, **common}
        for pair in args.pairs
        for method in args.methods
    ]
    return {
        "settings": {"shape": DOMAIN.shape, "threads": args.threads, **common},
        "description": DESCRIPTION,
        "cases": [timing.in_child(__file__, case, args.threads) for case in cases],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    timing.run(parse(arguments), compare, report)


if __name__ == "__main__":
    main()
