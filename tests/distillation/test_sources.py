"""Condensed sets and real data in a method's place: units of the augmentation, halves, and slices of processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from datafree.data.augmentation import apply, draw, parse_augmentation
from datafree.data.condensed import FILE, CondensedSet
from datafree.distillation.sources import AUGMENTATION, CondensedImages, Mixed, RealImages, parse_source
from datafree.domain import Domain
from datafree.jobs.session import Session
from datafree.synthesis.dafl import DAFL, DAFLConfig
from datafree.synthesis.noise import Noise, NoiseConfig
from datafree.synthesis.setting import Batch, Setting
from datafree.teacher import Normalised, Teacher

MEAN, STD = (0.3, 0.5, 0.8), (0.1, 0.2, 0.05)
DOMAIN = Domain(name="toy", shape=(3, 8, 8), classes=4, mean=MEAN, std=STD, flip=True)


def setting(batch_size: int = 12) -> Setting:
    torch.manual_seed(7)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
    return Setting(
        teacher=Teacher(network, MEAN, STD),
        student=Normalised(network, MEAN, STD),
        domain=DOMAIN,
        batch_size=batch_size,
        rng=torch.Generator().manual_seed(11),
        device=torch.device("cpu"),
    )


def condensed(images: Tensor) -> CondensedSet:
    return CondensedSet(images=images, labels=torch.arange(len(images)) % 4, domain=DOMAIN)


def noise(n: int = 20) -> Tensor:
    return torch.rand(n, *DOMAIN.shape, generator=torch.Generator().manual_seed(3))


class Grey:
    """A method whose images are grey; it remembers how many were asked for."""

    config = DAFLConfig()
    made = 0

    def __init__(self) -> None:
        self.asked: list[int] = []

    def sample(self, n: int) -> Batch:
        self.asked.append(n)
        size = dist.get_world_size() if dist.is_initialized() else 1
        assert n % size == 0
        return Batch(torch.full((n // size, *DOMAIN.shape), 0.5))


def as_rank(patch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_world_size", lambda: size)
    patch.setattr(dist, "get_rank", lambda: rank)


def test_augmentation_is_in_standard_deviations_and_brings_in_the_mean_colour() -> None:
    """An image of the mean colour is 0 once standardised: brightness moves it by half a deviation, nothing else."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    source = CondensedImages(setting(), condensed(mean.expand(4, 3, 8, 8).clone()))
    moved = (source.sample(200).images - mean) / std
    assert moved.abs().max() <= 0.5 + 1e-5
    assert moved.abs().max() > 0.45
    assert (moved.flatten(1).abs().min(1).values < 1e-5).float().mean() > 0.9, "cutout leaves a block of the mean"


def test_augmentation_does_not_take_a_convention_for_the_spread_of_pixels() -> None:
    """A teacher that takes images in [0, 1] as they are says nothing of their brightness."""
    at = setting()
    at.domain = dataclasses.replace(DOMAIN, mean=(0.0,) * 3, std=(1.0,) * 3)
    grey = torch.full((4, 3, 8, 8), 0.45)
    moved = CondensedImages(at, condensed(grey)).sample(200).images - 0.45
    assert moved.abs().max() < 0.2, "half a usual standard deviation, not half of the range"


def test_augmentation_is_that_of_the_networks_that_judge_a_set() -> None:
    images, at = noise(), setting()
    found = CondensedImages(at, condensed(images)).sample(12).images
    rng = torch.Generator().manual_seed(11)
    rows = torch.randint(20, (12,), generator=rng)
    augmentation = parse_augmentation("_".join(AUGMENTATION), mode="all", flip=True, mean=MEAN, std=STD)
    torch.testing.assert_close(found, apply(images[rows], draw(augmentation, 12, rng), augmentation).clamp(0, 1))


def test_a_condensed_set_is_cropped_once_and_real_images_too() -> None:
    """The set's augmentation crops and mirrors; real images come as they are."""
    assert "crop" in AUGMENTATION
    assert CondensedImages.STUDENT["augment"] is False
    mixed = CondensedImages(setting(), condensed(noise()), cropped=True).augmentation
    alone = CondensedImages(setting(), condensed(noise())).augmentation
    assert set(alone.families) - set(mixed.families) == {"crop", "flip"}
    stored = (noise() * 255).round().to(torch.uint8)
    shown = RealImages(setting(), stored).sample(12).images
    assert all(any(torch.equal(image, each) for each in stored.float() / 255) for image in shown)


