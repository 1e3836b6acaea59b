"""SpaceshipNet: the exchange of channels by hand, and without it the plain inversion that it is then."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.domain import Domain
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Pace, Setting
from datafree.synthesis.spaceshipnet import (
    SpaceshipNet,
    SpaceshipNetConfig,
    changing_inputs,
    exchange,
    kept_channels,
)
from datafree.teacher import Normalised, Teacher

DOMAIN = Domain(name="toy", shape=(3, 8, 8), classes=4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=True)
SMALL: dict[str, Any] = {"latent": 6, "generator_width": 4, "bank": 60, "generator_steps": 3}


def network(width: int) -> nn.Module:
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 4)]
    return nn.Sequential(*layers)


def setting() -> Setting:
    torch.manual_seed(3)
    teacher = network(5)
    with torch.no_grad():
        for _ in range(5):
            teacher(torch.randn(32, 3, 8, 8))
    return Setting(
        teacher=Teacher(teacher, DOMAIN.mean, DOMAIN.std),
        student=Normalised(network(3), DOMAIN.mean, DOMAIN.std),
        domain=DOMAIN,
        batch_size=6,
        rng=torch.Generator().manual_seed(4),
        device=torch.device("cpu"),
    )


def method(**values: Any) -> SpaceshipNet:
    return SpaceshipNet(setting(), SpaceshipNetConfig(**{**SMALL, **values}))


def test_without_copies_it_is_plain_inversion() -> None:
    """Two calls against a loop that is written out, to the last bit."""
    made = method(copies=0)
    kept = []
    for _ in range(2):
        made.update()
        assert made.store.last is not None
        kept.append(made.store.last)

    at = setting()
    plain = Imaging(at, SpaceshipNetConfig(**SMALL))
    for call in range(2):
        z = plain.latents(plain.batch_size)
        plain.optimizer = torch.optim.Adam(plain.generator.parameters(), lr=4e-3, betas=(0.5, 0.999))
        targets = at.targets(plain.batch_size)
        least, wanted = float("inf"), None
        for _ in range(3):
            images = plain.generator.train()(z)
            logits, _, seen, _ = at.teacher.look(at.view(images), statistics=True)
            terms = {"onehot": 0.5 * F.cross_entropy(logits, targets), "bn": losses.batch_norm_statistics(seen)}
            loss = torch.stack(list(terms.values())).sum().item()
            if loss < least:
                least, wanted = loss, images.detach()
            plain.step(terms)
        assert wanted is not None
        assert torch.equal(kept[call], wanted)


def test_half_of_the_channels_stay_in_every_image() -> None:
    for channels in (4, 7):
        kept = kept_channels(torch.rand(50, channels))
        assert (kept.sum(1) == channels // 2).all()
        assert kept.any(0).all()
        assert not kept.all(0).any()


def test_exchange_by_hand() -> None:
    maps, others = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    own = torch.tensor([[True, False, True], [False, False, True]])
    assert exchange(maps, others, own).mean((2, 3)).tolist() == [[0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_an_image_has_half_of_another_ones_channels_with_the_probability(mix: float) -> None:
    made = method(mix=mix)
    maps = torch.arange(400.0).view(400, 1, 1, 1).expand(400, 6, 2, 2)
    mixed = made._mixed(maps)[:, :, 0, 0]
    foreign = mixed != torch.arange(400.0)[:, None]
    counts = foreign.sum(1)
    assert set(counts.tolist()) <= {0, 3}
    # 400 draws: a deviation of 0.025 at one half.
    assert (counts > 0).float().mean().item() == pytest.approx(mix, abs=0.1)
    for row, other in zip(mixed, foreign, strict=True):
        assert len(set(row[other].tolist())) <= 1, "all from one partner"


def test_a_lone_image_stays_as_it_is() -> None:
    maps = torch.rand(1, 4, 2, 2)
    assert method(mix=1.0)._mixed(maps) is maps


def test_mixing_keeps_the_batchs_statistics_nearly() -> None:
    """Every image gives as many channels as it takes, in the mean; a channel keeps its values' spread."""
    maps = torch.randn(512, 8, 4, 4)
    mixed = method(mix=1.0)._mixed(maps)
    torch.testing.assert_close(mixed.mean((0, 2, 3)), maps.mean((0, 2, 3)), rtol=0, atol=0.05)
    torch.testing.assert_close(mixed.std((0, 2, 3)), maps.std((0, 2, 3)), rtol=0.05, atol=0)


