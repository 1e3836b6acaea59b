"""NAYER: its terms, who serves which class, what a round draws anew, and which batch is kept."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.domain import Domain
from datafree.synthesis.nayer import NAYER, NAYERConfig
from datafree.synthesis.setting import Pace, Setting
from datafree.teacher import Normalised, Teacher

DOMAIN = Domain(name="toy", shape=(1, 8, 8), classes=3, mean=(0.4,), std=(0.3,), flip=False)


def network(width: int) -> nn.Module:
    body = (nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(4 * width, 3))


def setting(prior: Tensor | None = None) -> Setting:
    torch.manual_seed(3)
    teacher = network(5)
    with torch.no_grad():
        teacher(torch.randn(64, 1, 8, 8))
    return Setting(
        teacher=Teacher(teacher, DOMAIN.mean, DOMAIN.std),
        student=Normalised(network(4), DOMAIN.mean, DOMAIN.std),
        domain=DOMAIN,
        batch_size=8,
        rng=torch.Generator().manual_seed(5),
        device=torch.device("cpu"),
        prior=prior,
        pace=Pace(steps=20),
    )


def build(at: Setting, **values: Any) -> NAYER:
    return NAYER(at, NAYERConfig(**{"latent": 6, "generator_width": 3, "bank": 60, "generator_steps": 1, **values}))


def watched(method: NAYER) -> list[tuple[Tensor, Tensor, float]]:
    """Images, classes and sum of the terms of every step that follows."""
    seen: list[tuple[Tensor, Tensor, float]] = []
    terms = method.terms

    def watch(images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        found = terms(images, targets)
        seen.append((images.detach(), targets, sum(float(t.detach()) for t in found.values())))
        return found

    method.terms = watch  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("masked", [False, True])
def test_terms_are_the_equation(masked: bool) -> None:
    at = setting()
    at.view = lambda images: images  # type: ignore[method-assign]
    method = build(at, adv=1.5, bn=2.0, onehot=0.7, masked=masked)
    seen = watched(method)
    terms = method.update()
    images, targets, _ = seen[0]
    view = at.teacher.look(images, statistics=True)
    t, s = (x.double().numpy() for x in (view.logits, at.student.eval()(images).detach()))
    log_t, log_s = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (t, s))
    kl = (np.exp(log_t) * (log_t - log_s)).sum(1)
    if masked:
        kl = kl * (t.argmax(1) == s.argmax(1))
    assert terms["onehot"] == pytest.approx(0.7 * -log_t[np.arange(8), targets.numpy()].mean(), rel=1e-4)
    assert terms["adv"] == pytest.approx(-1.5 * kl.mean(), rel=1e-4, abs=1e-6)
    assert terms["bn"] == pytest.approx(2 * losses.batch_norm_statistics(view.statistics).item(), rel=1e-4)


def test_both_networks_look_at_the_cropped_images() -> None:
    at = setting()
    view, shown, looks = at.view, list[Tensor](), list[Tensor]()

    def watch(images: Tensor) -> Tensor:
        shown.append(view(images))
        return shown[-1]

    at.view = watch  # type: ignore[method-assign]
    method = build(at, generator_steps=3)  # looks for the teacher's last layer
    for network in (at.teacher.classifier, at.student):
        network.register_forward_pre_hook(lambda _, inputs: looks.append(inputs[0]))
    method.update()
    assert [len(images) for images in shown] == [8, 8, 8]
    twice = [images for images in shown for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(looks, twice, strict=True))


def test_a_batch_holds_every_class_in_turn_and_draws_for_the_rest() -> None:
    method = build(setting(), synthesis_batch=8)
    draws = torch.stack([method.imaging.targets() for _ in range(60)])
    assert (draws[:, :6] == torch.tensor([0, 1, 2, 0, 1, 2])).all()
    assert set(draws[:, 6:].flatten().tolist()) == {0, 1, 2}
    assert method.imaging.generator.noise.weight.shape[0] == 3


def test_a_prior_is_kept() -> None:
    method = build(setting(prior=torch.tensor([0.0, 0.25, 0.75])), synthesis_batch=60)
    counts = torch.stack([torch.bincount(method.imaging.targets(), minlength=3) for _ in range(50)]).sum(0) / 3000
    assert counts[0] == 0
    assert counts[2].item() == pytest.approx(0.75, abs=0.03)


def test_the_batch_of_the_least_loss_is_kept() -> None:
    method = build(setting(), generator_steps=6, generator_lr=0.3)
    seen = watched(method)
    for kept in range(3):
        method.update()
        round_ = seen[6 * kept : 6 * kept + 6]
        best = min(round_, key=lambda step: step[2])
        assert torch.equal(method.store.last, best[0])  # type: ignore[arg-type]
        assert method.made == 8 * (kept + 1)


def test_the_kept_batch_may_be_made_by_running_statistics() -> None:
    kept, terms = [], []
    for mode in ("train", "eval"):
        method = build(setting(), generator_steps=3, sample_mode=mode)
        seen = watched(method)
        terms.append(method.update())
        assert method.made == 8
        kept.append(method.store.last)
    assert terms[0] == terms[1], "it is trained alike"
    wanted = method.imaging.generator.eval()(seen[-1][1])
    torch.testing.assert_close(kept[1], wanted.detach())
    assert not torch.allclose(kept[0], wanted, atol=1e-3)  # type: ignore[arg-type]


def test_a_round_draws_its_noise_anew_and_goes_on_with_the_rest() -> None:
    method = build(setting(), generator_lr=1e-9, reset=0)
    noise, linear = [], []
    for _ in range(3):
        method.update()
        noise.append(method.imaging.generator.noise.weight.detach().clone())
        linear.append(method.imaging.generator.generator.linear.weight.detach().clone())  # type: ignore[union-attr,operator]
    assert (noise[0] - noise[1]).abs().max() > 0.1
    assert (noise[1] - noise[2]).abs().max() > 0.1
    torch.testing.assert_close(linear[2], linear[0], rtol=0, atol=1e-7)


def test_a_generator_lives_for_so_many_rounds() -> None:
    method = build(setting(), generator_lr=1e-9, reset=2)
    weights = []
    for _ in range(5):
        method.update()
        weights.append(method.imaging.generator.generator.linear.weight.detach().clone())  # type: ignore[union-attr,operator]
    changes = [(a - b).abs().max().item() > 1e-4 for a, b in pairwise(weights)]
    assert changes == [False, True, False, True]


def test_noise_is_trained_with_the_generator() -> None:
    method = build(setting(), generator_steps=2, generator_lr=0.1)
    noise, drawn = method.imaging.generator.noise, list[Tensor]()
    reset = noise.reset_parameters

    def watch() -> None:
        reset()
        drawn.append(noise.weight.detach().clone())

    noise.reset_parameters = watch  # type: ignore[method-assign]
    method.update()
    moved = (noise.weight.detach() - drawn[0]).abs()
    # Eight rows of three classes: two layers serve three rows, the last one two. All moved.
    assert (moved.amax((1, 2)) > 0.01).all()


def test_the_student_is_left_in_peace_before_it_has_begun() -> None:
    at = setting()
    at.pace.warming = True
    assert set(build(at).update()) == {"onehot", "bn"}
    at.pace.warming = False
    assert set(build(at).update()) == {"onehot", "bn", "adv"}


def test_statistics_of_earlier_rounds_count() -> None:
    method = build(setting(), bn_momentum=0.75)
    method.update()
    first = [mean.clone() for mean, _ in method.remembered.average]
    method.update()
    assert len(first) == 1
    assert not torch.equal(first[0], method.remembered.average[0][0])


def test_rounds_come_closer_to_the_classes_asked_for() -> None:
    """Within a draw the loss goes down, so the kept batch is rarely the first."""
    method = build(setting(), generator_steps=12, adv=0.0, bn=0.0, generator_lr=1e-2, synthesis_batch=24)
    seen = watched(method)
    for _ in range(2):
        method.update()
    for start in (0, 12):
        assert seen[start + 11][2] < 0.95 * seen[start][2]


@pytest.mark.parametrize(("rows", "text"), [(4, "4 rows, the teacher 3 classes"), (2, "2 rows, the teacher 3 classes")])
def test_a_file_of_other_classes_is_refused(rows: int, text: str, tmp_path: Any) -> None:
    np.save(tmp_path / "rows.npy", np.ones((rows, 5), dtype=np.float32))
    with pytest.raises(ValueError, match=text) as caught:
        build(setting(), embedding=str(tmp_path / "rows.npy"))
    assert "\n" not in str(caught.value)


def test_a_file_of_embeddings_is_taken(tmp_path: Any) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32))
    method = build(setting(), embedding=str(tmp_path / "rows.npy"))
    assert method.imaging.generator.norm.num_features == 5
    method.update()


def test_even_classes_are_standardised_by_the_batch_norm() -> None:
    """Two whole sets of classes: the rows that enter the noisy layers have mean 0 and variance 1."""
    method = build(setting(), embedding="orthogonal", synthesis_batch=6)
    rows = method.imaging.generator.norm.train()(
        method.imaging.generator.get_buffer("embeddings")[method.imaging.targets()]
    )
    torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), rtol=0, atol=1e-5)
    assert F.mse_loss(rows.var(0, correction=0), torch.ones(rows.shape[1])).item() < 1e-3


def test_every_rounds_adam_is_its_releases() -> None:
    method = build(setting(), generator_lr=4e-3)
    for _ in range(2):
        (group,) = method.imaging.optimizer.param_groups
        assert (group["lr"], group["betas"]) == (4e-3, (0.5, 0.999))
        method.update()
