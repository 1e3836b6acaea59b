"""DeepInversion's terms against scipy and published code, its views, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor, nn

from datafree import losses
from datafree.domain import Domain
from datafree.synthesis.deepinversion import DeepInversion, DeepInversionConfig
from datafree.synthesis.setting import Pace, Setting
from datafree.teacher import Normalised, Teacher

# Logits, and the adaptive term that NVlabs/DeepInversion 2413af1 computes of them, in float64; keys as in tests/losses.
PARITY = np.load(Path(__file__).with_name("deepinversion.npz"), allow_pickle=False)
SMOOTH = np.load(Path(__file__).parents[1] / "losses" / "condensation.npz", allow_pickle=False)
COLOUR = Domain(name="colour", shape=(3, 16, 12), classes=5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), flip=True)


def network(domain: Domain, width: int, norm: Any = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(domain.shape[0], width, 3, padding=1),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2),
        norm(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, domain.classes),
    )


def setting(domain: Domain = COLOUR, teacher: nn.Module | None = None, batch_size: int = 6) -> Setting:
    torch.manual_seed(7)
    if teacher is None:
        teacher = network(domain, 6)
        with torch.no_grad():
            for _ in range(5):
                teacher(torch.randn(32, *domain.shape))
    return Setting(
        teacher=Teacher(teacher, domain.mean, domain.std),
        student=Normalised(network(domain, 4), domain.mean, domain.std).eval(),
        domain=domain,
        batch_size=batch_size,
        rng=torch.Generator().manual_seed(11),
        device=torch.device("cpu"),
        pace=Pace(steps=1000),
    )


def method(at: Setting, **values: Any) -> DeepInversion:
    return DeepInversion(at, DeepInversionConfig(bank=50, **values))


def test_terms_are_its_equation() -> None:
    at = setting()
    one = method(at, onehot=0.7, bn=2.0, first_bn=3.0, adv=0.4, tv_l1=0.1, tv_l2=0.2, l2=0.3)
    x, y = torch.randn(6, 3, 16, 12), torch.tensor([0, 1, 2, 3, 4, 0])
    terms = {name: value.item() for name, value in one.terms(x, y).items()}

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (COLOUR.mean, COLOUR.std))
    seen = at.teacher.look(x * std + mean, statistics=True)
    t, s = seen.logits.detach().numpy(), at.student(x * std + mean).detach().numpy()
    p, q = softmax(t / 3, 1), softmax(s / 3, 1)
    js = (rel_entr(p, (p + q) / 2).sum(1) + rel_entr(q, (p + q) / 2).sum(1)).mean() / 2
    a = x.numpy()
    differences = [
        a[..., 1:] - a[..., :-1],
        a[..., 1:, :] - a[..., :-1, :],
        a[..., 1:, 1:] - a[..., :-1, :-1],
        a[..., 1:, :-1] - a[..., :-1, 1:],
    ]
    layers = [
        np.linalg.norm((m - rm).numpy()) + np.linalg.norm((v - rv).numpy())
        for m, v, rm, rv in ([each.detach() for each in layer] for layer in seen.statistics)
    ]
    wanted = {
        "onehot": -0.7 * log_softmax(t, 1)[range(6), y].mean(),
        "bn": 2 * (3 * layers[0] + layers[1]),
        "adv": 0.4 * (1 - js),
        "tv_l1": 0.1 * sum(np.abs(d).mean() for d in differences),
        "tv_l2": 0.2 * sum(np.sqrt((d**2).sum()) for d in differences),
        "l2": 0.3 * np.sqrt((a**2).sum((1, 2, 3))).mean(),
    }
    assert terms == pytest.approx(wanted, rel=1e-4)


def test_pixel_priors_are_those_of_published_code() -> None:
    """In normalised space, on its images, with its gradients."""
    images = torch.from_numpy(SMOOTH["smooth.in_images"]).requires_grad_()
    domain = Domain(name="any", shape=(3, 7, 7), classes=3, mean=(0.1,) * 3, std=(0.5,) * 3, flip=False)
    at = setting(domain, teacher=network(domain, 3))
    at.teacher.classifier.double()
    one = method(at, bn=0.0, adaptive=False, tv_l1=1.0, tv_l2=1.0, l2=1.0)
    terms = one.terms(images, torch.zeros(3, dtype=torch.int64))
    for ours, theirs in (("tv_l1", "tv_l1"), ("tv_l2", "tv_l2"), ("l2", "l2_mean_per_image")):
        torch.testing.assert_close(terms[ours], torch.from_numpy(SMOOTH[f"smooth.out_{theirs}"]), rtol=1e-9, atol=1e-10)
        (gradient,) = torch.autograd.grad(terms[ours], images, retain_graph=True)
        name = f"smooth.grad_{theirs}_images" if ours.startswith("tv") else f"smooth.grad_{theirs}"
        torch.testing.assert_close(gradient[:1], torch.from_numpy(SMOOTH[name]), rtol=1e-9, atol=1e-10)


def published_js(s: Any, t: Any, temperature: float, clamp: tuple[float, float]) -> float:
    """The release's divergence: of the mean from each, where it should be of each from the mean, and clamped."""
    p, q = softmax(s / temperature, 1), softmax(t / temperature, 1)
    p, q, m = (np.clip(each, *clamp) for each in (p, q, (p + q) / 2))
    return float(0.5 * (m * np.log(m / p)).sum() / len(p) + 0.5 * (m * np.log(m / q)).sum() / len(p))


