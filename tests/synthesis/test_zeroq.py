"""ZeroQ's terms against numpy, and its calibration sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datafree import losses
from datafree.domain import Domain
from datafree.synthesis.setting import Pace, Setting
from datafree.synthesis.zeroq import ZeroQ, ZeroQConfig, calibration_images
from datafree.teacher import Teacher

GREY = Domain(name="grey", shape=(1, 8, 6), classes=3, mean=(0.4,), std=(0.2,), flip=False)


def teacher() -> Teacher:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(40):  # smooth images, unlike noise
            network(nn.functional.interpolate(torch.randn(64, 1, 2, 2), size=(8, 6), mode="bilinear"))
    return Teacher(network, GREY.mean, GREY.std)


def setting() -> Setting:
    return Setting(
        teacher=teacher(),
        student=nn.Linear(1, 1),  # is not asked
        domain=GREY,
        batch_size=16,
        rng=torch.Generator().manual_seed(11),
        device=torch.device("cpu"),
        pace=Pace(steps=1000),
    )


def test_terms_are_its_equation() -> None:
    at = setting()
    x = torch.randn(16, 1, 8, 6)
    terms = {k: v.item() for k, v in ZeroQ(at, ZeroQConfig(bn=2.0, input=0.5)).terms(x).items()}

    def distance(rows: Any, mean: Any, var: Any) -> float:
        deviation = np.sqrt(rows.var(1) + 1e-6) - np.sqrt(var + 1e-6)
        return float(((rows.mean(1) - mean) ** 2).sum() + (deviation**2).sum())

    first, second = at.teacher.norms
    hidden = at.teacher.network[0](x)  # type: ignore[index]
    deeper = at.teacher.network[3](first(hidden).relu())  # type: ignore[index]
    layers = 0.0
    for norm, activations in ((first, hidden), (second, deeper)):
        rows = activations.detach().numpy().transpose(1, 0, 2, 3).reshape(activations.shape[1], -1)
        layers += distance(rows, norm.running_mean.numpy(), norm.running_var.numpy())  # type: ignore[union-attr]
    wanted = {"input": 0.5 * distance(x.numpy().reshape(1, -1), np.zeros(1), np.ones(1)), "bn": 2 * layers}
    assert terms == pytest.approx(wanted, rel=1e-4)


def test_a_calibration_set_has_the_remembered_statistics() -> None:
    """Nearer than the noise that it began as, and than noise has it for the part that is not of the input."""
    frozen = teacher()
    before = {name: t.clone() for name, t in frozen.network.state_dict().items()}
    images = calibration_images(frozen, GREY, 40, ZeroQConfig(pixel_steps=60, pixel_lr=0.2, synthesis_batch=32))
    assert images.shape == (40, 1, 8, 6)
    assert images.min() >= 0
    assert images.max() <= 1
    start = (torch.randn(40, 1, 8, 6) * 0.2 + 0.4).clamp(0, 1)
    found, noise = (losses.squared_moments(frozen.look(x, statistics=True).statistics).item() for x in (images, start))
    assert found < 0.2 * noise
    assert all(torch.equal(t, before[name]) for name, t in frozen.network.state_dict().items())


def test_calibration_sets_follow_their_seed() -> None:
    config = ZeroQConfig(pixel_steps=2, synthesis_batch=4)
    one, two, other = (calibration_images(teacher(), GREY, 6, config, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_round_keeps_one_batch() -> None:
    method = ZeroQ(setting(), ZeroQConfig(pixel_steps=2, bank=30, synthesis_batch=12))
    method.update()
    method.update()
    assert method.made == len(method.store.bank or ()) == 24


def test_without_norm_layers_the_images_own_statistics_remain() -> None:
    plain = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), GREY.mean, GREY.std)
    images = calibration_images(plain, GREY, 4, ZeroQConfig(pixel_steps=2))
    assert images.shape == (4, 1, 8, 6)


def test_the_pixels_adam_is_its_releases() -> None:
    """torch's own betas; the generators of the field take 0.5."""
    assert ZeroQ(setting(), ZeroQConfig()).descent.betas == (0.9, 0.999)
