"""CMI: its contrast against published code, and without it the plain inversion that it is then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datafree import losses
from datafree.domain import Domain
from datafree.synthesis.cmi import CMI, CMIConfig
from datafree.synthesis.contrast import Contrast, contrast_term, described
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Pace, Setting
from datafree.synthesis.views import local_view
from datafree.teacher import Normalised, Teacher

# zju-vipa/DataFree 9e79fa9: head, features, loss and gradients, in float64.
PARITY = np.load(Path(__file__).parents[1] / "losses" / "contrast.npz", allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
DOMAIN = Domain(name="toy", shape=(3, 8, 8), classes=4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=True)
SMALL: dict[str, Any] = {"latent": 6, "generator_width": 4, "bank": 30, "generator_steps": 3}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


@pytest.mark.parametrize("bank", ["bank", "nobank"])
def test_contrast_equals_published_code(bank: str) -> None:
    head = nn.Sequential(nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 5)).double()
    head.load_state_dict({f"{i}.{name}": held(f"head.{i}.{name}") for i in (0, 2) for name in ("weight", "bias")})
    part, whole = held("in_local").requires_grad_(), held("in_global").requires_grad_()
    earlier = torch.stack([held("in_cached_local"), held("in_cached_global")], 1)[: 6 if bank == "bank" else 0]
    loss = contrast_term(head, part, whole, earlier, float(PARITY["par_tau"]))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, held(f"out_loss_{bank}"), **CLOSE)
    torch.testing.assert_close(part.grad, held(f"grad_local_{bank}"), **CLOSE)
    assert whole.grad is None, "it is a column, which gets no gradient"
    assert not held(f"grad_global_{bank}").any()
    for name, weight in head.named_parameters():
        torch.testing.assert_close(weight.grad, held(f"grad_{bank}_head.{name}"), **CLOSE)


def network(width: int, norm: bool = True) -> nn.Module:
    middle = nn.BatchNorm2d(width) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, width, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 4))


def setting(norm: bool = True) -> Setting:
    torch.manual_seed(3)
    teacher = network(5, norm)
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


def contrast_of(method: CMI) -> Contrast:
    assert method.contrast is not None
    return method.contrast


def pairs_of(method: CMI) -> Tensor:
    return contrast_of(method).pairs


def test_without_contrast_it_is_plain_inversion() -> None:
    """Two calls against a loop that is written out, to the last bit."""
    at = setting()
    method = CMI(at, CMIConfig(contrast=0.0, **SMALL))
    kept = []
    for _ in range(2):
        method.update()
        assert method.store.last is not None
        kept.append(method.store.last)

    at = setting()
    plain = Imaging(at, CMIConfig(**SMALL))
    for call in range(2):
        plain.begin_round()
        z = plain.latents(plain.batch_size).requires_grad_()
        adam = torch.optim.Adam([z], lr=plain.config.generator_lr, betas=(0.5, 0.999))
        targets = at.targets(plain.batch_size)
        least, wanted = float("inf"), None
        for _ in range(3):
            images = plain.generator.train()(z)
            view = at.view(images)
            logits, _, seen, _ = at.teacher.look(view, statistics=True)
            student = at.student.eval()(view)
            terms = [
                0.5 * F.cross_entropy(logits, targets),
                losses.batch_norm_statistics(seen),
                -0.5 * losses.disagreement(student, logits, masked=True),
            ]
            loss = torch.stack(terms).sum()
            if loss.item() < least:
                least, wanted = loss.item(), images.detach()
            torch.autograd.backward(loss, inputs=[*plain.generator.parameters(), z])
            for optimizer in (plain.optimizer, adam):
                optimizer.step()
                optimizer.zero_grad()
        assert wanted is not None
        assert torch.equal(kept[call], wanted)
    for mine, theirs in zip(method.imaging.generator.parameters(), plain.generator.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_a_teacher_makes_of_an_image_are_its_norms_inputs() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3), nn.Linear(4, 6)
    layers = [first, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), second, nn.BatchNorm1d(6)]
    teacher = Teacher(nn.Sequential(*layers, nn.Linear(6, 4)), DOMAIN.mean, DOMAIN.std)
    images = torch.rand(5, 3, 8, 8)
    logits, found, seen = described(teacher, images, statistics=True)
    maps = first((images - 0.5) / 0.25)
    after = second(layers[1](maps).mean((2, 3)))
    torch.testing.assert_close(found, torch.cat([maps.mean((2, 3)), after], 1))
    torch.testing.assert_close(logits, teacher(images))
    assert len(seen) == 2
    assert all(not m._forward_pre_hooks for m in teacher.network.modules())


def test_without_batch_norm_they_are_its_last_features() -> None:
    at = setting(norm=False)
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(
        described(at.teacher, images)[1],
        at.teacher.network[:4]((images - 0.5) / 0.25),  # type: ignore[index]
    )
    terms = CMI(at, CMIConfig(bn=0.0, **SMALL)).update()
    assert set(terms) == {"onehot", "adv", "contrast"}


def test_a_teacher_that_shows_nothing_is_told_to_do_without() -> None:
    class Own(nn.Module):
        """No norm, and no linear layer or convolution that could be watched."""

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) @ torch.ones(3, 4)

    at = setting()
    at.teacher = Teacher(Own(), DOMAIN.mean, DOMAIN.std)
    with pytest.raises(ValueError, match=r"^--contrast needs .*: give --contrast 0$"):
        CMI(at, CMIConfig(bn=0.0, **SMALL))
    CMI(at, CMIConfig(bn=0.0, contrast=0.0, **SMALL))


def test_pairs_are_held_up_to_a_number_and_the_oldest_go() -> None:
    method = CMI(setting(), CMIConfig(contrast_bank=14, negatives=4, **SMALL))
    sizes, states = [], []
    for _ in range(4):
        method.update()
        sizes.append(len(pairs_of(method)))
        states.append(pairs_of(method).clone())
    assert sizes == [6, 12, 14, 14]
    assert torch.equal(states[2][:8], states[1][-8:])
    assert torch.equal(states[3][:8], states[2][-8:])
    assert pairs_of(method).shape[1:] == (2, 5)
    assert not pairs_of(method).requires_grad
    small = CMI(setting(), CMIConfig(contrast_bank=4, **SMALL))
    small.update()
    assert len(pairs_of(small)) == 4
    assert pairs_of(small).untyped_storage().nbytes() == 4 * pairs_of(small).numel()


def test_pairs_are_those_of_the_batch_that_is_kept() -> None:
    """Without views, what is held of a batch is what the teacher makes of its images."""
    at = setting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at, "view", lambda images: images)
        patch.setattr("datafree.synthesis.cmi.local_view", lambda images, rng, flip: images)
        method = CMI(at, CMIConfig(generator_lr=0.3, **{**SMALL, "generator_steps": 8}))
        method.update()
    assert method.store.last is not None
    found = described(at.teacher, method.store.last)[1]
    for column in (0, 1):
        torch.testing.assert_close(pairs_of(method)[:, column], found, rtol=1e-4, atol=1e-5)


def test_the_head_learns_and_is_never_made_anew() -> None:
    method = CMI(setting(), CMIConfig(generator_lr=2e-2, **SMALL))
    contrast = contrast_of(method)
    for call in range(3):
        before = [p.detach().clone() for p in contrast.head.parameters()]
        method.update()
        for old, new in zip(before, contrast.head.parameters(), strict=True):
            # Adam's steps are its rate at most, but for the first ones: no fresh weights.
            assert 1e-2 < (old - new).abs().max() < 0.12
            assert contrast.optimizer.state[new]["step"] == 3 * (call + 1)
    assert not any(p.grad is not None for p in contrast.head.parameters())


def test_a_part_is_taken_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    at, cropped, taken = setting(), list[Tensor](), list[Tensor]()
    view = at.view

    def watch(images: Tensor) -> Tensor:
        cropped.append(images)
        return view(images)

    def take(images: Tensor, rng: torch.Generator, *, flip: bool) -> Tensor:
        taken.append(images)
        return local_view(images, rng, flip=flip)

    at.view = watch  # type: ignore[method-assign]
    monkeypatch.setattr("datafree.synthesis.cmi.local_view", take)
    CMI(at, CMIConfig(**SMALL)).update()
    assert len(taken) == 3
    assert all(torch.equal(one, other) for one, other in zip(cropped, taken, strict=True))


def test_a_batch_is_told_from_as_many_earlier_images_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def count(head: nn.Module, part: Tensor, whole: Tensor, earlier: Tensor, temperature: float) -> Tensor:
        told.append(len(earlier))
        return contrast_term(head, part, whole, earlier, temperature)

    monkeypatch.setattr("datafree.synthesis.contrast.contrast_term", count)
    method = CMI(setting(), CMIConfig(negatives=4, **SMALL))
    for _ in range(2):
        method.update()
    assert told == [0] * 3 + [4] * 3  # the first call's six are there at the second


def test_the_opponent_waits_for_the_student() -> None:
    at = setting()
    at.pace = Pace(warming=True)
    method = CMI(at, CMIConfig(**SMALL))
    assert set(method.update()) == {"onehot", "bn", "contrast"}
    at.pace.warming = False
    assert set(method.update()) == {"onehot", "bn", "contrast", "adv"}


def test_images_of_one_batch_are_told_apart_better_with_contrast() -> None:
    """The contrast goes down over a call: its mean over forty steps is below its mean over two."""

    def mean(steps: int) -> float:
        config = CMIConfig(adv=0.0, onehot=0.0, bn=0.0, generator_lr=3e-3, **{**SMALL, "generator_steps": steps})
        return float(CMI(setting(), config).update()["contrast"])

    assert mean(40) < 0.8 * mean(2)
