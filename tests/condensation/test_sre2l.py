"""SRe²L's recovery against the published code and DeepInversion's terms, and its relabelling."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datafree import losses
from datafree.condensation import sre2l
from datafree.condensation.loop import ImageTrainer, Steps
from datafree.condensation.setting import Real, Setting
from datafree.condensation.sre2l import SRe2L, SRe2LConfig, one_of_each
from datafree.condensation.synthetic import Synthetic
from datafree.config import CondenseConfig
from datafree.data.augmentation import parse_augmentation
from datafree.domain import Domain
from datafree.fields import replace
from datafree.jobs.condense_defaults import DEFAULTS
from datafree.teacher import Normalised, Teacher
from datafree.training import Clock

HELD = np.load(Path(__file__).with_name("selections.npz"))  # see test_coresets.py


def held(name: str) -> Tensor:
    return torch.from_numpy(HELD[f"sre2l.{name}"])


class ConvBN(nn.Module):
    """Two blocks of convolution, batch norm, ReLU; spatial mean; linear."""

    def __init__(self, channels: int = 3, widths: tuple[int, int] = (5, 6), classes: int = 10) -> None:
        super().__init__()
        first, second = widths
        self.conv0, self.bn0 = nn.Conv2d(channels, first, 3, padding=1), nn.BatchNorm2d(first)
        self.conv1, self.bn1 = nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second)
        self.linear = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.conv0(x)).relu()
        x = self.bn1(self.conv1(x)).relu()
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def method(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module, domain: Domain, config: SRe2LConfig, **changes: Any
) -> SRe2L:
    """SRe²L that inverts `network` as it is."""
    network = network.eval().requires_grad_(False)
    monkeypatch.setattr(sre2l, "build_model", lambda *_, **__: network)
    monkeypatch.setattr(sre2l, "trained_network", lambda *_, **__: Normalised(network, domain.mean, domain.std))
    n = domain.classes
    setting: dict[str, Any] = {
        "real": Real(torch.zeros(n, *domain.shape, dtype=torch.uint8), torch.arange(n), n),
        "domain": domain,
        "new_network": lambda: network,
        "arch": "conv",
        "augmentation": None,
        "rng": torch.Generator().manual_seed(0),
        "device": torch.device("cpu"),
        "clock": Clock(steps=5),
    }
    return SRe2L(Setting(**{**setting, **changes}), config)


def published(monkeypatch: pytest.MonkeyPatch, **weights: Any) -> SRe2L:
    network = ConvBN().double()
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    network.load_state_dict({name: held(name) for name in names}, strict=False)
    domain = Domain(name="x", shape=(3, 12, 12), classes=10, mean=(0.0,) * 3, std=(1.0,) * 3, flip=False)
    first = float(held("par_first_bn_multiplier"))
    return method(monkeypatch, network, domain, SRe2LConfig(bn=float(held("par_r_bn")), first_bn=first, **weights))


@pytest.mark.parametrize("script", ["imagenet", "cifar"])
def test_recovery_equals_the_published_code(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    with_priors = float(script == "imagenet")
    priors = {"tv": with_priors * float(held("par_tv_l2")), "l2": with_priors * float(held("par_l2_scale"))}
    objective = published(monkeypatch, **priors)
    labels, order = held("in_targets").sort()  # a synthetic set is sorted by class
    synthetic = Synthetic(held("in_images")[order], labels)
    terms = objective.terms(synthetic)
    total = torch.stack(list(terms.values())).sum()
    torch.testing.assert_close(total, held(f"out_{script}_total"), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(terms["cross_entropy"], held("out_ce"), rtol=1e-9, atol=1e-10)
    (gradient,) = torch.autograd.grad(total, synthetic.images)
    wanted = held(f"grad_{script}_images")[order]
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


def test_gradients_of_several_batches_are_those_of_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ConvBN(1, classes=3).double()
    objective = method(monkeypatch, network, GREY, SRe2LConfig(bn=0.5, tv=0.3, l2=0.2, recover_batch=4))
    classes = torch.arange(3).repeat_interleave(2)
    synthetic = Synthetic(torch.rand(6, 1, 8, 8, dtype=torch.float64), classes)
    total = torch.stack(list(objective.terms(synthetic).values())).sum()
    (found,) = torch.autograd.grad(total, synthetic.images)
    parts = [objective.recover_terms(synthetic.images[rows], classes[rows]) for rows in one_of_each(classes, 4)]
    whole = torch.stack([torch.stack(list(terms.values())).sum() for terms in parts]).mean()
    (wanted,) = torch.autograd.grad(whole, synthetic.images)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(found, wanted)


def test_memory_holds_the_graph_of_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = method(monkeypatch, ConvBN(1, classes=3), GREY, SRe2LConfig(recover_batch=3))

    def most(images: int) -> int:
        """Saved for backward at one time, in tensors."""
        alive, found = weakref.WeakSet[Saved](), [0]

        def pack(tensor: Tensor) -> Saved:
            saved = Saved(tensor)
            alive.add(saved)
            found[0] = max(found[0], len(alive))
            return saved

        synthetic = Synthetic(torch.rand(images, 1, 8, 8), torch.arange(3).repeat_interleave(images // 3))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            objective.terms(synthetic)
        return found[0]

    assert most(3) > 10
    assert most(12) < 1.5 * most(3)


class Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


GREY = Domain(name="grey", shape=(1, 8, 8), classes=3, mean=(0.4,), std=(0.3,), flip=False)


def test_statistics_are_those_of_so_many_images_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    network, seen = ConvBN(1, classes=3), list[int]()
    objective = method(monkeypatch, network, GREY, SRe2LConfig(recover_batch=4))
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    objective.terms(Synthetic(torch.rand(6, 1, 8, 8), torch.arange(3).repeat_interleave(2)))
    assert seen == [3, 3]


def test_terms_are_deep_inversions_of_normalised_images(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ConvBN(1, classes=3)
    network(torch.randn(20, 1, 8, 8))  # statistics to remember
    objective = method(monkeypatch, network, GREY, SRe2LConfig(bn=0.5, first_bn=2.0, tv=0.3, l2=0.2))
    images, classes = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    terms = objective.recover_terms(images, classes)
    white = (images - 0.4) / 0.3
    seen = Teacher(network, GREY.mean, GREY.std).look(images, statistics=True)
    right = seen.logits.log_softmax(1)[torch.arange(6), classes].mean().neg()
    wanted = {
        "cross_entropy": right,
        "bn": 0.5 * losses.batch_norm_statistics(seen.statistics, 2.0),
        "tv": 0.3 * losses.total_variation(white),
        "l2": 0.2 * white.flatten(1).norm(dim=1).mean(),
    }
    assert terms.keys() == wanted.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, wanted[name])
    objective = method(monkeypatch, network, GREY, SRe2LConfig(bn=0.0, tv=0.0))
    assert objective.recover_terms(images, classes).keys() == {"cross_entropy"}


def test_batches_hold_as_many_of_each_class() -> None:
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    batches = one_of_each(classes, 5)
    assert [classes[rows].tolist() for rows in batches] == [[0, 1, 2, 0, 1], [2, 0, 2, 0, 2]]
    assert sorted(torch.cat(batches).tolist()) == list(range(10))
    assert [len(rows) for rows in one_of_each(classes, 4)] == [4, 4, 2]
    assert len(one_of_each(classes, 10)) == 1


def trainer_for(synthetic: Synthetic) -> ImageTrainer:
    asked = {name: SRe2L.LOOP[name] for name in ("optimizer", "image_lr", "schedule")}
    return ImageTrainer(synthetic, replace(CondenseConfig(), {**DEFAULTS, **asked}))


def run_steps(objective: SRe2L, trainer: ImageTrainer, first: int, last: int) -> None:
    steps = Steps(objective, trainer.synthetic)
    clock = Clock(steps=5)
    for clock.step in range(first, last):
        steps.advance(clock)
        trainer.step(steps.terms(clock), clock.fraction)


def start() -> Synthetic:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Synthetic(images, torch.arange(3).repeat_interleave(2), label_logits=torch.zeros(6, 3))


def test_five_steps_are_two_a_resume_and_three(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = parse_augmentation("crop_flip", mode="all")

    def make(seed: int) -> tuple[SRe2L, ImageTrainer]:
        torch.manual_seed(seed)
        network = ConvBN(1, classes=3)
        config = SRe2LConfig(recover_batch=3)
        return method(monkeypatch, network, GREY, config, augmentation=augmentation), trainer_for(start())

    objective, trainer = make(0)
    run_steps(objective, trainer, 0, 5)
    half, early = make(0)
    run_steps(half, early, 0, 2)
    other, late = make(1)  # another teacher, until it is loaded
    other.load_state_dict(half.state_dict())
    late.load_state_dict(early.state_dict())
    other.setting.rng.set_state(half.setting.rng.get_state())
    run_steps(other, late, 2, 5)
    assert torch.equal(trainer.synthetic.images, late.synthetic.images)
    other.finish(late.synthetic)
    objective.finish(trainer.synthetic)
    assert late.synthetic.label_logits is not None
    assert trainer.synthetic.label_logits is not None
    assert torch.equal(late.synthetic.label_logits, trainer.synthetic.label_logits)


def test_the_end_labels_the_images_as_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ConvBN(1, classes=3)
    objective = method(monkeypatch, network, GREY, SRe2LConfig())
    synthetic = Synthetic(torch.rand(3, 1, 8, 8) * 2, torch.arange(3), label_logits=torch.zeros(3, 3))
    objective.finish(synthetic)
    assert synthetic.label_logits is not None
    torch.testing.assert_close(synthetic.label_logits, objective.teacher(synthetic.images.detach().clamp(0, 1)))
    assert not synthetic.label_logits.requires_grad
    hard = Synthetic(torch.rand(3, 1, 8, 8), torch.arange(3))
    objective.finish(hard)
    assert hard.label_logits is None


def test_a_teacher_without_batch_norm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="has no batch norm"):
        method(monkeypatch, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), GREY, SRe2LConfig(teacher="mlp"))


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import pytest, torch
from datafree import parallel
parallel.initialise("cpu")
torch.set_num_threads(1)
from test_sre2l import *
torch.manual_seed(0)
network = ConvBN(1, classes=3)
network(torch.randn(20, 1, 8, 8))
with pytest.MonkeyPatch.context() as patch:
    objective = method(patch, network, GREY, SRe2LConfig(bn=.5, tv=.3, l2=.2, recover_batch=4))
    trainer = trainer_for(start())  # two batches of three: they cannot be halved
    run_steps(objective, trainer, 0, 3)
    objective.config = SRe2LConfig(bn=.5, tv=.3, l2=.2, recover_batch=6)
    run_steps(objective, trainer, 3, 5)
if parallel.rank() == 0:
    torch.save(trainer.synthetic.images.detach(), sys.argv[1])
parallel.finish()
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "steps.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for size in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        subprocess.run([*launch, str(script), str(tmp_path / f"{size}.pt")], env=env, check=True, timeout=200)
    one, two = (torch.load(tmp_path / f"{size}.pt", weights_only=True) for size in (1, 2))
    assert not torch.equal(one, start().images)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
