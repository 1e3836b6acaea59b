"""Where a set starts: noise as it was published, herding's images scaled down, and labels of what they become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.condensation import load_method, subsets
from datafree.condensation.initial import initial_images
from datafree.condensation.setting import Real, Setting
from datafree.condensation.synthetic import Synthetic
from datafree.data.tensors import to_float
from datafree.domain import Domain
from datafree.jobs import condense
from datafree.training import Clock

DOMAIN = Domain(name="two", shape=(1, 6, 6), classes=2, mean=(0.4,), std=(0.3,), flip=False)
TINY: dict[str, Any] = {"data": "digits", "ipc": 2, "arch": "convnet3", "threads": 1}


@pytest.fixture
def two() -> Setting:
    """Twenty images of one class and five of another."""
    x = torch.randint(256, (25, 1, 6, 6), dtype=torch.uint8)
    y = torch.tensor([0] * 20 + [1] * 5)
    return Setting(
        real=Real(x, y, 2),
        domain=DOMAIN,
        new_network=lambda: torch.nn.Linear(1, 1),
        arch="none",
        augmentation=None,
        rng=torch.Generator().manual_seed(3),
        device=torch.device("cpu"),
        clock=Clock(steps=1),
    )


def test_noise_is_normal_in_standardised_pixels_and_may_be_kept_within_bounds(two: Setting) -> None:
    drawn = torch.randn(300, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    free, _ = initial_images(two, [100, 200], "noise", 1, bounded=False)
    torch.testing.assert_close((free - 0.4) / 0.3, drawn)
    assert float(free.min()) < -0.4
    two.rng.manual_seed(3)
    kept, labels = initial_images(two, [100, 200], "noise", 1)
    assert torch.equal(kept, free.clamp(0, 1))
    assert torch.bincount(labels).tolist() == [100, 200]


def herded(rows: dict[int, list[int]]) -> Callable[..., list[Tensor]]:
    """Herding that takes the class's rows in this order."""

    def take(setting: Setting, counts: list[int]) -> list[Tensor]:
        for label, n in enumerate(counts):
            assert n <= len(setting.real.rows[label]), "as herding itself would say"
        return [torch.tensor(rows[label][:n]) for label, n in enumerate(counts)]

    return take


def test_herdings_images_are_scaled_down_to_fill_a_set(two: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """As IDC's release does with the images that it draws: a patch is an image, not a part of one."""
    order = {0: [7, 3, 11, 2, 19, 0, 5, 13], 1: [24, 20, 22, 21, 23]}
    monkeypatch.setattr(subsets, "herding_rows", herded(order))
    images, labels = initial_images(two, [2, 2], "herding", 2)
    assert labels.tolist() == [0, 0, 1, 1]
    found = []
    for patch in range(4):
        top, left = 3 * (patch // 2), 3 * (patch % 2)
        found.append(images[:, :, top : top + 3, left : left + 3])
    # The class with five images gives each of them, and three once more.
    wanted = {0: order[0], 1: [24, 20, 22, 21, 23, 24, 20, 22]}
    for label in range(2):
        for number, row in enumerate(wanted[label]):
            small = F.avg_pool2d(to_float(two.real.x[row : row + 1]), 2)[0]
            torch.testing.assert_close(found[number // 2][2 * label + number % 2], small)
    whole, _ = initial_images(two, [2, 1], "herding", 1)
    assert torch.equal(whole, to_float(two.real.x[[7, 3, 24]]))


@pytest.mark.parametrize("clip", ["step", "save"])
def test_a_run_that_never_clips_starts_from_unbounded_noise(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = load_method("dm")
    honest, first = method.terms, []

    def terms(self: Any, synthetic: Synthetic) -> Any:
        first.append(synthetic.images.detach().clone())
        return honest(self, synthetic)

    monkeypatch.setattr(method, "terms", terms)
    result = condense(method="dm", init="noise", clip=clip, steps=1, real_batch=2, out=tmp_path / "run", **TINY)
    assert (float(first[0].min()) < 0) == (float(first[0].max()) > 1) == (clip == "save")
    assert 0 <= float(result.set.images.min()) <= float(result.set.images.max()) <= 1


# Soft labels that no term depends on.


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A trained network whose logits are an image's first ten pixels; the sizes of the batches it was asked of."""
    sizes: list[int] = []

    def network(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.flatten(1)[:, :10]

    monkeypatch.setattr("datafree.condensation.trained.trained_network", lambda *_, **__: network)
    return sizes


@pytest.mark.parametrize("name", ["dc", "dsa", "idc", "dm", "cafe", "datadam", "ncfm"])
def test_soft_labels_are_of_the_images_as_they_are_kept(name: str, tmp_path: Path, batches: list[int]) -> None:
    short: dict[str, dict[str, Any]] = {"ncfm": {"calibration": 0.0}, "cafe": {"most_epochs": 1}}
    short |= {name: {"inner": 1} for name in ("dc", "dsa")}
    own = short.get(name, {})
    options: dict[str, Any] = {**TINY, "steps": 2, "factor": 2, "image_lr": 0.3, "image_ema": 0.5, "labels": "soft"}
    result = condense(method=name, out=tmp_path / "run", real_batch=2, **own, **options)
    images, _ = result.set.decoded()
    torch.testing.assert_close(result.set.labels, images.flatten(1)[:, :10])
    assert len(batches) == 2  # the first images, and the last


def test_soft_labels_that_students_learn_stay_what_they_are(tmp_path: Path, batches: list[int]) -> None:
    experts = {"experts": 1, "expert_epochs": 1, "expert_images": 64, "expert_batch": 16, "expert_every": 1}
    options: dict[str, Any] = {**TINY, "steps": 1, "image_lr": 100.0, "labels": "soft", **experts, "max_start": 1}
    result = condense(method="mtt", out=tmp_path / "run", **options)
    images, _ = result.set.decoded()
    assert len(batches) == 1
    assert not torch.allclose(result.set.labels, images.flatten(1)[:, :10])


def test_the_first_images_are_labelled_a_few_at_a_time(tmp_path: Path, batches: list[int]) -> None:
    options = {**TINY, "ipc": 7, "factor": 2, "steps": 1, "labels": "soft"}
    condense(method="dm", out=tmp_path / "run", real_batch=2, **options)
    assert batches == [256, 24] * 2