@pytest.mark.parametrize("flip", [False, True])
def test_images_are_mirrored_only_where_labels_allow(flip: bool) -> None:
    at = dataclasses.replace(setting(), domain=dataclasses.replace(DOMAIN, flip=flip))
    assert ("flip" in CondensedImages(at, condensed(noise())).augmentation.families) == flip


def test_of_several_images_in_one_each_is_shown_by_itself() -> None:
    stored = torch.tensor([[0.1, 0.3], [0.5, 0.7]]).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(1, 3, 8, 8)
    held = CondensedSet(images=stored, labels=torch.tensor([2]), domain=DOMAIN, factor=2)
    shown = CondensedImages(setting(), held).images
    torch.testing.assert_close(shown, torch.tensor([0.1, 0.3, 0.5, 0.7]).view(4, 1, 1, 1).expand(4, 3, 8, 8))


@pytest.mark.parametrize(("n", "theirs"), [(8, 4), (7, 4), (1, 1)])
def test_a_mixed_batch_is_half_and_half(n: int, theirs: int) -> None:
    method = Grey()
    images = Mixed(method, CondensedImages(setting(), condensed(noise()))).sample(n).images
    assert method.asked == [theirs]
    assert [bool((image == 0.5).all()) for image in images] == [True] * theirs + [False] * (n - theirs)


@pytest.mark.parametrize(("size", "ours"), [(1, 6), (2, 6), (3, 6), (4, 4), (6, 6), (12, 0)])
def test_halves_are_shared_out_evenly_among_processes(size: int, ours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for rank in range(size):
        method, at = Grey(), setting()
        with monkeypatch.context() as patch:
            as_rank(patch, rank, size)
            images = Mixed(method, CondensedImages(at, condensed(noise()))).sample(12).images
        assert method.asked == [12 - ours]
        assert len(images) == 12 // size
        shown.append(images[(12 - ours) // size :])
    if ours:
        wanted = CondensedImages(setting(), condensed(noise())).sample(ours).images
        assert torch.equal(torch.cat(shown), wanted)


def test_the_last_batch_is_served_in_a_mixture_as_well() -> None:
    at = setting()
    method = DAFL(at, DAFLConfig(latent=6, generator_width=4, feed="last"))
    method.update()
    mixed = Mixed(method, CondensedImages(at, condensed(noise())))
    assert method.store.last is not None
    for _ in range(2):
        assert torch.equal(mixed.sample(12).images[:6], method.store.last[:6])
    assert mixed.made == 12


def test_a_method_that_holds_no_images_is_looked_at_in_a_mixture_as_well() -> None:
    at = setting()
    mixed = Mixed(Noise(at, NoiseConfig()), CondensedImages(at, condensed(noise())))
    session = Mock(spec=Session, method=mixed, setting=at, rng=at.rng)
    assert Session._sample(session).shape == (12, *DOMAIN.shape)
    assert mixed.made == 0


def test_weights_and_extras_are_of_the_methods_images() -> None:
    class Weighted(Grey):
        def sample(self, n: int) -> Batch:
            return Batch(torch.full((n, *DOMAIN.shape), 0.5), torch.full((n,), 3.0), {"rows": torch.arange(n)})

    batch = Mixed(Weighted(), CondensedImages(setting(), condensed(noise()))).sample(6)
    assert batch.weights is not None
    assert batch.weights.tolist() == [3, 3, 3, 1, 1, 1]
    assert batch.extras["rows"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("condensed:a/b", ("a/b", None)), ("condensed:a+b/c", ("a+b/c", None)), ("condensed:a/b+dafl", ("a/b", "dafl"))],
)
def test_a_source_is_a_path_and_perhaps_a_method(text: str, wanted: tuple[str, str | None]) -> None:
    assert parse_source(text) == wanted


@pytest.mark.parametrize("file", ["", FILE])
def test_a_set_with_a_plus_in_its_name_is_one(tmp_path: Path, file: str) -> None:
    place = tmp_path / "set+v2"
    (place / file).parent.mkdir(exist_ok=True)
    (place / file).touch()
    (tmp_path / "set+v2+dafl").mkdir()  # a run's own folder
    assert parse_source(f"condensed:{place}") == (str(place), None)
    assert parse_source(f"condensed:{place}+dafl") == (str(place), "dafl")


@pytest.mark.parametrize("text", ["condensed:", "nonsense", "set+dafl"])
def test_any_other_source_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give condensed:PATH"):
        parse_source(text)
