"""From what a person asked for to what will be run: every default resolved, every choice said in a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from datafree.config import TrainConfig
from datafree.data import Data, data_domain, load_data, validation_split
from datafree.data.condensed import CondensedSet
from datafree.data.domains import mirrored
from datafree.data.sources import split_name
from datafree.distillation.attention import check_maps
from datafree.distillation.sources import CondensedImages, Mixed, RealImages
from datafree.domain import DOMAINS, Domain, parse_shape
from datafree.evaluation.cost import activation_bytes, multiply_adds, parameters
from datafree.fields import fields_of
from datafree.idle import METHOD, idle_beside
from datafree.jobs.beginnings import (
    BLACK_BOX,
    absolute_source,
    check_black_box,
    check_condensed,
    inherit,
    student_defaults,
    student_source,
    training_data,
)
from datafree.jobs.filling import (
    WITHOUT_NORM,
    cut_short,
    fill_optimisation,
    fit_bank,
    fit_terms,
    method_options,
    preset_values,
    under_preset,
)
from datafree.jobs.loading import LoadedTeacher, load_teacher
from datafree.jobs.paths import absolute, absolute_data
from datafree.jobs.same_data import left_out
from datafree.models import build_model, next_smaller, smaller_of_family
from datafree.models.build import check_logits, one_line
from datafree.parallel import world_size
from datafree.synthesis import load_method
from datafree.synthesis.embeddings import WORDS
from datafree.synthesis.setting import Setting
from datafree.training import EPOCH_STEPS, Clock, make_clock

# Where no length is given: the embedded digits job is short, any other takes half an hour of wall clock.
EMBEDDED_LENGTH = {"steps": 1000}
USUAL_LENGTH = {"budget": "30m"}
# Networks from memory by the option that they stand for: teacher, arch, student.
Networks = Mapping[str, nn.Module]
WITHOUT_LOGITS = "; where there are none, take --method blackbox --probabilities"
# What stands in a method's place, by the name that messages give it.
INSTEAD: Mapping[type[Any], str] = {CondensedImages: "condensed", RealImages: "real"}


@dataclass(kw_only=True)
class Plan:
    """A resolved run. `config` has no field left open that the run depends on."""

    config: TrainConfig
    method: type[Any]
    method_config: Any
    condensed: CondensedSet | None
    real: Data | None
    prior: torch.Tensor | None
    set_by_user: tuple[str, ...]
    teacher: LoadedTeacher
    domain: Domain
    network: nn.Module
    test: Data | None
    device: torch.device
    choices: list[str]
    warnings: list[str]

    def clock(self) -> Clock:
        return make_clock(self.config, EPOCH_STEPS)

    @property
    def made_by(self) -> str:
        """Where the student's images come from, for the result."""
        if self.method is RealImages:
            return "real data"
        if self.condensed is None:
            return self.config.method
        return "condensed" if self.method is CondensedImages else f"condensed+{self.config.method}"

    def setting(self, student: nn.Module, rng: torch.Generator) -> Setting:
        """What the method is given."""
        assert self.config.batch_size is not None
        return Setting(
            teacher=self.teacher.teacher,
            student=student,
            domain=self.domain,
            batch_size=self.config.batch_size,
            rng=rng,
            device=self.device,
            prior=self.prior,
        )

    def build_method(self, setting: Setting) -> Any:
        """The method, the condensed set or real data in its place, or method and set."""
        if self.real is not None:
            assert self.real.x_train is not None
            return RealImages(setting, self.real.x_train)
        if self.condensed is None:
            return self.method(setting, self.method_config)
        images = CondensedImages(setting, self.condensed, cropped=bool(self.config.augment))
        if self.method is CondensedImages:
            return images
        return Mixed(self.method(setting, self.method_config), images)


