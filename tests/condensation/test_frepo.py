"""FRePo's objective against a slow numpy computation, its pool of networks, and its labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from datafree import parallel
from datafree.condensation.frepo import FRePo, FRePoConfig, nearest_distribution
from datafree.condensation.loop import ImageTrainer, Steps
from datafree.condensation.setting import Real, Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import CondenseConfig
from datafree.domain import Domain
from datafree.fields import replace
from datafree.jobs.condense_defaults import DEFAULTS
from datafree.models import build_model
from datafree.teacher import Normalised
from datafree.training import Clock

DOMAIN = Domain(name="four", shape=(3, 4, 4), classes=4, mean=(0.4,) * 3, std=(0.3,) * 3, flip=True)


class Smooth(nn.Module):
    """Features tanh(W x), in float64, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(48, 6).double()
        self.linear = nn.Linear(6, 4).double()

    def features(self, images: Tensor) -> Tensor:
        return torch.tanh(self.hidden.weight @ images.double().flatten(1).T + self.hidden.bias[:, None]).T

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(images))
        return logits


def make(config: FRePoConfig | None = None, arch: str = "smooth", **changes: Any) -> FRePo:
    y = torch.arange(40) % 4
    x = (torch.rand(4, 3, 4, 4)[y] * 150 + torch.rand(40, 3, 4, 4) * 100).to(torch.uint8)

    def new_network() -> nn.Module:
        inner = Smooth() if arch == "smooth" else build_model(arch, shape=DOMAIN.shape, classes=4)
        return Normalised(inner, DOMAIN.mean, DOMAIN.std)

    values: dict[str, Any] = {
        "real": Real(x, y, 4),
        "domain": DOMAIN,
        "new_network": new_network,
        "arch": arch,
        "augmentation": None,
        "rng": torch.Generator().manual_seed(0),
        "device": torch.device("cpu"),
        "clock": Clock(steps=5),
        "net_pool": 3,
        "net_steps": 4,
    }
    return FRePo(Setting(**{**values, **changes}), config or FRePoConfig(target_batch=12, mirror=False))


def start(objective: FRePo, learn: bool = True) -> Synthetic:
    labels = torch.arange(4).repeat_interleave(2)
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = objective.first_labels(images, labels) + 0.1 * torch.rand(8, 4, generator=torch.Generator().manual_seed(2))
    return Synthetic(images, labels, label_logits=first.double(), learn_labels=learn)


@pytest.mark.parametrize("mirror", [False, True])
def test_terms_equal_numpy(mirror: bool) -> None:
    objective = make(FRePoConfig(target_batch=12, regularisation=1e-2, mirror=mirror))
    synthetic = start(objective)
    state = objective.setting.rng.get_state()
    terms = objective.terms(synthetic)
    objective.setting.rng.set_state(state)
    real, classes = objective.setting.real.batch(12, objective.setting.rng)

    network = objective.pool[objective.current].get_submodule("network.hidden")
    weight, bias = (p.detach().numpy() for p in network.parameters())

    def features(images: Any) -> Any:
        white = (images - np.float32(0.4)) / np.float32(0.3)
        return np.tanh(white.reshape(len(images), -1).astype(np.float64) @ weight.T + bias)

    images, labels = synthetic.images.detach().numpy(), synthetic.targets().detach().numpy()
    ordered = np.sort(labels, 1)
    margin = -np.minimum(ordered[:, -1] - ordered[:, -2], 0.25).mean()
    if mirror:
        images, labels = np.concatenate([images, images[..., ::-1]]), np.concatenate([labels, labels])
    prototypes, targets = features(images), features(real.numpy())
    kernel = prototypes @ prototypes.T
    ridge = 1e-2 * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    predicted = targets @ prototypes.T @ np.linalg.inv(kernel + ridge) @ labels
    error = 0.5 * ((predicted - (np.eye(4)[classes] - 0.25)) ** 2).sum(1).mean()
    assert float(terms["regression"].detach()) == pytest.approx(error, rel=1e-6)
    assert float(terms["margin"].detach()) == pytest.approx(margin, rel=1e-12)


