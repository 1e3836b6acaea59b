"""Fast: the whole method against published code, and where it is a plain generator.

`fast.npz`: two synthesis calls with FOMAML and with Reptile, in float64, computed with the authors' published code
(zju-vipa/Fast-Datafree 0dcecbc) on a linear generator, with the crop and flip left out. Plain arrays, numbers only.
"""

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
from datafree.generators import GENERATORS
from datafree.synthesis.fast import Fast, FastConfig, renew_first
from datafree.synthesis.imaging import Imaging
from datafree.synthesis.setting import Pace, Setting
from datafree.teacher import Normalised, Teacher

PARITY = np.load(Path(__file__).with_name("fast.npz"), allow_pickle=False)
CLOSE: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
DOMAIN = Domain(name="toy", shape=(3, 8, 8), classes=4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=True)
SMALL: dict[str, Any] = {"latent": 6, "generator_width": 4, "bank": 30}


def held(name: str) -> Tensor:
    return torch.from_numpy(PARITY[name])


class Linear(nn.Module):
    """The generator of the vectors: sigmoid(W z + b), reshaped."""

    def __init__(self, latent: int, shape: tuple[int, ...], width: int, normalisation: Any) -> None:
        super().__init__()
        self.linear, self.shape = nn.Linear(latent, int(np.prod(shape))), shape

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(z)).view(-1, *self.shape)


