"""Which classes a batch of noisy images holds: shares, turns, and no image twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.domain import Domain
from datafree.synthesis.nayer import NAYER, NAYERConfig
from datafree.synthesis.noisy import in_turn, spread
from datafree.synthesis.setting import Pace, Setting
from datafree.teacher import Normalised, Teacher


def setting(classes: int, prior: Tensor | None) -> Setting:
    domain = Domain(name="toy", shape=(1, 8, 8), classes=classes, mean=(0.4,), std=(0.3,), flip=False)
    torch.manual_seed(3)
    body = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    network = nn.Sequential(*body, nn.Linear(16, classes))
    return Setting(
        teacher=Teacher(network, domain.mean, domain.std),
        student=Normalised(network, domain.mean, domain.std),
        domain=domain,
        batch_size=24,
        rng=torch.Generator().manual_seed(5),
        device=torch.device("cpu"),
        prior=prior,
        pace=Pace(steps=20),
    )


PRIORS = {
    "none": None,
    "equal": [0.2] * 5,
    "one class": [0.0, 0.0, 1.0, 0.0, 0.0],
    "two classes": [0.0, 0.5, 0.0, 0.5, 0.0],
    "uneven": [0.05, 0.6, 0.0, 0.25, 0.1],
}


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("classes", [5, 40])
def test_no_image_of_a_batch_is_made_twice(name: str, classes: int) -> None:
    shares = PRIORS[name]
    prior = None if shares is None else torch.tensor(shares + [0.0] * (classes - 5))
    method = NAYER(setting(classes, prior), NAYERConfig(latent=16, generator_width=4, bank=60, generator_steps=1))
    for _ in range(20):
        targets = method.imaging.targets()
        images = method.imaging.images(targets)
        apart = (images[:, None] - images[None]).abs().amax((2, 3, 4)) + torch.eye(len(images))
        assert len(targets) == 24
        assert apart.min() > 1e-4
        if prior is not None:
            counts = torch.bincount(targets, minlength=classes)
            assert (counts - 24 * prior).abs().max() < 1 + 1e-4


def test_classes_come_in_turn_and_the_rest_are_different() -> None:
    rng = torch.Generator().manual_seed(0)
    seen = torch.zeros(7)
    for _ in range(300):
        targets = in_turn(7, 17, rng, torch.device("cpu"))
        assert targets[:14].tolist() == [*range(7), *range(7)]
        assert len(set(targets[14:].tolist())) == 3
        seen += torch.bincount(targets[14:], minlength=7)
    # 300 draws of 3 in 7: 128.6 each, standard deviation sqrt(300 3/7 4/7) = 8.6.
    assert (seen - 900 / 7).abs().max() < 4 * 8.6


def test_shares_are_kept_on_average_and_within_one() -> None:
    shares, n = torch.tensor([0.0, 0.37, 0.03, 0.6, 0.0]), 10
    starts = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = torch.stack([torch.bincount(spread(shares, n, start), minlength=5) for start in starts]).double()
    assert (counts.sum(1) == n).all()
    assert not counts[:, [0, 4]].any()
    assert (counts - n * shares).abs().max() < 1
    torch.testing.assert_close(counts.mean(0), n * shares.double(), rtol=0, atol=2e-3)