def test_unmixed_copies_are_the_generators_images() -> None:
    made = method(mix=0.0, copies=1)
    made.update()
    rendered = made.store.last
    assert rendered is not None
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(4))  # the call's first draw
    torch.testing.assert_close(rendered, made.imaging.generator(z).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("generator", ["small", "dcgan"])
def test_every_depth_is_mixed_and_no_hook_stays(generator: Any) -> None:
    made = method(mix=1.0, generator=generator)
    seen: set[tuple[int, ...]] = set()
    mixed = made._mixed

    def watch(maps: Tensor) -> Tensor:
        seen.add(tuple(maps.shape[2:]))
        return mixed(maps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "_mixed", watch)
        for _ in range(40):
            made._render(torch.randn(6, 6))
    assert len(seen) == {"small": 3, "dcgan": 5}[generator]
    assert not any(m._forward_pre_hooks for m in made.imaging.generator.modules())


def test_a_changed_input_lasts_as_long_as_its_block() -> None:
    layer = nn.Identity()

    def broken() -> None:
        with changing_inputs(layer, lambda x: x + 1):
            assert layer(torch.zeros(())).item() == 1
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert layer(torch.zeros(())).item() == 0


def test_copies_are_counted_and_kept() -> None:
    made = method(copies=3)
    made.update()
    assert made.made == 18
    assert made.store.bank is not None
    assert len(made.store.bank) == 18


def test_the_clock_ends_a_rounds_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step and each copy takes a second of a run of thirty: a round has three of each."""
    now = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    made = method(copies=1000)
    made.setting.pace = Pace(seconds=30.0)
    made.update()
    assert made.made == 3 * 6


@pytest.mark.parametrize(("feed", "rendered"), [("bank", 3), ("last", 1), ("fresh", 0)])
def test_no_batch_is_rendered_that_no_student_sees(feed: Any, rendered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = method(copies=3, feed=feed)
    calls, render = list[int](), made._render

    def watch(latents: Tensor) -> Tensor:
        calls.append(len(latents))
        return render(latents)

    monkeypatch.setattr(made, "_render", watch)
    made.update()
    assert len(calls) == rendered
    assert made.made == 6 * max(rendered, 1)


@pytest.mark.parametrize(("copies", "mixed"), [(0, False), (4, True)])
def test_fresh_images_are_mixed_where_copies_are(copies: int, mixed: bool) -> None:
    made, other = (method(copies=copies, feed="fresh", mix=mix) for mix in (1.0, 0.0))
    other.imaging.load_state_dict(made.imaging.state_dict())
    images, plain = made.sample(6).images, other.sample(6).images
    assert torch.allclose(images, plain, atol=1e-4) != mixed


@pytest.mark.parametrize("generator", ["small", "dcgan"])
def test_copies_may_be_rendered_by_running_statistics(generator: Any) -> None:
    """An image is then its own: the others of its batch make no difference to it."""
    for mode, alone in (("eval", True), ("train", False)):
        made = method(sample_mode=mode, mix=0.0, generator=generator)
        made.update()
        latents = made.imaging.latents(6)
        whole, part = made._render(latents), made._render(latents[:2])
        assert torch.allclose(whole[:2], part, atol=1e-5) == alone


def test_a_probability_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"--mix is 1\.5: give a number from 0 to 1"):
        SpaceshipNetConfig(mix=1.5)