def make_plan(
    config: TrainConfig,
    options: Mapping[str, Any],
    device: torch.device,
    *,
    networks: Networks = MappingProxyType({}),
    embedded_teacher: str | None = None,
) -> Plan:
    """Loads the teacher and resolves everything that was left open.

    Args:
        config: what a person asked for.
        options: the method's own hyper-parameters.
        device: where it runs.
        networks: those that `config` names "memory:...".
        embedded_teacher: the file to take where no teacher is named.

    Raises:
        ValueError: one line that says what to do.
    """
    set_by_user = tuple(f.name for f in fields_of(TrainConfig) if getattr(config, f.name) != f.default) + tuple(options)
    choices: list[str] = []
    config, method, condensed = student_source(config, choices)
    if config.teacher is None:
        _check_embedded(config)
    asked = config
    preset = preset_values(config, method)
    config, own = under_preset(config, method, preset)
    check_black_box(config, method)
    method_config = method_options(INSTEAD.get(method, config.method), method, options, preset=own)
    embedded = config.teacher is None
    source = embedded_teacher if config.teacher is None else config.teacher
    assert source is not None
    teacher = load_teacher(
        networks.get("teacher", source),
        arch=networks.get("arch", config.arch),
        data="digits" if embedded else config.data,
        shape=parse_shape(config.shape) if config.shape else None,
        classes=config.classes,
        mean=config.mean,
        std=config.std,
        download=config.download,
        device=device,
    )
    domain = _mirrored(teacher.domain, config.flip)
    choices += [] if embedded else list(teacher.choices)
    warnings: list[str] = []
    if condensed is not None:
        warnings += check_condensed(condensed, domain, str(config.source))
    student, size = config.student, parameters(teacher.teacher.network)
    if student is None:
        student = next_smaller(teacher.loaded.arch, domain.shape, classes=domain.classes, than=size)
    network = build_model(networks.get("student", student), shape=domain.shape, classes=domain.classes)
    if config.student is None:
        why = "the next smaller network"
        if student != smaller_of_family(teacher.loaded.arch):
            why = f"a small network of ours, with {100 * parameters(network) / size:.2g}% of the teacher's parameters"
        choices.append(f"student: {student} ({why}; --student names another)")
    defaults = student_defaults(config, method)
    normless = not any("Norm" in type(m).__name__ for m in network.modules())
    if config.optimizer is None and defaults["optimizer"] == "sgd" and normless:
        defaults |= WITHOUT_NORM
        choices.append("optimiser: adam (the student has no normalisation layers, which the usual rates of sgd need)")
    length = EMBEDDED_LENGTH if embedded else USUAL_LENGTH
    filled = fill_optimisation(config, asked, preset, defaults, domain, choices, length)
    if filled.inherit:
        choices.append(inherit(network, teacher.teacher.network))
    method_config = fit_terms(method, method_config, options, teacher.teacher, warnings)
    method_config = fit_bank(method_config, {**own, **options}, domain, choices)
    choices += cut_short(method_config, filled.steps)
    if (rows := getattr(method_config, "embedding", None)) not in (None, *WORDS):
        method_config = dataclasses.replace(method_config, embedding=absolute(rows, is_path=True))
    test = _test_data(config, domain, choices, device)
    if config.validation and condensed is not None and test is not None:
        left_out(condensed, False, warnings.append)
    filled = dataclasses.replace(
        filled,
        flip=domain.flip,
        student=absolute(student),
        teacher=absolute(config.teacher, is_path=True),
        arch=absolute(config.arch),
        source=absolute_source(config.source),
        mean=domain.mean,
        std=domain.std,
        classes=domain.classes,
        shape="x".join(map(str, domain.shape)),
        data=absolute_data(config.data) if config.data is not None or test is None else domain.name,
    )
    plan = Plan(
        config=filled,
        method=method,
        method_config=method_config,
        condensed=condensed,
        real=training_data(config, domain, device) if method is RealImages else None,
        prior=_prior(config, domain, device),
        set_by_user=set_by_user,
        teacher=teacher,
        domain=domain,
        network=network,
        test=test,
        device=device,
        choices=choices,
        warnings=warnings,
    )
    _check_needs(plan)
    return plan


def _check_embedded(config: TrainConfig) -> None:
    """Refuses what is said of a teacher where none is named: the embedded one is of the digits and known."""
    if config.data not in (None, "digits"):
        split_name(config.data)  # a misspelt name is told first
        raise ValueError(
            f"--data {config.data} needs --teacher: name a network of these data (datafree pretrain --data "
            f"{config.data} trains one)"
        )
    for name in ("arch", "shape", "classes", "mean", "std"):
        if getattr(config, name) is not None:
            why = " (--student names the student)" if name == "arch" else ""
            raise ValueError(f"--{name} goes with --teacher: the embedded one is known{why}; leave it out")


