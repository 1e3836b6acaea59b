"""Options of the loop with gradient matching: networks that are not fresh, labels that are learned; frepo's views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.condensation.class_gradients import class_by_class, class_gradients
from datafree.condensation.frepo import FRePo, FRePoConfig
from datafree.condensation.gradient_matching import Learner
from datafree.condensation.networks import Networks
from datafree.condensation.synthetic import Synthetic
from datafree.config import CondenseConfig, GradientOptions
from datafree.jobs import condense, resume_condense
from datafree.jobs.condense_planning import condense_plan, make_setting, run_clock
from datafree.models import build_model
from datafree.teacher import Normalised

TINY: dict[str, Any] = {"data": "digits", "ipc": 2, "arch": "convnet3", "threads": 1}
SHORT = {"outer": 2, "inner": 1}  # matches of one network, and its steps between two of them
CPU = torch.device("cpu")


def setting_of(method: str, **options: Any) -> Any:
    plan = condense_plan(CondenseConfig(method=method, **{**TINY, "ipc": 1, "steps": 2, **options}), {}, CPU, None)
    return make_setting(plan, run_clock(plan.config), lambda _: None, lambda: False)


def network(size: int = 8) -> Normalised:
    return Normalised(build_model("convnet3", shape=(1, size, size), classes=3).double(), [0.5], [0.5]).double()


def batches() -> tuple[list[Tensor], list[Tensor]]:
    images = [torch.rand(n, 1, 8, 8, dtype=torch.float64, requires_grad=True) for n in (2, 3)]
    soft = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 3)]
    return images, soft


@pytest.mark.parametrize("way", [class_gradients, class_by_class])
@pytest.mark.parametrize("metric", ["ours", "idc_l1", "mse"])
def test_logits_that_are_sure_are_the_class(way: Any, metric: str) -> None:
    net, (images, _) = network(), batches()
    sure = [torch.full((len(x), 3), -60.0, dtype=torch.float64) for x in images]
    for logits, label in zip(sure, (2, 0), strict=True):
        logits[:, label] = 60
    hard = way(net, images, [2, 0], metric, create_graph=True)
    soft = way(net, images, [2, 0], metric, soft=sure, create_graph=True)
    for one, two in zip(hard, soft, strict=True):
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b)


def test_both_ways_have_the_same_gradients_in_images_and_labels() -> None:
    net, (images, soft) = network(), batches()
    found = []
    for way in (class_gradients, class_by_class):
        gradients = way(net, images, [2, 0], "ours", soft=soft, create_graph=True)
        total = torch.stack([g.square().sum() * (i + 1) for i, row in enumerate(gradients) for g in row]).sum()
        found.append([total, *torch.autograd.grad(total, [*images, *soft])])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
    assert all(bool(gradient.any()) for gradient in found[0][1:])


@pytest.mark.parametrize("nets", ["trained", "reused"])
def test_a_learner_begins_with_a_copy_of_the_loops_network(nets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of("dc", nets=nets, net_steps=3, **({"net_pool": 2} if nets == "trained" else {}))
    learner = Learner(setting, GradientOptions(outer=2, inner=2))
    monkeypatch.setattr(Networks, "_train", lambda *_: None)  # so that only the set could change it
    first = learner.take()
    held = learner.networks.pool[learner.networks.current]
    assert first is not held
    before = {name: value.clone() for name, value in held.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    images, labels = torch.rand(10, 1, 8, 8), torch.arange(10)
    learner.advance(Synthetic(images, labels))
    assert learner.take() is first, "it serves `outer` matches"
    assert not all(torch.equal(value, before[name]) for name, value in first.state_dict().items()), "and learns"
    assert all(torch.equal(value, before[name]) for name, value in held.state_dict().items())
    learner.advance(Synthetic(images, labels))
    assert learner.take() is not first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dc", {"nets": "trained", "net_pool": 2, "net_steps": 3, "labels": "learned", "factor": 2, **SHORT}),
        ("dsa", {"nets": "reused", "net_steps": 2, **SHORT}),
        ("idc", {"labels": "learned", "synthetic_batch": 3}),
        ("frepo", {"augmentation": "flip_scale", "augmentation_mode": "all"}),
    ],
)
def test_runs_resume_to_the_last_bit(
    method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power_cut: Any
) -> None:
    monkeypatch.setattr("datafree.jobs.condense_session.LOG_SECONDS", 0.0)
    common = {**TINY, "method": method, "steps": 4, **({} if method == "frepo" else {"real_batch": 4}), **options}

    whole = condense(out=tmp_path / "straight", **common)
    with power_cut(3) as show:
        condense(out=tmp_path / "killed", checkpoint_every=1e-9, show=show, **common)
    again = resume_condense(tmp_path / "killed")
    assert torch.equal(again.set.images, whole.set.images)
    assert torch.equal(again.set.labels, whole.set.labels)
    if options.get("labels") == "learned":
        at_first = condense(out=tmp_path / "first", **{**common, "label_lr": 1e-9})
        assert not torch.allclose(whole.set.labels, at_first.set.labels, atol=1e-6)


@pytest.mark.parametrize(("augmentation", "changed"), [("none", False), ("scale_rotate", True)])
def test_frepos_networks_learn_from_augmented_images(
    augmentation: str, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = FRePo(setting_of("frepo", augmentation=augmentation), FRePoConfig())
    seen: list[Tensor] = []

    def watch(net: Any, forward: Any, images: Tensor, *_: Any) -> None:
        seen.append(images)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr("datafree.condensation.frepo.add_gradients", watch)
    images = torch.rand(20, 1, 8, 8)
    method._train(0, Synthetic(images, torch.arange(10).repeat_interleave(2)))
    moved = (seen[0] - images).flatten(1).abs().amax(1) > 1e-3
    assert moved.tolist() == [changed] * 20
