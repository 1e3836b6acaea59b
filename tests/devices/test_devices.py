"""Whole jobs on a GPU, a pretended one as a rule: none lets a tensor or a generator of the CPU meet one that is not."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import datafree
from datafree import condensation
from datafree.config import TrainConfig
from datafree.domain import make_domain
from datafree.evaluation.protocols import PROTOCOLS
from datafree.fields import fields_of
from datafree.jobs import record_experts, resume_condense
from datafree.jobs.condensing import dry_run_condense
from datafree.jobs.training import dry_run
from datafree.synthesis import METHODS, load_method
from scripts import speed, speed_condensation, speed_inversion

pytestmark = pytest.mark.usefixtures("gpu")

GPU: dict[str, Any] = {"device": "cuda", "threads": 1}
# The smallest of everything. A method takes what its configuration knows.
SHORT: dict[str, Any] = {"student": "resnet8", "steps": 3, "batch_size": 4, "evaluations": 1}
NARROW: dict[str, Any] = {
    "latent": 4,
    "generator_width": 4,
    "generator_steps": 1,
    "student_steps": 1,
    "pixel_steps": 2,
    "memory_steps": 1,
    "negatives": 4,
    "reset": 1,
}
STUDENT: dict[str, dict[str, Any]] = {
    "attention": {"attention": 100.0, "inherit": True},
    "adam, l1": {"optimizer": "adam", "criterion": "l1", "gradient_clip": 1.0},
    "average, mse": {"ema": 0.9, "criterion": "mse", "schedule": "multistep"},
    "prior": {"prior": (1.0,) * 5 + (0.0,) * 5, "validation": True},
    "bf16": {"precision": "bf16", "augment": True},
}
OWN: list[tuple[str, dict[str, Any]]] = [
    ("dfq", {"feed": "fresh", "bn_momentum": 0.9, "distance": "js", "student_mode": "train"}),
    ("dfq", {"feed": "last", "output": "standardised"}),
    ("nayer", {"embedding": "orthogonal"}),
    ("blend", {"embedding": "onehot", "shapes": 0.5}),
    ("deepinversion", {"multi_resolution": True}),
    ("blackbox", {"probabilities": True}),
    ("fast", {"meta": "none"}),
    ("ssd", {"eviction": "fifo", "priority": 0.0}),
]
CONDENSE: dict[str, Any] = {"ipc": 2, "steps": 2, "arch": "convnet3", **GPU}
SMALL: dict[str, Any] = {
    "real_batch": 4,
    "frequencies": 8,
    "inner_steps": 2,
    "expert_epochs": 3,
    "expert_images": 16,
    "expert_batch": 8,
    "expert_every": 1,
    "experts": 1,
    "expert_span": 1,
    "max_start": 2,
    "target_batch": 4,
    "candidates": 4,
    "crops": 2,
    "outer": 2,
    "inner": 1,
    "check_batch": 2,
    "most_epochs": 1,
    "train_steps": 1,
    "recover_batch": 4,
}
DSA = "color_crop_cutout_flip_scale_rotate"
MADE: list[tuple[str, dict[str, Any]]] = [
    ("dm", {"zca": True, "factor": 2, "init": "mosaic", "augmentation": DSA, "cross_entropy": 1.0}),
    ("dm", {"nets": "trained", "net_pool": 2, "net_steps": 2, "image_ema": 0.5, "optimizer": "adam"}),
    ("dm", {"nets": "reused", "init": "herding", "labels": "soft", "precision": "bf16"}),
    ("dc", {"metric": "mse", "init": "noise", "precision": "bf16"}),
    ("dsa", {"metric": "cos", "labels": "learned"}),
    ("dc", {"arch": "resnet8"}),
    ("idc", {"factor": 2, "zca": True, "precision": "bf16"}),
    ("mtt", {"zca": True, "labels": "learned", "precision": "bf16"}),
    ("datm", {"zca": True}),
    ("frepo", {"zca": True, "labels": "learned", "precision": "bf16"}),
    ("ncfm", {"sampler": "normal", "precision": "bf16"}),
    ("random", {"labels": "soft"}),
]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trained on the CPU: a file is the same wherever it was made."""
    folder = tmp_path_factory.mktemp("devices") / "teacher"
    datafree.pretrain(out=folder, data="digits", arch="resnet8", steps=2, batch_size=32, threads=1, device="cpu")
    return str(folder / "model.safetensors")


