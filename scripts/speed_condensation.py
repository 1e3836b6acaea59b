"""How fast condensation is, and how much faster than the same arithmetic done the usual way. Prints JSON.

    python scripts/speed.py --condensation
    python scripts/speed.py --condensation --methods dm,dc --ipc 1,10 --precision 32 --repeats 5

One case is a method of `METHODS` at so many images a class: ConvNet-3-128, random images in Fashion-MNIST's domain (as
many as it has; no data are read). Its variants, `usual` and `ours_PRECISION`, run in one process and take
turns, and every ratio is the median of the ratios within a turn.

    iteration_ms, speedup          wall clock: medians over the turns, and ratios usual / ours
    cpu_ms, cpu_speedup            the same by processor time, which other programs disturb less
    difference                     of ours from the usual way, as |ours - usual| / |usual|, after one iteration from the
                                   same set, networks and random numbers: the loss and the images' gradient; for
                                   evaluate the loss on the set, and the way that the weights have gone. About 1e-6 in
                                   float32; up to 1e-2 where rounding puts a ReLU's input on the other side of zero,
                                   which happens by chance, and to the usual way without oneDNN too
    peak_memory_mb                 largest resident memory (10^6 bytes) of a process that runs this variant alone, two
                                   iterations, libraries and images included; start_memory_mb is that before the first
    unrolled                       mtt: peak_memory_mb by unrolled steps. rise_mb is the last less the first, copies_mb
                                   what one copy of the parameters for each further step takes

An iteration is a step of the set, and for evaluate NETWORKS networks, of which each makes STEPS of the protocol's 1,000
steps and is tested on as small a part of 10,000 images. DESCRIPTION says what the usual way is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from datafree import losses
from datafree.condensation.dc import DC
from datafree.condensation.dm import DM
from datafree.condensation.experts import Recipe, record
from datafree.condensation.initial import initial_images
from datafree.condensation.loop import ImageTrainer
from datafree.condensation.mtt import MTT
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.condensation.unrolling import flat, inner_loss, pieces
from datafree.config import CondenseConfig
from datafree.data import Data
from datafree.data.augmentation import apply, draw, parse_augmentation
from datafree.data.tensors import to_float
from datafree.domain import DOMAINS, Domain
from datafree.evaluation.accuracy import evaluate
from datafree.evaluation.networks import forward_of, train_networks
from datafree.evaluation.protocols import PROTOCOLS, Protocol
from datafree.fields import replace
from datafree.jobs.condense_planning import condense_plan, make_setting
from datafree.models import build_model
from datafree.models.convnet import ConvNet
from datafree.runs import peak_rss_mb
from datafree.teacher import Normalised, split_entry
from datafree.training import Clock

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts find one another as scripts.NAME
from scripts import timing
from scripts.timing import PROCESSOR, WALL

DOMAIN = DOMAINS["fashion-mnist"]
IMAGES = 60_000
METHODS = {"dm": 10, "dc": 1, "evaluate": 10, "mtt": 1}  # with the images a class where nothing else is asked for
NETWORKS, STEPS = 5, 5
UNROLLED = (10, 50)
DESCRIPTION = (
    "usual: torch's modules in float32, contiguous (NCHW). dm and dc: a fresh network each step, class after class, "
    "real images and synthetic ones each in one batch; the set's gradient is taken once, at the end, and not for the "
    "networks' weights. mtt: one graph through all steps. evaluate: network after network, whole batches. Ours, as "
    "`datafree condense` and `datafree evaluate` run it. Augmentation (each method's own), draws and the optimisers "
    "are the same. dc has one match a network (--outer 1) at any number of images: what it trains between two matches "
    "is what evaluate measures. mtt's expert is recorded beforehand, on few images."
)


class UsualDM(DM):
    """Mean embeddings, class by class."""

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, network = self.setting, plain_network(self.setting).requires_grad_(False)
        front, inner = split_entry(network)
        assert isinstance(inner, ConvNet)
        distances = []
        for label in range(setting.domain.classes):
            real = setting.real.of_class(label, self.config.real_batch, setting.rng)
            batches = setting.augment_alike(real, synthetic.of_class(label))
            theirs, ours = (inner.features(front(batch)).flatten(1).mean(0) for batch in batches)
            distances.append((theirs - ours).square().sum())
        return {"mean": torch.stack(distances).sum()}


class UsualDC(DC):
    """Gradients of all parameters, class by class, and a double backward pass through torch's graph."""

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        setting, network = self.setting, plain_network(self.setting)
        parameters, distances = list(network.parameters()), []
        for label in range(setting.domain.classes):
            real = setting.real.of_class(label, self.config.real_batch, setting.rng)
            real, made = setting.augment_alike(real, synthetic.of_class(label))
            target = torch.autograd.grad(class_loss(network, real, label), parameters)
            gradient = torch.autograd.grad(class_loss(network, made, label), parameters, create_graph=True)
            distances.append(losses.gradient_distance(target, gradient, self.config.metric))
        return {"match": torch.stack(distances).sum()}