def _check_needs(plan: Plan) -> None:
    """Looks through the networks once, and builds the method once, aside: what they lack is said before a run begins.

    A method says that it never differentiates the teacher by `NEEDS_GRADIENTS = False`, which of its weights needs
    penultimate features by `NEEDS_FEATURES`, and without which its images do not come in the classes' shares by
    `FOLLOWS_PRIOR` (False: they never do). One that does not say the last is taken to follow them; a condensed set's
    images never do.
    """
    method, config, domain = plan.method, plan.config, plan.domain
    image = torch.full((1, *domain.shape), 0.5, device=plan.device)
    if getattr(method, "NEEDS_GRADIENTS", True):
        image.requires_grad_()
        try:
            seen = plan.teacher.teacher.look(image, features=True)
            given, why = seen.logits.requires_grad, ""
        except Exception as error:  # a black box may raise anything
            given, why = False, f" ({one_line(error)})"
        if not given:
            raise ValueError(
                f"--method {config.method} needs gradients, and the teacher gives none{why}: take --method blackbox, "
                "which asks it for answers alone"
            )
        needed = getattr(method, "NEEDS_FEATURES", None)
        if needed and getattr(plan.method_config, needed) and seen.features is None:
            raise ValueError(
                f"--{needed} needs the features before the teacher's last layer, which cannot be seen: "
                f"give --{needed} 0"
            )
        check_logits(seen.logits, plan.teacher.loaded.source, WITHOUT_LOGITS)
    elif method is not load_method(BLACK_BOX):  # which takes probabilities where it is told
        with torch.no_grad():
            check_logits(plan.teacher.teacher(image), plan.teacher.loaded.source, WITHOUT_LOGITS)
    follows = getattr(method, "FOLLOWS_PRIOR", True) if plan.condensed is None else False
    followed = getattr(plan.method_config, follows) if isinstance(follows, str) else follows
    if plan.prior is not None and not followed:
        without = f" without --{follows}" if follows in dataclasses.asdict(plan.method_config) else ""
        raise ValueError(f"--prior: {plan.made_by}{without} makes images of no class in particular; leave it out")
    if config.attention:
        check_maps(plan.network, plan.teacher.teacher.network, image.detach())
    batch = getattr(plan.method_config, "synthesis_batch", None)
    if batch is not None and batch % world_size():
        raise ValueError(f"--synthesis-batch {batch} does not divide among {world_size()} processes")
    with torch.random.fork_rng(devices=[]):
        plan.build_method(plan.setting(plan.network, torch.Generator(plan.device)))


def _mirrored(domain: Domain, flip: bool | None) -> Domain:
    """The domain with flips as asked for. Grey things such as Fashion-MNIST's shoes all face one way: see blend.md."""
    return mirrored(domain, False if flip is None and domain.shape[0] == 1 else flip)


def _prior(config: TrainConfig, domain: Domain, device: torch.device) -> torch.Tensor | None:
    """The classes' shares, which sum to 1."""
    if config.prior is None:
        return None
    if len(config.prior) != domain.classes:
        raise ValueError(
            f"--prior has {len(config.prior)} values, the teacher {domain.classes} classes: give one a class"
        )
    shares = torch.tensor(config.prior, device=device)
    return shares / shares.sum()


def _test_data(config: TrainConfig, domain: Domain, choices: list[str], device: torch.device) -> Data | None:
    """The test split where it is found; a data-free run needs none. --validation: a part of the training split."""
    name = config.data or domain.name
    if config.data is None and name not in DOMAINS:
        choices.append("test data: no data set is named (--data NAME), so nothing is evaluated")
        return None
    known = data_domain(name)
    try:
        split = "train" if config.validation else "test"
        data = load_data(name, download=config.download, device=device, splits=(split,))
    except FileNotFoundError:
        choices.append(f"test data: none found for {name!r}, so nothing is evaluated (--download fetches public sets)")
        return None
    if config.validation:
        data = dataclasses.replace(validation_split(data), x_train=None, y_train=None)
        choices.append("test data: a tenth of the training images (--validation), not the test set")
    if known.shape != domain.shape or known.classes != domain.classes:
        choices.append(f"test data: {name} does not fit the teacher, so nothing is evaluated")
        return None
    return data


def network_costs(plan: Plan) -> dict[str, dict[str, Any]]:
    """Parameters and multiply-adds of teacher and student."""
    networks = {
        "teacher": (plan.teacher.loaded.arch, plan.teacher.teacher.network),
        "student": (plan.config.student, plan.network),
    }
    return {
        role: {"arch": arch, "parameters": parameters(net), "multiply_adds": multiply_adds(net, plan.domain.shape)}
        for role, (arch, net) in networks.items()
    }


def expected_memory_mb(plan: Plan) -> int:
    """A rough estimate of the peak: activations of both networks' training step, weights, optimiser state, banks."""
    batch, shape = plan.config.batch_size or 0, plan.domain.shape
    activations = sum(activation_bytes(net, shape, batch) for net in (plan.teacher.teacher.network, plan.network))
    half = 0.5 if plan.config.precision == "bf16" else 1.0
    weights = 4 * (4 * parameters(plan.network) + parameters(plan.teacher.teacher.network))
    held = dataclasses.asdict(plan.method_config)
    bank = 0 if idle_beside("bank", held, METHOD) else held.get("bank", 0) * getattr(plan.method_config, "banks", 1)
    libraries = 400e6
    return round((2 * half * activations + weights + bank * shape[0] * shape[1] * shape[2] + libraries) / 1e6)