def test_the_adaptive_term_beside_published_code() -> None:
    """Ours is the paper's divergence. The release's, recomputed, has the published value, and agrees near equality."""
    s, t = PARITY["in_student_logits"], PARITY["in_teacher_logits"]
    temperature, clamp = float(PARITY["par_adi_T"]), tuple(PARITY["par_clamp"].tolist())
    assert published_js(s, t, temperature, clamp) == pytest.approx(float(PARITY["out_js_T3"]), rel=1e-9)
    assert 1 - published_js(s, t, temperature, clamp) == pytest.approx(float(PARITY["out_adi"]), rel=1e-9)

    def ours(a: Any, b: Any) -> float:
        return float(losses.js_per_sample(torch.from_numpy(a), torch.from_numpy(b), temperature).mean())

    p, q = softmax(s / temperature, 1), softmax(t / temperature, 1)
    js = (rel_entr(p, (p + q) / 2).sum(1) + rel_entr(q, (p + q) / 2).sum(1)).mean() / 2
    assert ours(s, t) == pytest.approx(js, rel=1e-9)
    assert js == pytest.approx(0.23969, abs=1e-5)
    near = t + 1e-3 * (s - t)
    assert ours(near, t) == pytest.approx(published_js(near, t, temperature, (0.0, 1.0)), rel=1e-2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distance", ["kl", "l1", "js"])
def test_the_adaptive_term_takes_any_distance(distance: Any, masked: bool) -> None:
    at = setting()
    at.student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 12, 5))  # decides on noise in many ways
    one = method(at, adv=0.4, distance=distance, masked=masked)
    x = torch.randn(40, 3, 16, 12)
    found = one.terms(x, torch.arange(40) % 5)["adv"].item()
    images = one.space.shown(x)
    t, s = (net(images).detach().numpy() / 3 for net in (at.teacher, at.student))
    p, q = softmax(t, 1), softmax(s, 1)
    each = {
        "kl": rel_entr(p, q).sum(1),
        "l1": np.abs(s - t).mean(1),
        "js": (rel_entr(p, (p + q) / 2).sum(1) + rel_entr(q, (p + q) / 2).sum(1)) / 2,
    }[distance]
    alike = s.argmax(1) == t.argmax(1)
    assert 0 < alike.sum() < 40
    assert found == pytest.approx(0.4 * (1 - (each * alike if masked else each).mean()), rel=1e-5)


def test_without_the_adaptive_term_the_student_is_not_asked() -> None:
    at = setting()
    at.student = nn.Linear(1, 1)  # takes no images
    x, y = torch.randn(2, 3, 16, 12), torch.tensor([0, 1])
    assert "adv" not in method(at, adaptive=False).terms(x, y)
    assert "adv" not in method(at, adv=0.0).terms(x, y)
    at.pace.warming = True
    assert "adv" not in method(at).terms(x, y)
    at.pace.warming = False
    with pytest.raises(RuntimeError):
        method(at).terms(x, y)


def test_a_round_makes_one_batch_that_the_teacher_takes_for_what_was_asked() -> None:
    at = setting()
    with torch.no_grad():
        at.teacher.network[-1].weight.mul_(20)  # type: ignore[index]  # a teacher that is sure of itself
    one = method(at, pixel_steps=60, synthesis_batch=10, bn=0.0, adaptive=False, pixel_lr=0.3, tv_l2=0.0)
    drawn: list[Tensor] = []
    targets = at.targets

    def remember(n: int) -> Tensor:
        drawn.append(targets(n))
        return drawn[-1]

    at.targets = remember  # type: ignore[method-assign]
    terms = one.update()
    assert one.made == len(one.store.bank or ()) == 10
    assert one.store.last is not None
    assert (at.teacher(one.store.last).argmax(1) == drawn[0]).float().mean() >= 0.7
    assert terms["onehot"] < 1