class UsualMTT(MTT):
    """One graph through all steps."""

    def terms(self, synthetic: Synthetic) -> dict[str, Tensor]:
        images, labels, rate = synthetic.decoded(), synthetic.targets(), synthetic.rate
        most = 1 / rate.detach()  # ours bounds the rate's gradient alike
        rate.register_hook(lambda gradient: gradient.clamp(-most, most))  # type: ignore[no-untyped-call]
        expert, start = self._draw(self.experts.count), self._draw(*self.starts())
        batches = self._batches(images)
        begin, end = self.experts.at(expert, start, start + self.config.expert_span, device=images.device)
        names, like = zip(*self.network.named_parameters(), strict=True)
        here = begin.to(images.dtype, copy=True).requires_grad_()
        for batch in batches:
            seen, wanted = batch(images, labels)
            logits = functional_call(self.network, dict(zip(names, pieces(here, like), strict=True)), (seen,))
            (gradient,) = torch.autograd.grad(inner_loss(logits, wanted), here, create_graph=True)
            here = here - rate * gradient
        return {"trajectory": losses.normalised_distance(here, end, begin)}


OURS: dict[str, Any] = {"dm": DM, "dc": DC, "mtt": MTT}
USUAL: dict[str, Any] = {"dm": UsualDM, "dc": UsualDC, "mtt": UsualMTT}


def plain_network(setting: Setting) -> nn.Module:
    return setting.new_network().to(memory_format=torch.contiguous_format)


def class_loss(network: nn.Module, images: Tensor, label: int) -> Tensor:
    return F.cross_entropy(network(images), torch.full((len(images),), label, device=images.device))