def published_network(role: str) -> nn.Module:
    """Convolution (padding 1), batch norm and ReLU, repeated; spatial mean; linear layer."""
    layers: list[nn.Module] = []
    state: dict[str, Tensor] = {}
    for i in range(2):
        if f"{role}.conv{i}.weight" not in PARITY:
            continue
        wide, deep = PARITY[f"{role}.conv{i}.weight"].shape[:2]
        for layer in ("conv", "bn"):
            for name in ("weight", "bias", "running_mean", "running_var"):
                if f"{role}.{layer}{i}.{name}" in PARITY:
                    state[f"{len(layers) + (layer == 'bn')}.{name}"] = held(f"{role}.{layer}{i}.{name}")
        layers += [nn.Conv2d(deep, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
    classes, width = PARITY[f"{role}.linear.weight"].shape
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    for name in ("weight", "bias"):
        state[f"{len(layers) - 1}.{name}"] = held(f"{role}.linear.{name}")
    network = nn.Sequential(*layers).double()
    assert not network.load_state_dict(state, strict=False).unexpected_keys
    return network


def exact(classifier: nn.Module) -> None:
    """The normalisation's constants in double precision."""
    classifier.double()
    for name in ("mean", "std"):
        classifier.register_buffer(name, held(f"par_{name}").view(1, -1, 1, 1), persistent=False)


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_two_calls_equal_published_code(meta: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mean, std = (tuple(PARITY[f"par_{name}"].tolist()) for name in ("mean", "std"))
    domain = Domain(name="parity", shape=(3, 6, 6), classes=4, mean=mean, std=std, flip=False)
    teacher = Teacher(published_network("teacher"), mean, std)
    student = Normalised(published_network("student"), mean, std)
    exact(teacher.classifier)
    exact(student)
    at = Setting(
        teacher=teacher,
        student=student,
        domain=domain,
        batch_size=5,
        rng=torch.Generator(),
        device=torch.device("cpu"),
    )
    monkeypatch.setitem(GENERATORS, "small", lambda *sizes: Linear(*sizes).double())
    config = FastConfig(
        meta=meta,
        adv=float(PARITY["par_adv"]),
        bn=float(PARITY["par_bn"]),
        bn_momentum=float(PARITY["par_bn_mmt"]),
        onehot=float(PARITY["par_oh"]),
        latent=4,
        latent_lr=float(PARITY["par_lr_z"]),
        generator_lr=float(PARITY["par_lr_g"]),
        generator_steps=int(PARITY["par_iterations"]),
        reset_first=0.0,
    )
    method = Fast(at, config)
    method.imaging.generator.load_state_dict({f"linear.{n}": held(f"generator.linear.{n}") for n in ("weight", "bias")})
    method.meta = [held(f"generator.linear.{name}").clone() for name in ("weight", "bias")]
    rate = config.generator_lr * config.generator_steps
    method.meta_optimizer = torch.optim.Adam(method.meta, lr=rate, betas=(0.5, 0.999))
    gradients: list[list[Tensor | None]] = []
    method.meta_optimizer.register_step_pre_hook(lambda *_: gradients.append([theta.grad for theta in method.meta]))
    monkeypatch.setattr(at, "view", lambda images: images)
    for call in range(2):
        latents, targets = held("in_z")[call].clone(), held("in_targets")[call]
        monkeypatch.setattr(method.imaging, "latents", lambda _, z=latents: z)
        monkeypatch.setattr(at, "targets", lambda _, y=targets: y)
        terms = method.update()
        tag = f"{meta}_call{call}"
        assert sum(terms.values()) == pytest.approx(PARITY[f"out_{tag}_inner_loss"].mean(), rel=1e-9)
        torch.testing.assert_close(latents.detach(), held(f"out_{tag}_z_final"), **CLOSE)
        assert method.store.last is not None
        torch.testing.assert_close(method.store.last, held(f"out_{tag}_best_images"), **CLOSE)
        for i, name in enumerate(("weight", "bias")):
            phi = method.imaging.generator.state_dict()[f"linear.{name}"]
            torch.testing.assert_close(phi, held(f"out_{tag}_phi_linear.{name}"), **CLOSE)
            torch.testing.assert_close(method.meta[i], held(f"out_{tag}_theta_linear.{name}"), **CLOSE)
            torch.testing.assert_close(gradients[call][i], held(f"grad_{tag}_linear.{name}"), **CLOSE)


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


def test_one_step_and_no_meta_is_a_plain_generator() -> None:
    """Three rounds against a loop that is written out, to the last bit."""
    at = setting()
    method = Fast(at, FastConfig(meta="none", generator_steps=1, latent_lr=0.0, bn_momentum=0.0, **SMALL))
    for _ in range(3):
        method.update()

    at = setting()
    plain = Imaging(at, FastConfig(**SMALL))
    for _ in range(3):
        plain.begin_round()
        z = plain.latents(plain.batch_size)
        targets = at.targets(plain.batch_size)
        view = at.view(plain.generator.train()(z))
        logits, _, seen, _ = at.teacher.look(view, statistics=True)
        student = at.student.eval()(view)
        plain.step(
            {
                "onehot": 0.4 * F.cross_entropy(logits, targets),
                "bn": 10 * losses.batch_norm_statistics(seen),
                "adv": -1.1 * losses.disagreement(student, logits, masked=True),
            }
        )
    for mine, theirs in zip(method.imaging.generator.parameters(), plain.generator.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_every_call_begins_at_the_meta_generator() -> None:
    method = Fast(setting(), FastConfig(meta_lr=1e-12, generator_steps=3, **SMALL))
    theta = [t.clone() for t in method.meta]
    ends = []
    for _ in range(2):
        method.update()
        ends.append(method.imaging.generator.state_dict()["linear.weight"].clone())
        for mine, before in zip(method.meta, theta, strict=True):
            torch.testing.assert_close(mine, before, rtol=0, atol=1e-9)
    assert not torch.equal(*ends)
    # Adam moves a weight by its rate at most, and by a little more in its first steps: not six steps' worth.
    assert (ends[1] - theta[0]).abs().max() < 3.5 * method.config.generator_lr


def test_the_opponent_waits_for_the_student() -> None:
    at = setting()
    at.pace = Pace(warming=True)
    method = Fast(at, FastConfig(**SMALL))
    assert set(method.update()) == {"onehot", "bn"}
    at.pace.warming = False
    assert set(method.update()) == {"onehot", "bn", "adv"}


def test_the_inner_loop_is_no_longer_than_the_run() -> None:
    at = setting()
    at.pace = Pace(steps=2)
    method = Fast(at, FastConfig(generator_steps=50, **SMALL))
    method.update()
    (state, *_) = method.imaging.optimizer.state.values()
    assert state["step"] == 2


def test_the_average_is_updated_once_a_call() -> None:
    method = Fast(setting(), FastConfig(generator_steps=3, **SMALL))
    method.update()
    first = [mean.clone() for mean, _ in method.remembered.average]
    method.update()
    moved = [(new - old).abs().max().item() for (new, _), old in zip(method.remembered.average, first, strict=True)]
    assert all(moved)


def test_the_first_layer_is_made_anew_once_when_it_is_time() -> None:
    at = setting()
    at.pace = Pace(fraction=0.0)
    method = Fast(at, FastConfig(meta_lr=1e-12, reset_first=0.5, **SMALL))
    changed = []
    for fraction in (0.0, 0.5, 0.9):
        at.pace.fraction = fraction
        before = [t.clone() for t in method.meta]
        method.update()
        changed.append([(a - b).abs().max().item() > 1e-6 for a, b in zip(before, method.meta, strict=True)])
    names = [name for name, _ in method.imaging.generator.named_parameters()]
    assert not any(changed[0])
    assert {name for name, moved in zip(names, changed[1], strict=True) if moved} >= {"linear.weight", "norm.weight"}
    assert not any(moved for name, moved in zip(names, changed[1], strict=True) if name.split(".")[0] == "blocks")
    assert not any(changed[2])


def test_a_first_layer_made_anew_has_the_releases_spread() -> None:
    generator = GENERATORS["small"](64, (3, 32, 32), 16)
    renew_first(generator)
    state = generator.state_dict()
    assert state["linear.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert state["norm.weight"].std().item() == pytest.approx(0.02, rel=0.5)
    assert not state["linear.bias"].any()
    assert not state["norm.bias"].any()


def test_a_reset_makes_the_meta_generator_anew() -> None:
    method = Fast(setting(), FastConfig(reset=2, meta_lr=1e-12, reset_first=0.0, **SMALL))
    weights, ends = [], []
    for _ in range(3):
        method.update()
        weights.append(method.meta[0].clone())
        ends.append(next(method.imaging.generator.parameters()).detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-9)
    assert (weights[2] - weights[1]).abs().max() > 1e-3
    first, *_ = method.imaging.grown().values()
    assert torch.equal(first, ends[1])  # what is saved while the generator is young is a call's result