def test_the_terms_go_down() -> None:
    at = setting()
    first = method(at, pixel_steps=1).update()
    at = setting()
    last = method(at, pixel_steps=60).update()
    assert sum(last.values()) < 0.7 * sum(first.values())
    assert last["bn"] < first["bn"]


def test_the_batch_size_is_the_students_and_64_at_most() -> None:
    assert method(setting(batch_size=6)).batch_size == 6
    assert method(setting(batch_size=100)).batch_size == 64
    assert method(setting(batch_size=6), synthesis_batch=80).batch_size == 80


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_mirrored_only_where_labels_allow(flip: bool) -> None:
    domain = Domain(name="any", shape=(1, 4, 4), classes=3, mean=(0.1,), std=(0.5,), flip=flip)
    one = method(setting(domain, teacher=network(domain, 3)), jitter=0)
    pixels = torch.arange(16.0).view(1, 1, 4, 4)
    views = [one.view(pixels, False) for _ in range(30)]
    assert any(torch.equal(view, pixels.flip(3)) for view in views) == flip
    assert any(torch.equal(view, pixels) for view in views)


def test_jitter_goes_with_the_width() -> None:
    assert method(setting()).jitter == 1
    wide = Domain(name="any", shape=(3, 4, 32), classes=3, mean=(0.1,) * 3, std=(0.5,) * 3, flip=False)
    assert method(setting(wide, teacher=network(wide, 3))).jitter == 2
    assert method(setting(), jitter=0).jitter == 0


@pytest.mark.parametrize("fixed", [False, True])
def test_half_the_size_comes_first(fixed: bool) -> None:
    """Networks see it so where they can; where one takes a single size they see it enlarged."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 12, 5)) if fixed else None
    at = setting(teacher=teacher)
    one = method(at, multi_resolution=True, pixel_steps=6)
    sizes: list[Any] = []
    handle = at.teacher.classifier.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[2:])))
    one.update()
    handle.remove()
    assert sizes == ([(16, 12)] * 6 if fixed else [(8, 6)] * 4 + [(16, 12)] * 2)
    assert one.sample(3).images.shape == (3, 3, 16, 12)


def test_group_norm_gives_the_term_something_to_match() -> None:
    at = setting(teacher=network(COLOUR, 6, lambda width: nn.GroupNorm(2, width)))
    x, y = torch.randn(6, 3, 16, 12), torch.zeros(6, dtype=torch.int64)
    terms = method(at, bn=2.0).terms(x, y)
    seen = at.teacher.look(one_images(x), statistics=True).statistics
    assert len(seen) == 2
    assert terms["bn"].item() == pytest.approx(2 * losses.batch_norm_statistics(seen).item(), rel=1e-5)
    plain = setting(teacher=network(COLOUR, 6, lambda width: nn.GroupNorm(width, width)))
    assert "bn" not in method(plain, bn=2.0).terms(x, y)


def one_images(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (COLOUR.mean, COLOUR.std))
    return x * std + mean


class Transformer(nn.Module):
    """One block of attention on patches of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        y = self.norm(x)
        logits: Tensor = self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))
        return logits


def test_a_transformers_patches_are_made_to_differ() -> None:
    at = setting(teacher=Transformer())
    x, y = torch.randn(6, 3, 16, 12), torch.zeros(6, dtype=torch.int64)
    terms = method(at, patches=0.5).terms(x, y)
    entropy = losses.patch_similarity_entropy(at.teacher.look(one_images(x), tokens=True).tokens)
    assert terms["patches"].item() == pytest.approx(-0.5 * entropy.item(), rel=1e-5)
    assert "bn" in terms
    assert method(at).terms(x, y)["patches"].item() == pytest.approx(-entropy.item(), rel=1e-5)
    assert "patches" not in method(at, patches=0.0).terms(x, y)
    with pytest.raises(ValueError, match="--patches 1: the teacher has no attention blocks"):
        method(setting(), patches=1.0)


@pytest.mark.parametrize("betas", [(0.5,), (0.5, 1.0), (-0.1, 0.9)])
def test_impossible_betas_are_refused(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="give two numbers from 0 to below 1"):
        DeepInversionConfig(pixel_betas=betas)