class Condensation:
    """A method with the set that it learns, as `datafree condense` runs them, or with its terms the usual way.

    Args:
        method: "dm", "dc" or "mtt".
        variant: "usual", or "ours_PRECISION".
        folder: where mtt's expert is recorded, or stands.
        ipc: images a class.
        real_batch: real images a class and step.
        images: how many real images there are.
        domain: of what they are.
        inner_steps: unrolled steps of mtt.
        device: where it runs.
    """

    def __init__(
        self,
        method: str,
        variant: str,
        folder: Path,
        *,
        ipc: int,
        real_batch: int = 64,
        images: int = IMAGES,
        domain: Domain = DOMAIN,
        inner_steps: int = UNROLLED[0],
        device: str = "cpu",
    ) -> None:
        precision = variant.removeprefix("ours_") if variant != "usual" else "32"
        config = replace(CondenseConfig(), {"method": method, "ipc": ipc, "precision": precision, "steps": 10**9})
        options = {
            "dm": {"real_batch": real_batch},
            "dc": {"real_batch": real_batch, "outer": 1},
            "mtt": {"inner_steps": inner_steps},
        }
        (x, y), (x_test, y_test) = noise(domain, images, 0)
        data = Data(domain=domain, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        plan = condense_plan(config, options[method], torch.device(device), data)
        self.setting = make_setting(plan, Clock(steps=10**9), lambda _: None, lambda: False)
        first, labels = initial_images(self.setting, plan.counts, "real", 1)
        rate = getattr(plan.method_config, "rate", None)
        self.synthetic = Synthetic(first, labels, learning_rate=rate)
        self.trainer = ImageTrainer(self.synthetic, plan.config)
        own = plan.method_config
        if method == "mtt":
            # One expert for all variants, recorded in float32 on small batches, which do not set the memory's peak. Its
            # records are as far apart as a run's.
            plain = dataclasses.replace(self.setting, cast=nullcontext)
            record(plain, Recipe(count=1, steps=60, every=20, batch_size=8), folder)
            own = dataclasses.replace(own, expert_folder=str(folder))
        self.objective: DM | DC | MTT = (USUAL if variant == "usual" else OURS)[method](self.setting, own)

    def iterate(self) -> None:
        self.trainer.step(self.objective.terms(self.synthetic), 0.0)
        self.objective.advance(self.synthetic)

    def look(self) -> dict[str, Tensor]:
        """Loss and image gradient of one iteration, which is then made."""
        torch.manual_seed(1)
        self.setting.rng.manual_seed(1)
        terms = self.objective.terms(self.synthetic)
        loss = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(loss, [self.synthetic.images], retain_graph=True)
        self.trainer.step(terms, 0.0)
        self.objective.advance(self.synthetic)
        return {"loss": loss.detach(), "image_gradient": gradient}


class Evaluation:
    """Networks trained on a set by the default protocol and tested. Arguments as `Condensation`.

    Args:
        steps: of a network, of the protocol's 1,000.
    """

    def __init__(
        self,
        variant: str,
        *,
        ipc: int,
        domain: Domain = DOMAIN,
        networks: int = NETWORKS,
        steps: int = STEPS,
        device: str = "cpu",
    ) -> None:
        full = PROTOCOLS["default"]
        assert full.steps is not None
        self.domain, self.usual, self.precision = domain, variant == "usual", variant.removeprefix("ours_")
        self.protocol = dataclasses.replace(full, networks=networks, steps=steps)
        tested = 10_000 * steps // full.steps
        (images, labels), (x, y) = noise(domain, ipc * domain.classes, tested)
        self.images, self.labels = images.to(device), labels.to(device)
        self.test = (x.to(device), y.to(device))
        self.rng = torch.Generator().manual_seed(0)

    def make(self) -> nn.Module:
        network = build_model("convnet3", shape=self.domain.shape, classes=self.domain.classes)
        return Normalised(network, self.domain.mean, self.domain.std).to(self.images.device)

    def train(self) -> list[nn.Module]:
        if self.usual:
            return usual_networks(self.make, self.images, self.labels, self.protocol, self.domain, self.rng)
        return train_networks(
            self.make, self.images, self.labels, self.protocol, self.domain, self.rng, precision=self.precision
        )

    def iterate(self) -> None:
        for network in self.train():
            evaluate(network if self.usual else forward_of(network, self.precision), *self.test)

    def look(self) -> dict[str, Tensor]:
        """The trained networks' loss on the set, and how their weights have moved."""
        seeds = torch.randint(2**62, (self.protocol.networks,), generator=self.rng.manual_seed(1)).tolist()
        self.rng.manual_seed(1)
        found, moves = [], []
        for seed, network in zip(seeds, self.train(), strict=True):
            torch.manual_seed(seed)
            start = self.make()
            moves.append(flat(list(network.parameters())).detach() - flat(list(start.parameters())).detach())
            with torch.no_grad():
                found.append(F.cross_entropy(network(to_float(self.images)), self.labels))
        return {"loss": torch.stack(found), "way_of_the_weights": torch.stack(moves)}


def usual_networks(
    make: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    domain: Domain,
    generator: torch.Generator,
) -> list[nn.Module]:
    """What `train_networks` trains by the default protocol, in a plain loop with the same random numbers."""
    augmentation = parse_augmentation(
        protocol.augmentation, mode=protocol.mode, flip=domain.flip, mean=domain.mean, std=domain.std
    )
    networks = []
    for seed in torch.randint(2**62, (protocol.networks,), generator=generator).tolist():
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        network = make()
        sgd = torch.optim.SGD(network.parameters(), protocol.lr, protocol.momentum, weight_decay=protocol.weight_decay)
        for epoch in range(protocol.passes(len(images))):
            sgd.param_groups[0]["lr"] = protocol.lr * protocol.rate(epoch, len(images))
            for rows in torch.split(torch.randperm(len(images), generator=rng), protocol.batch_size):
                batch = apply(to_float(images[rows]), draw(augmentation, len(rows), rng), augmentation)
                sgd.zero_grad()
                torch.autograd.backward(F.cross_entropy(network(batch), labels[rows]))
                sgd.step()
        networks.append(network.eval())
    return networks


def noise(domain: Domain, *counts: int) -> list[tuple[Tensor, Tensor]]:
    """Sets of so many images (N, C, H, W), uint8, with labels in turn."""
    rng = torch.Generator().manual_seed(0)
    sets = [torch.randint(256, (count, *domain.shape), dtype=torch.uint8, generator=rng) for count in counts]
    return [(images, torch.arange(len(images)) % domain.classes) for images in sets]


def make_case(method: str, variant: str, folder: Path, **sizes: Any) -> Condensation | Evaluation:
    if method == "evaluate":
        return Evaluation(
            variant, **{name: size for name, size in sizes.items() if name not in ("real_batch", "images")}
        )
    return Condensation(method, variant, folder, **sizes)


def compare(method: str, precisions: Sequence[str], *, repeats: int, **sizes: Any) -> dict[str, Any]:
    """The variants of a method in turns. The looks at their differences warm them up."""
    ours = timing.ours(precisions)
    with tempfile.TemporaryDirectory() as folder:
        variants = {name: make_case(method, name, Path(folder), **sizes) for name in ("usual", *ours)}
        looks = {name: variant.look() for name, variant in variants.items()}
        turns = timing.take_turns({name: variant.iterate for name, variant in variants.items()}, repeats)
    return {
        "iteration_ms": timing.medians(turns, WALL),
        "speedup": timing.ratios(turns, "usual", WALL),
        "cpu_ms": timing.medians(turns, PROCESSOR),
        "cpu_speedup": timing.ratios(turns, "usual", PROCESSOR),
        "difference": {name: distances(looks[name], looks["usual"]) for name in ours},
    }


def distances(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """|found - wanted| / |wanted| by name."""
    return {name: float((found[name] - tensor).norm() / tensor.norm()) for name, tensor in wanted.items()}


def memory(method: str, variant: str, **sizes: Any) -> dict[str, float]:
    """Largest resident memory of this process, before and after two iterations, MB."""
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(method, variant, Path(folder), **sizes)
        start = peak_rss_mb()
        for _ in range(2):
            case.iterate()
    return {"start": start, "peak": peak_rss_mb()}


def in_process(**case: Any) -> dict[str, Any]:
    """What a child process measures."""
    return memory(**case) if "variant" in case else compare(**case)


def measure(
    method: str, ipc: int, precisions: Sequence[str], repeats: int, sizes: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    """All of a case, from processes of their own."""
    case = {"method": method, "ipc": ipc, **sizes}
    measured = partial(timing.in_child, __file__, threads=threads)
    compared = measured({"precisions": list(precisions), "repeats": repeats, **case})

    def memories(**more: int) -> dict[str, dict[str, float]]:
        return {name: measured({"variant": name, **case, **more}) for name in ("usual", *timing.ours(precisions))}

    few = memories()
    result = {
        "method": method,
        "ipc": ipc,
        **compared,
        "start_memory_mb": {name: held["start"] for name, held in few.items()},
        "peak_memory_mb": peaks(few),
    }
    if method == "mtt":
        result["unrolled"] = unrolled(peaks(few), peaks(memories(inner_steps=UNROLLED[1])))
    return result


def peaks(memories: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: held["peak"] for name, held in memories.items()}


def unrolled(few: dict[str, float], many: dict[str, float]) -> dict[str, Any]:
    """How the variants' peaks rise from few unrolled steps to many."""
    network = build_model("convnet3", shape=DOMAIN.shape, classes=DOMAIN.classes)
    copy_mb = sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6
    return {
        "peak_memory_mb": dict(zip(UNROLLED, (few, many), strict=True)),
        "rise_mb": {name: round(many[name] - few[name], 1) for name in few},
        "copies_mb": round((UNROLLED[1] - UNROLLED[0]) * copy_mb, 1),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.common_flags(__doc__, list(METHODS), repeats=5)
    defaults = ", ".join(f"{name} {ipc}" for name, ipc in METHODS.items())
    ipc, real_batch = f"images a class, such as 1,10; default: {defaults}", "real images a class; default: %(default)s"
    parser.add_argument("--ipc", type=lambda text: [timing.count(part) for part in text.split(",")], help=ipc)
    parser.add_argument("--real-batch", type=timing.count, default=64, help=real_batch)
    parser.add_argument("--condensation", action="store_true", help="this part of speed.py")
    return parser.parse_args(arguments)


def report(args: argparse.Namespace) -> dict[str, Any]:
    sizes = {"real_batch": args.real_batch, "device": args.device}
    settings = {
        "arch": "convnet3",
        "data": f"random: {IMAGES} images in {DOMAIN.name}'s domain",
        "threads": args.threads,
        "repeats": args.repeats,
        **sizes,
        "unrolled_steps": UNROLLED[0],
        "evaluation": {"networks": NETWORKS, "steps": STEPS},
    }
    cases = [
        measure(method, ipc, args.precision, args.repeats, sizes, args.threads)
        for method in args.methods
        for ipc in args.ipc or [METHODS[method]]
    ]
    return {"settings": settings, "description": DESCRIPTION, "cases": cases}


def main(arguments: Sequence[str] | None = None) -> None:
    timing.run(parse(arguments), in_process, report)


if __name__ == "__main__":
    main()
