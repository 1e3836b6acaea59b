"""Contracts of every registered method, and the terms of each against the losses they are made of."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree import losses
from datafree.config import TrainConfig
from datafree.domain import Domain
from datafree.fields import fields_of
from datafree.synthesis import METHODS, load_method
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Pace, Setting
from datafree.teacher import Normalised, Teacher

COLOUR = Domain(name="colour", shape=(3, 16, 16), classes=5, mean=(0.5,) * 3, std=(0.25,) * 3, flip=True)
GREY = Domain(name="grey", shape=(1, 8, 8), classes=3, mean=(0.3,), std=(0.3,), flip=False)
DOMAINS = {"colour": COLOUR, "grey": GREY}
TERMS = {
    "noise": set[str](),
    "dafl": {"onehot", "balance", "activation"},
    "dfad": {"adv"},
    "dfq": {"onehot", "balance", "bn", "adv"},
    "blend": {"onehot", "bn", "adv"},
    "cmi": {"onehot", "bn", "adv", "contrast"},
    "fast": {"onehot", "bn", "adv"},
    "spaceshipnet": {"onehot", "bn"},
    "deepinversion": {"onehot", "bn", "adv", "tv_l2"},
    "zeroq": {"input", "bn"},
    "nayer": {"onehot", "bn", "adv"},
    "pre": {"onehot", "balance", "activation", "adv", "memory_pixels", "memory_logits", "memory_codes"},
    "blackbox": {"adv"},
    "zskt": {"adv"},
    "mad": {"onehot", "balance", "bn", "adv"},
    "cudfkd": {"onehot", "balance", "bn", "adv", "contrast"},
    "ssd": {"onehot", "balance", "bn", "adv"},
}
# Their disagreement waits for the student; the others either have no warm-up or no student in their terms.
WAITING = ("dfq", "blend", "cmi", "fast", "deepinversion", "nayer", "mad", "cudfkd", "ssd")
# A round keeps one batch for each of its generator steps.
ONE_STEP = ("dafl", "dfad", "dfq", "zskt", "cudfkd", "ssd")
# What makes every method small and short; each takes what its configuration knows.
NARROW = {"latent": 8, "generator_width": 4, "bank": 20, "synthesis_batch": None}


def network(domain: Domain, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(domain.shape[0], width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, domain.classes),
    )


def setting(domain: Domain = COLOUR, batch_size: int = 8) -> Setting:
    """A tiny teacher and student with batch norm; the same at every call."""
    torch.manual_seed(7)
    teacher = network(domain, 6)
    with torch.no_grad():
        for _ in range(5):
            teacher(torch.randn(32, *domain.shape))
    return Setting(
        teacher=Teacher(teacher, domain.mean, domain.std),
        student=Normalised(network(domain, 4), domain.mean, domain.std),
        domain=domain,
        batch_size=batch_size,
        rng=torch.Generator().manual_seed(11),
        device=torch.device("cpu"),
        pace=Pace(steps=4),
    )


def known_to(name: str) -> set[str]:
    return {f.name for f in fields_of(load_method(name).Config)}


def build(name: str, at: Setting, **values: Any) -> Any:
    method, known = load_method(name), known_to(name)
    return method(at, method.Config(**{k: v for k, v in {**NARROW, **values}.items() if k in known}))


BALANCED = [name for name in METHODS if getattr(load_method(name), "FOLLOWS_PRIOR", True) == "balance"]
# Each method with each of its feeds; without the option it has one.
FED = [
    (name, feed)
    for name in METHODS
    for feed in (
        ("bank", "fresh", "last") if any(f.name == "feed" for f in fields_of(load_method(name).Config)) else [""]
    )
]

# Two values of what a method may take from its configuration and then forget; its own tests know what they do.
TWO: dict[str, tuple[Any, Any]] = {
    "distance": ("kl", "l1"),
    "masked": (False, True),
    "student_mode": ("eval", "train"),
    "output": ("sigmoid", "standardised"),
    "sample_mode": ("eval", "train"),
    "latent_lr": (1e-3, 1e-1),
    "meta_lr": (1e-3, 1e-1),
    "memory_lr": (1e-4, 1e-2),
    "bn_momentum": (0.0, 0.5),
    "first_bn": (1.0, 3.0),
    "contrast_temperature": (0.1, 1.0),
    "pixel_lr": (1e-2, 1e-1),
    "pixel_betas": ((0.5, 0.9), (0.9, 0.999)),
    "rise": (0.0, 0.5),
}
OPTIONS = [(name, option) for name in METHODS for option in TWO if option in known_to(name)]


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def same(one: Any, two: Any) -> bool:
    """Equal to the last bit, through nested states."""
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_has_what_the_trainer_needs(name: str) -> None:
    method = load_method(name)
    needed = {"criterion", "temperature", "optimizer", "lr", "weight_decay", "augment"}
    assert needed <= set(method.STUDENT) <= needed | {"attention", "gradient_clip", "inherit"}
    for preset in getattr(method, "PRESETS", {}).values():
        own = {f.name for f in fields_of(method.Config)}
        assert set(preset) <= own | {f.name for f in fields_of(TrainConfig)}
        method.Config(**{name: value for name, value in preset.items() if name in own})
    assert method.STUDENT["criterion"] in losses.CRITERIA
    assert "student_steps" in {f.name for f in fields_of(method.Config)}
    weight = getattr(method, "NEEDS_STATISTICS", None)
    assert weight is None or weight in {f.name for f in fields_of(method.Config)}
    follows = getattr(method, "FOLLOWS_PRIOR", True)
    assert isinstance(follows, bool) or hasattr(method.Config(), follows)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(("name", "feed"), FED)
def test_samples_are_images(name: str, domain: str, feed: str) -> None:
    at = setting(DOMAINS[domain])
    method = build(name, at, feed=feed)
    method.update()
    for n in (8, 5):
        batch = method.sample(n)
        assert batch.images.shape == (n, *DOMAINS[domain].shape)
        assert batch.images.dtype == torch.float32
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
        assert not batch.images.requires_grad
        assert batch.weights is None or batch.weights.shape == (n,)


@pytest.mark.parametrize("name", list(METHODS))
def test_terms_are_finite_numbers(name: str) -> None:
    terms = build(name, setting()).update()
    assert all(type(value) is float and value == value for value in terms.values())
    assert set(terms) == TERMS[name]


@pytest.mark.parametrize("name", list(METHODS))
def test_before_the_student_begins_nothing_is_fought_over(name: str) -> None:
    at = setting()
    at.pace.warming = True
    student = snapshot(at.student)
    terms = build(name, at, student_mode="train").update()
    assert set(terms) == TERMS[name] - ({"adv"} if name in WAITING else set())
    if name in WAITING:
        assert same(student, snapshot(at.student)), "the student was asked"


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_with_a_warm_up_and_a_student_in_its_terms_waits(name: str) -> None:
    warms = "warmup" in {f.name for f in fields_of(load_method(name).Config)}
    assert (warms and "adv" in TERMS[name]) == (name in WAITING)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", list(METHODS))
def test_an_update_leaves_teacher_and_student_as_they_were(name: str, mode: str) -> None:
    at = setting()
    at.student.train()
    teacher, student = snapshot(at.teacher.network), snapshot(at.student)
    method = build(name, at, student_mode=mode)
    for _ in range(2):
        method.update()
        method.sample(4)
    assert same(teacher, snapshot(at.teacher.network))
    assert hooks(at.teacher.network) == 0
    assert not any(m.training for m in at.teacher.classifier.modules())
    assert not any(p.grad is not None for p in (*at.teacher.network.parameters(), *at.student.parameters()))
    assert at.student.training, "the student's mode was not put back"
    after = snapshot(at.student)
    moved = {key for key in student if not torch.equal(student[key], after[key])}
    trains = mode == "train" and "student_mode" in {f.name for f in fields_of(method.Config)}
    assert bool(moved) == trains
    assert not moved & dict(at.student.named_parameters()).keys()


@pytest.mark.parametrize("name", ONE_STEP)
def test_an_update_moves_every_weight_of_the_generator(name: str) -> None:
    method = build(name, setting())
    before = snapshot(method.imaging.generator)
    method.update()
    for key, _ in method.imaging.generator.named_parameters():
        assert not torch.equal(before[key], method.imaging.generator.state_dict()[key]), key
    assert not any(p.grad is not None and p.grad.any() for p in method.imaging.generator.parameters())


@pytest.mark.parametrize(("name", "feed"), FED)
def test_six_rounds_are_three_and_three_bit_for_bit(name: str, feed: str) -> None:
    def rounds(method: Any, count: int) -> list[Tensor]:
        drawn = []
        for _ in range(count):
            method.update()
            drawn.append(method.sample(8).images.clone())
        return drawn

    options = {"feed": feed, "reset": 2, "bn_momentum": 0.9, "generator_steps": 2}
    at = setting()
    straight = build(name, at, **options)
    wanted = rounds(straight, 6)

    at = setting()
    first = build(name, at, **options)
    rounds(first, 3)
    state = copy.deepcopy(first.state_dict())
    random = (at.rng.get_state(), torch.get_rng_state())

    torch.manual_seed(99)
    later = setting()
    again = build(name, later, **options)
    again.load_state_dict(state)
    later.rng.set_state(random[0])
    torch.set_rng_state(random[1])
    drawn = rounds(again, 3)
    assert same(drawn, wanted[3:])
    assert same(again.state_dict(), straight.state_dict())
    assert again.made == straight.made


@pytest.mark.parametrize("name", list(METHODS))
def test_a_state_is_tensors_and_plain_types(name: str, tmp_path: Any) -> None:
    method = build(name, setting(), bn_momentum=0.5, reset=1)
    for _ in range(2):
        method.update()
    torch.save(method.state_dict(), tmp_path / "state.pt")
    assert same(torch.load(tmp_path / "state.pt", weights_only=True), method.state_dict())


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_no_option_goes_unread(name: str, option: str) -> None:
    made = []
    for value in TWO[option]:
        steps = 2 if option == "latent_lr" else 1  # latents that have moved are seen in a second step alone
        options = {"masked": False, "generator_steps": steps, "feed": "fresh", option: value}
        method = build(name, setting(GREY), **options)
        terms = [method.update() for _ in range(2)]
        made.append((terms, method.sample(8).images))
    assert not same(*made)


@pytest.mark.parametrize("name", [name for name in METHODS if "sample_mode" in known_to(name)])
def test_a_generator_that_is_sampled_in_evaluation_mode_learns_in_training_mode(name: str) -> None:
    method = build(name, setting(GREY), feed="fresh", sample_mode="eval", generator_steps=1)
    modes: list[tuple[bool, bool]] = []
    norm = next(module for module in method.imaging.generator.modules() if isinstance(module, nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda module, _: modes.append((torch.is_grad_enabled(), module.training)))
    for _ in range(2):
        method.update()
        method.sample(4)
    assert {training for learns, training in modes if learns} == {True}
    assert (False, False) in modes


@pytest.mark.parametrize("name", [name for name in METHODS if "first_bn" in known_to(name)])
def test_the_first_norm_has_a_weight_of_its_own(name: str) -> None:
    options = {"generator_steps": 1, "pixel_steps": 1, "bn": 1.0}
    one, two, four = (build(name, setting(), first_bn=w, **options).update()["bn"] for w in (1.0, 2.0, 4.0))
    assert two - one > 1e-3
    assert four - two == pytest.approx(2 * (two - one), rel=1e-3)


@pytest.mark.parametrize("name", BALANCED)
def test_classes_are_asked_for_in_their_shares(name: str) -> None:
    terms = []
    for prior in (None, torch.tensor([0.8, 0.2, 0.0])):
        at = dataclasses.replace(setting(GREY), prior=prior)
        terms.append(build(name, at, generator_steps=1).update()["balance"])
    assert terms[0] != terms[1]


@pytest.mark.parametrize("name", ONE_STEP)
def test_images_made_are_counted_and_kept(name: str) -> None:
    method = build(name, setting(), feed="bank", bank=20, generator_steps=1, synthesis_batch=6)
    for _ in range(2):
        method.update()
    method.sample(50)
    assert method.made == 12
    assert len(method.imaging.store.bank) == 12
    fresh = build(name, setting(), feed="fresh", generator_steps=1, synthesis_batch=6)
    fresh.update()
    fresh.sample(50)
    assert fresh.made == 56
    assert fresh.imaging.store.bank is None


@pytest.mark.parametrize("name", ONE_STEP)
def test_bank_images_are_those_of_the_generator(name: str) -> None:
    method = build(name, setting(), feed="bank", bank=8, generator_steps=1)
    method.update()
    made = (method.imaging.store.last * 255).round() / 255
    for image in method.sample(10).images:
        assert min((image - each).abs().max() for each in made) < 1e-6


def test_last_hands_over_the_generators_batch() -> None:
    method = build("dafl", setting(), feed="last")
    method.update()
    assert torch.equal(method.sample(8).images, method.imaging.store.last)
    assert method.made == 8


def first_images(name: str, at: Setting, **values: Any) -> Tensor:
    """The batch that the first update of a fresh method sees."""
    return build(name, at, **values).imaging.images().detach()  # type: ignore[no-any-return]


def test_dafls_terms_are_its_equation() -> None:
    images = first_images("dafl", setting())
    at = setting()
    terms = build("dafl", at, onehot=2.0, balance=3.0, activation=0.5).update()
    view = at.teacher.look(images, features=True)
    assert view.features is not None
    assert terms["onehot"] == pytest.approx(2 * losses.onehot(view.logits).item(), rel=1e-5)
    assert terms["balance"] == pytest.approx(3 * losses.class_balance(view.logits).item(), rel=1e-5)
    assert terms["activation"] == pytest.approx(0.5 * losses.activation(view.features).item(), rel=1e-5)


@pytest.mark.parametrize("distance", ["l1", "kl"])
def test_dfads_term_is_its_equation(distance: str) -> None:
    images = first_images("dfad", setting())
    at = setting()
    terms = build("dfad", at, distance=distance, student_mode="eval").update()
    student = at.student.eval()(images)
    wanted = -losses.disagreement(student, at.teacher(images), distance).item()
    assert terms["adv"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_dfqs_terms_are_its_equation(masked: bool) -> None:
    images = first_images("dfq", setting())
    at = setting()
    terms = build("dfq", at, adv=1.5, bn=2.0, onehot=0.3, balance=4.0, masked=masked, generator_steps=1).update()
    view = at.teacher.look(images, statistics=True)
    student = at.student.eval()(images)
    assert terms["onehot"] == pytest.approx(0.3 * losses.onehot(view.logits).item(), rel=1e-5)
    assert terms["balance"] == pytest.approx(4 * losses.class_balance(view.logits).item(), rel=1e-5)
    assert terms["bn"] == pytest.approx(2 * losses.batch_norm_statistics(view.statistics).item(), rel=1e-5)
    assert terms["adv"] == pytest.approx(
        -1.5 * losses.disagreement(student, view.logits, masked=masked).item(), rel=1e-5
    )


def test_dfqs_average_is_updated_once_a_round_from_its_last_batch() -> None:
    at = setting()
    method = build("dfq", at, bn_momentum=0.8, generator_steps=3)
    method.update()
    seen = at.teacher.look(method.imaging.store.last, statistics=True).statistics
    for layer, (mean, var) in zip(seen, method.remembered.average, strict=True):
        torch.testing.assert_close(mean, layer.mean)
        torch.testing.assert_close(var, layer.var)
    before = method.remembered.average
    method.update()
    seen = at.teacher.look(method.imaging.store.last, statistics=True).statistics
    for layer, (mean, _), (old, _) in zip(seen, method.remembered.average, before, strict=True):
        torch.testing.assert_close(mean, 0.8 * old + 0.2 * layer.mean, rtol=1e-4, atol=1e-5)


def test_a_round_has_no_more_steps_than_its_pace_allows() -> None:
    """Of a run of 4 student steps; the terms are means over the steps that were taken."""
    long, short = (build("dfq", setting(), generator_steps=steps, batch_size=8) for steps in (50, 4))
    assert long.update() == short.update()
    assert long.made == 4 * 8


@pytest.mark.parametrize(("fraction", "rate"), [(0.0, 0.02), (0.19, 0.02), (0.2, 2e-3), (0.5, 2e-4), (1.0, 2e-4)])
def test_dfads_generator_has_milestones(fraction: float, rate: float) -> None:
    at = setting()
    method = build("dfad", at, generator_lr=0.02, generator_milestones=(0.2, 0.5))
    at.pace.fraction = fraction
    before = {name: p.detach().clone() for name, p in method.imaging.generator.named_parameters()}
    method.update()
    assert method.imaging.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    # Adam's first step is its rate long.
    moved = max((p - before[n]).abs().max().item() for n, p in method.imaging.generator.named_parameters())
    assert moved == pytest.approx(rate, rel=1e-2)


def test_dfads_milestones_are_shares_of_the_run() -> None:
    with pytest.raises(ValueError, match=r"--generator-milestones is .*: give shares of the run between 0 and 1"):
        build("dfad", setting(), generator_milestones=(100.0, 200.0))


@pytest.mark.parametrize("term", ["adv", "bn"])
@pytest.mark.parametrize("name", ["dfq", "nayer", "fast", "cmi", "deepinversion"])
def test_what_weighs_nothing_is_left_out(name: str, term: str) -> None:
    assert set(build(name, setting(GREY), generator_steps=1, **{term: 0.0}).update()) == TERMS[name] - {term}


def test_terms_go_down_where_a_generator_is_trained() -> None:
    """Thirty rounds without the student lower the sum of the terms."""
    method = build("dfq", setting(batch_size=32), adv=0.0, reset=0, generator_steps=1, generator_width=8)
    first = [sum(method.update().values()) for _ in range(30)]
    assert sum(first[-3:]) < sum(first[:3])


def test_the_generator_is_made_anew_every_so_many_rounds() -> None:
    method = build("dfad", setting(), reset=2, generator_lr=1e-9)
    weights = []
    for _ in range(5):
        method.update()
        weights.append(method.imaging.generator.linear.weight.detach().clone())
    changes = [(a - b).abs().max().item() > 1e-4 for a, b in pairwise(weights)]
    assert changes == [False, True, False, True]
    assert method.imaging.matured is not None


def test_weights_to_keep_are_those_of_a_grown_generator() -> None:
    method = build("dfad", setting(), reset=4)
    for _ in range(5):  # the fifth round starts with fresh weights
        method.update()
    grown = method.imaging.grown()
    assert same(dict(grown), dict(method.imaging.matured))
    for _ in range(2):
        method.update()
    assert same(dict(method.imaging.grown()), dict(method.imaging.generator.state_dict()))


def test_generators_follow_the_size_and_can_be_built_again() -> None:
    small = Imaging(setting(), load_method("dfq").Config(latent=8, generator_width=4))
    sizes = {"generator": "small", "latent": 8, "shape": (3, 16, 16), "width": 4}
    assert small.about() == {**sizes, "normalisation": None}
    ended = Imaging(setting(), load_method("dafl").Config(latent=8, generator_width=4))
    assert ended.about() == {**sizes, "normalisation": (COLOUR.mean, COLOUR.std)}
    at = dataclasses.replace(setting(), domain=dataclasses.replace(COLOUR, shape=(3, 64, 80)))
    assert Imaging(at, load_method("dfq").Config(latent=8, generator_width=2)).name == "dcgan"


def test_batch_and_width_where_none_is_given() -> None:
    config = load_method("dfq").Config(latent=8)
    made = [Imaging(setting(domain, batch_size=100), config) for domain in (COLOUR, GREY)]
    assert [(imaging.batch_size, imaging.about()["width"]) for imaging in made] == [(64, 32), (64, 16)]
    assert Imaging(setting(batch_size=8), config).batch_size == 8
    assert Imaging(setting(batch_size=100), load_method("dfq").Config(latent=8, feed="last")).batch_size == 100


def test_the_last_batch_is_the_students_or_none() -> None:
    with pytest.raises(ValueError, match="--feed last: give --synthesis-batch 8"):
        build("dafl", setting(), feed="last", synthesis_batch=6)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_noise_has_the_domains_statistics(distribution: str) -> None:
    images = build("noise", setting(), distribution=distribution).sample(400).images
    # N(0.5, 0.25) cut at two standard deviations: 0.5, and a deviation of about 0.24; U(0, 1): 0.5 and 1 / sqrt(12).
    assert images.mean().item() == pytest.approx(0.5, abs=0.005)
    assert images.std().item() == pytest.approx(0.24 if distribution == "normal" else 12**-0.5, abs=0.005)