def narrow(method: str, **options: Any) -> dict[str, Any]:
    known = {f.name for f in fields_of(load_method(method).Config)}
    held = {f.name for f in fields_of(TrainConfig)}
    return {name: value for name, value in {**NARROW, **options}.items() if name in known | held}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENT)
def test_every_way_of_learning(name: str, teacher: str, tmp_path: Path) -> None:
    options = {**SHORT, **narrow("dfq"), **STUDENT[name], "method": "dfq", "teacher": teacher}
    datafree.train(out=tmp_path / "run", **options, **GPU)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "own"), OWN)
def test_options_of_methods(method: str, own: dict[str, Any], teacher: str, tmp_path: Path) -> None:
    datafree.train(out=tmp_path / "run", method=method, teacher=teacher, **{**SHORT, **GPU, **narrow(method), **own})


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_distils_there_and_resumes_to_the_last_bit(
    method: str, teacher: str, tmp_path: Path, power_cut: Any
) -> None:
    options = {**SHORT, **GPU, **narrow(method), "teacher": teacher, "method": method, "steps": 4}
    assert dry_run(**options)["config"]["device"] == "cuda"
    result = datafree.train(out=tmp_path / "whole", **options)
    assert result.metrics["latency_on"] == torch.cuda.get_device_name()
    assert next(result.student.parameters()).is_cuda
    with power_cut(2) as show:
        datafree.train(out=tmp_path / "run", checkpoint_every=1e-9, show=show, **options)
    datafree.resume(tmp_path / "run")
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "run"))
    assert not one["conv1.weight"].is_cuda
    assert all(torch.equal(one[name], two[name]) for name in one)