def test_gradients_by_finite_differences_reach_all_images_and_labels() -> None:
    objective = make(FRePoConfig(target_batch=12, regularisation=1e-2, mirror=True))
    synthetic = start(objective)
    state = objective.setting.rng.get_state()

    def value() -> Tensor:
        objective.setting.rng.set_state(state)
        return torch.stack(list(objective.terms(synthetic).values())).sum()

    parameters = list(synthetic.parameters().values())
    assert len(parameters) == 2
    gradients = torch.autograd.grad(value(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert bool(gradient.flatten(1).any(1).all())
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(1e-5 * direction)
            above = value()
            parameter.sub_(2e-5 * direction)
            below = value()
            parameter.add_(1e-5 * direction)
        slope = float((above - below) / 2e-5)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_a_network_step_is_adam_on_half_the_squared_error() -> None:
    objective = make(FRePoConfig(target_batch=12, mirror=False, net_lr=0.02))
    synthetic = start(objective)
    index = objective.current
    copy = make()
    copy.load_state_dict(objective.state_dict())
    objective.advance(synthetic)
    twin = copy.pool[index]
    optimizer = torch.optim.Adam(twin.parameters(), 0.02)
    loss = 0.5 * ((twin(synthetic.images.detach()) - synthetic.targets().detach()) ** 2).sum() / 8
    loss.backward()
    optimizer.step()
    for one, other in zip(objective.pool[index].parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert synthetic.images.grad is None


def test_a_network_step_sees_so_many_images_at_most() -> None:
    objective = make(FRePoConfig(target_batch=12, mirror=False, net_batch=3))
    seen: list[int] = []
    objective.pool[objective.current].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    objective.advance(start(objective))
    assert seen == [3]


def test_networks_are_renewed_at_staggered_ages() -> None:
    objective = make(net_pool=1, net_steps=3)
    synthetic = start(objective)
    born = objective.pool[0]
    ages = [objective.ages[0]]
    for _ in range(5):
        objective.advance(synthetic)
        ages.append(objective.ages[0])
    assert ages == [0, 1, 2, 3, 0, 1]
    assert objective.pool[0] is not born
    assert make(net_pool=4, net_steps=100).ages == [0, 25, 50, 75]


def test_five_steps_are_two_a_resume_and_three() -> None:
    asked = {name: FRePo.LOOP[name] for name in ("optimizer", "image_lr", "label_lr", "schedule")}
    config = replace(CondenseConfig(), {**DEFAULTS, **asked})

    def steps(objective: FRePo, trainer: ImageTrainer, first: int, last: int) -> None:
        source, clock = Steps(objective, trainer.synthetic), Clock(steps=5)
        for clock.step in range(first, last):
            source.advance(clock)
            trainer.step(source.terms(clock), clock.fraction)

    def fresh(seed: int) -> tuple[FRePo, ImageTrainer]:
        torch.manual_seed(9)
        objective = make(arch="resnet8", net_steps=2)  # batch norm's statistics are state, too
        torch.manual_seed(seed)
        if seed:
            objective.pool = [objective.setting.new_network() for _ in objective.pool]
            objective.optimizers = [objective._optimizer(network) for network in objective.pool]
        synthetic = start(objective)
        synthetic.images.data = synthetic.images.data.float()
        return objective, ImageTrainer(synthetic, config)

    objective, trainer = fresh(0)
    steps(objective, trainer, 0, 5)
    half, early = fresh(0)
    steps(half, early, 0, 2)
    states = half.state_dict(), early.state_dict(), half.setting.rng.get_state(), torch.get_rng_state()
    other, late = fresh(1)
    other.load_state_dict(states[0])
    late.load_state_dict(states[1])
    other.setting.rng.set_state(states[2])
    torch.set_rng_state(states[3])
    steps(other, late, 2, 5)
    assert torch.equal(trainer.synthetic.images, late.synthetic.images)
    assert trainer.synthetic.label_logits is not None
    assert late.synthetic.label_logits is not None
    assert torch.equal(trainer.synthetic.label_logits, late.synthetic.label_logits)


def test_processes_shares_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make()
    synthetic = start(objective)
    state = objective.setting.rng.get_state()

    def terms(rank: int, size: int) -> dict[str, Tensor]:
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        monkeypatch.setattr(parallel, "world_size", lambda: size)
        objective.setting.rng.set_state(state)
        return objective.terms(synthetic)

    whole = terms(0, 1)
    parts = [terms(rank, 3) for rank in range(3)]
    for name, term in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).sum(), term)


def test_the_nearest_distribution_is_the_nearest() -> None:
    rows = torch.randn(6, 4, dtype=torch.float64)
    found = nearest_distribution(rows)
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))
    assert bool((found >= 0).all())
    assert torch.equal(found.argmax(1), rows.argmax(1))
    for row, near in zip(rows.numpy(), found.numpy(), strict=True):
        result = minimize(
            lambda p, row=row: ((p - row) ** 2).sum(),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        )
        np.testing.assert_allclose(near, result.x, atol=1e-6)
    torch.testing.assert_close(nearest_distribution(found), found)


def test_labels_end_as_logits_of_the_nearest_distribution() -> None:
    objective = make()
    hard = torch.arange(4)
    synthetic = Synthetic(
        torch.rand(4, 3, 4, 4), hard, label_logits=objective.first_labels(torch.rand(4, 3, 4, 4), hard)
    )
    assert synthetic.label_logits is not None
    synthetic.label_logits.data[3] = torch.tensor([0.15, -0.25, -0.25, 0.35])  # with 1/4: .4, 0, 0, .6
    objective.finish(synthetic)
    assert synthetic.label_logits is not None
    wanted = torch.eye(4)
    wanted[3] = torch.tensor([0.4, 0.0, 0.0, 0.6])
    torch.testing.assert_close(synthetic.label_logits.softmax(1), wanted, rtol=0, atol=1e-3)
    assert bool(synthetic.label_logits.isfinite().all())
