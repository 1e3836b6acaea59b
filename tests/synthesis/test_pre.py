"""PRE: the generator's terms, what the memory learns and recalls, and the student's share of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datafree import losses
from datafree.domain import Domain
from datafree.synthesis.pre import PRE, PREConfig
from datafree.synthesis.setting import Pace, Setting
from datafree.teacher import Normalised, Teacher

DOMAIN = Domain(name="toy", shape=(1, 8, 8), classes=3, mean=(0.4,), std=(0.25,), flip=False)


def network(width: int) -> nn.Module:
    body = (nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(4 * width, 3))


def setting(batch_size: int = 9) -> Setting:
    torch.manual_seed(3)
    return Setting(
        teacher=Teacher(network(5), DOMAIN.mean, DOMAIN.std),
        student=Normalised(network(4), DOMAIN.mean, DOMAIN.std),
        domain=DOMAIN,
        batch_size=batch_size,
        rng=torch.Generator().manual_seed(5),
        device=torch.device("cpu"),
        pace=Pace(steps=20),
    )


def build(at: Setting, **values: Any) -> PRE:
    return PRE(at, PREConfig(**{"latent": 6, "generator_width": 3, "memory_steps": 1, **values}))


def js(s: np.ndarray, t: np.ndarray) -> float:
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (s, t))
    m = (p + q) / 2
    return float((0.5 * p * np.log(p / m) + 0.5 * q * np.log(q / m)).sum(1).mean())


def test_the_generators_terms_are_the_equation() -> None:
    at = setting()
    method = build(at, onehot=0.7, balance=3.0, activation=0.5, adv=1.5, student_mode="eval")
    make, images = method.imaging.images, list[Tensor]()

    def watch() -> Tensor:
        images.append(make())
        return images[0]

    method.imaging.images = watch  # type: ignore[method-assign]
    terms = method.update()
    view = at.teacher.look(images[0].detach(), features=True)
    assert view.features is not None
    t, s = (x.detach().double().numpy() for x in (view.logits, at.student.eval()(images[0])))
    p = np.exp(t) / np.exp(t).sum(1, keepdims=True)
    assert terms["onehot"] == pytest.approx(0.7 * -np.log(p.max(1)).mean(), rel=1e-5)
    assert terms["balance"] == pytest.approx(3 * (p.mean(0) * np.log(p.mean(0))).sum(), rel=1e-5)
    assert terms["activation"] == pytest.approx(-0.5 * view.features.abs().mean().item(), rel=1e-5)
    assert terms["adv"] == pytest.approx(-1.5 * js(s, t), rel=1e-4)


def test_disagreement_may_stop_where_decisions_differ() -> None:
    at = setting()
    with torch.no_grad():  # a student that decides on class 0
        at.student.network[-1].bias[0] += 100  # type: ignore[index,union-attr]
    for bias, counts in ((200.0, True), (-400.0, False)):  # one after the other
        with torch.no_grad():
            at.teacher.network[-1].bias[0] += bias  # type: ignore[index]
        plain, masked = (
            float(build(at, distance="l1", masked=flag, student_mode="eval").imagine()["adv"]) for flag in (False, True)
        )
        assert plain < -1
        assert masked == pytest.approx(plain, rel=0.1) if counts else masked == 0


def test_fresh_images_may_be_made_by_running_statistics() -> None:
    """Those of the student and those that the memory learns are then made alike, and an image is its own."""
    for mode, alone in (("eval", True), ("train", False)):
        method = build(setting(), sample_mode=mode)
        method.update()
        training: list[bool] = []
        generator = method.imaging.generator
        generator.register_forward_pre_hook(lambda module, _: training.append(module.training))  # noqa: B023
        method.learn()
        method.sample(9)
        assert training == [not alone, not alone]
        latents = torch.randn(6, 6)
        assert torch.allclose(generator(latents)[:2], generator(latents[:2]), atol=1e-5) == alone


def test_disagreement_is_sought_through_the_student_alone() -> None:
    """A student that answers the same whatever it sees leaves the generator nothing to disagree by."""
    at = setting()
    for parameter in at.student.parameters():
        nn.init.zeros_(parameter)
    method = build(at, onehot=0.0, balance=0.0, activation=0.0, student_mode="eval")
    before = {name: t.detach().clone() for name, t in method.imaging.generator.named_parameters()}
    assert method.imagine()["adv"] < 0
    assert all(torch.equal(t, before[name]) for name, t in method.imaging.generator.named_parameters())


def test_the_memorys_terms_are_the_equation() -> None:
    at = setting()
    method = build(at, divergence=0.3)
    new = torch.rand(5, 1, 8, 8)
    method.imaging.fresh = lambda n: new[:n]  # type: ignore[method-assign]
    passes: list[tuple[Tensor, ...]] = []
    method.memory.register_forward_hook(lambda module, inputs, outputs: passes.append((*inputs, *outputs)))
    terms = method.learn()
    images, noise, again, mean, log_variance = (x.detach() for x in passes[0])
    assert torch.equal(images, new)  # nothing to recall yet: half of the batch of 9, rounded up
    assert noise.shape == (5, 6)
    assert terms["memory_pixels"].item() == pytest.approx((again - new).abs().mean().item() / 0.25, rel=1e-5)
    difference = at.teacher(again) - at.teacher(new)
    assert terms["memory_logits"].item() == pytest.approx(difference.abs().mean().item(), rel=1e-4)
    codes = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
    assert terms["memory_codes"].item() == pytest.approx(0.3 * codes.item(), rel=1e-5)


def test_the_memorys_images_are_measured_by_the_spread_of_pixels() -> None:
    """And not by the normalisation of a teacher that takes images as they are."""
    at = setting()
    at.domain = dataclasses.replace(DOMAIN, mean=(0.0,), std=(1.0,), pixel_mean=(0.13,), pixel_std=(0.31,))
    assert build(at).spread.flatten().tolist() == pytest.approx([0.31])


def test_the_memory_rehearses_what_it_recalls() -> None:
    method = build(setting(batch_size=80), synthesis_batch=80)
    sizes: list[int] = []
    method.memory.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(inputs[0])))
    for _ in range(3):
        method.learn()
    # Half a batch of new images, and an eighth of a batch recalled once there is something to recall.
    assert sizes == [40, 50, 50]


def test_the_memory_comes_closer_to_the_images() -> None:
    method = build(setting(), memory_lr=1e-2, memory_steps=5)
    generator = method.imaging.fresh(8).detach()
    method.imaging.fresh = lambda n: generator[:n]  # type: ignore[method-assign]
    found = [method.update() for _ in range(15)]
    assert found[-1]["memory_pixels"] < 0.7 * found[0]["memory_pixels"]


@pytest.mark.parametrize(("n", "recalled"), [(9, 1), (18, 2), (90, 10), (4, 0), (1, 0)])
def test_the_students_batch_holds_the_published_share_of_recalled_images(n: int, recalled: int) -> None:
    method = build(setting())
    method.update()
    counts: dict[str, int] = {}
    recall, fresh = method.recall, method.imaging.fresh

    def watch_recall(n: int) -> Tensor:
        counts["recalled"] = n
        return recall(n)

    def watch_fresh(n: int) -> Tensor:
        counts["new"] = n
        return fresh(n)

    method.__dict__["recall"], method.imaging.__dict__["fresh"] = watch_recall, watch_fresh
    batch = method.sample(n)
    assert batch.images.shape == (n, 1, 8, 8)
    assert not batch.images.requires_grad
    assert counts == {"new": n - recalled, **({"recalled": recalled} if recalled else {})}
    assert method.made == 9 + n - recalled


def test_nothing_is_recalled_before_anything_was_learned_or_where_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for method in (build(setting()), build(setting(), replay=0.0)):
        if method.config.replay == 0:
            assert not {name for name in method.update() if name.startswith("memory")}
        monkeypatch.setattr(method, "recall", lambda n: pytest.fail("there is nothing to recall"))
        assert len(method.sample(9).images) == 9


def test_codes_take_a_step_towards_sure_and_balanced_decisions() -> None:
    at = setting()
    method = build(at, generator_lr=1e-2, latent=16)
    method.update()
    codes = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    method.imaging.latents = lambda n: codes.clone()  # type: ignore[method-assign]

    def loss(images: Tensor, z: Tensor) -> float:
        logits = at.teacher(images)
        value = losses.onehot(logits) + 2.17 * losses.class_balance(logits)
        return float(value + (z.var(0, correction=0) - 1).square().mean() + z.mean(0).square().mean())

    method.memory.eval()
    with torch.no_grad():
        before = loss(method.memory.decode(codes), codes)
    seen: list[Tensor] = []
    method.memory.decoder.register_forward_hook(lambda module, inputs, outputs: seen.append(inputs[0].detach().clone()))
    images = method.recall(32)
    assert len(seen) == 2
    assert torch.equal(seen[0], codes)
    # Adam's first step has the length of its rate in every entry.
    torch.testing.assert_close((seen[1] - codes).abs(), torch.full_like(codes, 0.01), rtol=1e-2, atol=1e-5)
    assert loss(images, seen[1]) < before


def test_the_memory_recalls_in_training_mode_while_it_learns_and_not_for_the_student(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = build(setting(), replay=0.5)
    modes: list[bool] = []
    decode = method.memory.decode

    def watched(codes: Tensor) -> Tensor:
        modes.append(method.memory.training)
        return decode(codes)

    monkeypatch.setattr(method.memory, "decode", watched)
    method.learned = 1
    method.learn()
    assert modes
    assert all(modes)
    modes.clear()
    method.imaging.keep(method.imaging.fresh(9).detach())
    method.sample(8)
    assert modes
    assert not any(modes)


def test_the_memory_is_part_of_the_state() -> None:
    method = build(setting())
    method.update()
    state = {name: t.clone() for name, t in method.state_dict()["memory"].items()}
    assert method.state_dict()["learned"] == 1
    method.update()
    assert any(not torch.equal(state[name], t) for name, t in method.state_dict()["memory"].items())