def colour() -> datafree.Data:
    """Two classes of coloured images, which are whitened where one asks for it."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (32, 3, 8, 8), generator=rng, dtype=torch.uint8)
    y = torch.arange(32) % 2
    domain = make_domain(shape=(3, 8, 8), classes=2, flip=True)
    return datafree.Data(domain=domain, x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])


def options_of(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields_of(condensation.load_method(method).Config)}
    return {name: value for name, value in values.items() if name in known}


@pytest.mark.slow
@pytest.mark.parametrize("method", condensation.METHODS)
def test_every_method_condenses_there_and_resumes_to_the_last_bit(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power_cut: Any
) -> None:
    monkeypatch.setattr("datafree.jobs.condense_session.LOG_SECONDS", 0.0)  # a row a step
    options = {**CONDENSE, **options_of(method, SMALL), "method": method, "steps": 3}
    dry_run_condense(data=colour(), **options)
    whole = datafree.condense(data=colour(), out=tmp_path / "whole", **options)
    assert len(whole.set.images) == 4
    datafree.load_condensed(tmp_path / "whole")
    if not hasattr(condensation.load_method(method), "terms"):
        return  # made in one go
    with power_cut(2) as show:
        datafree.condense(data=colour(), out=tmp_path / "run", checkpoint_every=1e-9, show=show, **options)
    again = resume_condense(tmp_path / "run", data=colour())
    if method == "datm" and "DATAFREE_TEST_GPU" in os.environ:
        return  # its images turn, and CUDA has no grid sampler whose gradients are added up in a fixed order
    assert torch.equal(again.set.images, whole.set.images)
    assert torch.equal(again.set.labels, whole.set.labels)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "own"), MADE)
def test_options_of_condensation(method: str, own: dict[str, Any], tmp_path: Path) -> None:
    options = {**CONDENSE, **options_of(method, SMALL), "method": method, **own}
    datafree.condense(data=colour(), out=tmp_path / "run", **options)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["real", "condensed", "condensed+dfq"])
def test_other_sources(source: str, teacher: str, tmp_path: Path) -> None:
    if source != "real":
        datafree.condense(method="random", data="digits", ipc=1, out=tmp_path / "set", **GPU)
        source = source.replace("condensed", f"condensed:{tmp_path / 'set'}")
    own = narrow("dfq") if source.endswith("dfq") else {"student_steps": 1} if source != "real" else {}
    datafree.train(out=tmp_path / "run", source=source, teacher=teacher, **{**SHORT, **GPU, **own})


def test_networks_in_memory(tmp_path: Path) -> None:
    """They stay where a person has them."""
    domain = datafree.DOMAINS["digits"]
    teacher, student = (datafree.build_model("resnet8", shape=domain.shape, classes=domain.classes) for _ in range(2))
    options = {**SHORT, **GPU, **narrow("dfq"), "method": "dfq", "teacher": teacher, "student": student}
    datafree.train(out=tmp_path / "run", data="digits", **options)
    assert not any(p.is_cuda for network in (teacher, student) for p in network.parameters())


@pytest.mark.slow
def test_scores_and_samples_of_a_run(teacher: str, tmp_path: Path) -> None:
    datafree.train(out=tmp_path / "run", method="dfq", teacher=teacher, **{**SHORT, **GPU, **narrow("dfq")})
    found = datafree.evaluate(tmp_path / "run", device="cuda")
    alike = datafree.evaluate(tmp_path / "run", device="cpu")
    assert found["agreement"] == alike["agreement"]
    assert found["kl"] == pytest.approx(alike["kl"], rel=1e-4)
    datafree.sample(tmp_path / "run", 3, out=tmp_path / "images", device="cuda")
    student, _ = datafree.load_student(str(tmp_path / "run"), device="cuda")
    assert next(student.parameters()).is_cuda


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_network_trained_on_real_data(precision: str, tmp_path: Path, power_cut: Any) -> None:
    options = {"data": "digits", "arch": "resnet8", "batch_size": 8, "ema": 0.9, "precision": precision, **GPU}
    datafree.pretrain(out=tmp_path / "whole", steps=3, **options)
    with power_cut(2) as show:
        datafree.pretrain(out=tmp_path / "run", steps=3, checkpoint_every=1e-9, show=show, **options)
    datafree.resume(tmp_path / "run")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_set_is_judged_there(protocol: str, teacher: str, tmp_path: Path) -> None:
    found = datafree.condense(method="random", data="digits", ipc=1, out=tmp_path / "run", **GPU)
    shorter = {"epochs": None, "steps": 2} if PROTOCOLS[protocol].epochs is None else {"epochs": 1}
    short = dataclasses.replace(PROTOCOLS[protocol], networks=1, arch="convnet3", **shorter)
    taught = teacher if short.labels == "teacher" else None
    datafree.evaluate_set(found.set, "digits", protocol=short, device="cuda", teacher=taught)


def test_experts_are_recorded_there(tmp_path: Path) -> None:
    found = record_experts(data=colour(), out=tmp_path / "experts", arch="convnet3", count=1, epochs=1, rho=0.01, **GPU)
    assert found["experts"] == 1


def test_a_set_is_ranked_there() -> None:
    data = colour()
    assert data.x_train is not None
    short = dataclasses.replace(PROTOCOLS["ddranking"], networks=1, epochs=1, steps=None, arch="convnet3")
    found = datafree.rank(
        data, image_tensor=data.x_train[:4] / 255, protocol=short, full_accuracies=[0.9], syn_lr=0.01, device="cuda"
    )
    assert len(found["accuracies"]["synthetic"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", speed_inversion.USUAL)
def test_speed_of_methods_is_measured_there(method: str) -> None:
    sizes: dict[str, Any] = {"batch": 3, "width": 2, "repeats": 1, "device": "cuda"}
    found = speed_inversion.compare(method, ("wrn10_1", "resnet8"), ["32"], steps=1, **sizes)
    assert found["difference"]["ours_32"]["images"] < 1e-2
    speed.measure_case(method, ("wrn10_1", "resnet8"), "bf16", **sizes)


@pytest.mark.slow
def test_a_round_is_compared_there() -> None:
    found = speed.compare(("wrn10_1", "resnet8"), ["32"], batch=2, width=2, repeats=1, device="cuda")
    assert found["difference"]["images"] < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("method", speed_condensation.METHODS)
def test_speed_of_condensation_is_measured_there(method: str) -> None:
    sizes = {"networks": 1, "steps": 2} if method == "evaluate" else {"real_batch": 3, "images": 20}
    found = speed_condensation.compare(method, ["32"], repeats=1, domain=colour().domain, ipc=2, device="cuda", **sizes)
    assert found["difference"]["ours_32"]["loss"] < 1e-2


def test_the_same_numbers_as_on_the_cpu(teacher: str, tmp_path: Path, pretended: None) -> None:
    """Of a method that draws from the run's own generator alone, and whose functions go one way on both."""
    options = {**SHORT, **narrow("noise"), "method": "noise", "teacher": teacher, "threads": 1, "attention": 10.0}
    one, two = tmp_path / "cuda", tmp_path / "cpu"
    for run in (one, two):
        datafree.train(out=run, device=run.name, **options)
    theirs, ours = (load_file(run / "student.safetensors") for run in (one, two))
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name])
    assert json.loads((one / "run.json").read_text())["config"]["device"] == "cuda"
