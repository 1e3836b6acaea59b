"""Networks that are given as they are: what becomes of them, what a run says of them, how it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import datafree
from datafree.jobs import dry_run
from datafree.models import build_model, load_model
from datafree.teacher import Normalised

SHAPE = (1, 8, 8)
SHORT: dict[str, Any] = {
    "method": "dfq", "steps": 6, "batch_size": 8, "student_steps": 2, "generator_steps": 1, "threads": 1,
    "generator_width": 4, "latent": 8, "bank": 100, "mean": (0.5,), "std": (0.5,),
}  # fmt: skip


class Own(nn.Module):
    """No network of ours, and not the same in training."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(36 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


class Uncopied(Own):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("holds a socket")


def state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def nets() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"teacher": Own(), "student": Own(4)}


def test_a_run_of_two_networks(tmp_path: Path, nets: dict[str, Any]) -> None:
    before = {name: state(net) for name, net in nets.items()}
    said: list[str] = []
    result = datafree.train(**nets, data="digits", out=tmp_path / "run", say=said.append, **SHORT)
    assert all(same(state(net), before[name]) and net.training for name, net in nets.items())
    assert all(p.requires_grad for p in nets["teacher"].parameters())
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["config"]["teacher"], about["config"]["student"]) == ("memory:Own", "memory:Own")
    assert about["teacher"]["sha256"] == load_model(nets["teacher"]).sha256
    assert "classes: 10 (outputs of memory:Own)" in said
    assert result.metrics["teacher"] == "memory:Own"
    assert 0 <= result.metrics["student_accuracy"] <= 1
    written = load_file(tmp_path / "run" / "student.safetensors")
    assert not torch.equal(written["head.weight"], before["student"]["head.weight"])
    # Read back with the network that it is for; the teacher is no file, so that no fidelity is given.
    scores = datafree.evaluate(tmp_path / "run", arch=nets["student"])
    assert scores["accuracy"] == result.metrics["student_accuracy"]
    assert scores["agreement"] is None
    whole = datafree.evaluate(
        tmp_path / "run", arch=nets["student"], teacher=nets["teacher"], teacher_mean=(0.5,), teacher_std=(0.5,)
    )
    assert whole["agreement"] == result.metrics["agreement"]
    with pytest.raises(ValueError, match="the network Own was given from memory"):
        datafree.evaluate(tmp_path / "run")


def test_the_same_run_as_from_a_file(tmp_path: Path, nets: dict[str, Any]) -> None:
    torch.save(nets["teacher"].state_dict(), tmp_path / "net.pt")
    one = datafree.train(teacher=nets["teacher"], student="resnet8", data="digits", out=tmp_path / "one", **SHORT)
    two = datafree.train(
        teacher=str(tmp_path / "net.pt"), arch=nets["teacher"], student="resnet8", data="digits",
        out=tmp_path / "two", **SHORT,
    )  # fmt: skip
    assert same(one.student.state_dict(), two.student.state_dict())


def test_resumes_to_the_last_bit_with_the_same_networks_alone(tmp_path: Path, nets: dict[str, Any]) -> None:
    run, options = tmp_path / "run", {**SHORT, "shape": "1x8x8", "checkpoint_every": 1e-9}
    whole = datafree.train(**nets, out=tmp_path / "whole", **options)

    class StopError(Exception):
        pass

    def stop(row: Mapping[str, Any]) -> None:
        if row["step"] >= 3:
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datafree.jobs.session.LOG_SECONDS", 0.0)
        with pytest.raises(StopError):
            datafree.train(**nets, out=run, show=stop, **options)
    with pytest.raises(ValueError, match=r"teacher Own, student Own; .*datafree.resume\(folder, teacher=..., student"):
        datafree.resume(run)
    with pytest.raises(ValueError, match="teacher Own, student Own"):
        datafree.resume(run, **nets, arch=nets["teacher"])
    with pytest.raises(ValueError, match="teacher Own, student Own"):
        datafree.resume(run, **nets, arch="resnet8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory:Own has changed since the run began"):
        datafree.resume(run, teacher=Own(), student=nets["student"])
    with pytest.raises(ValueError, match="the student is another network than the run's"):
        datafree.resume(run, teacher=nets["teacher"], student=Own(5))
    result = datafree.resume(run, **nets)
    assert same(result.student.state_dict(), whole.student.state_dict())
    assert same(datafree.resume(run, **nets).student.state_dict(), result.student.state_dict())


def test_our_own_results_are_normalised_once(nets: dict[str, Any]) -> None:
    first = datafree.load_teacher(nets["teacher"], shape=SHAPE, mean=(0.3,), std=(0.2,))
    images = torch.rand(4, *SHAPE)
    for again in (first.teacher, first.teacher.classifier):
        second = datafree.load_teacher(again, shape=SHAPE)
        assert second.domain.mean == pytest.approx((0.3,))
        assert torch.allclose(second.teacher(images), first.teacher(images))
        with pytest.raises(ValueError, match="has its own normalisation: leave mean and std out"):
            datafree.load_teacher(again, shape=SHAPE, mean=(0.5,))


def test_a_run_whose_teachers_network_is_gone_is_tested_alone(tmp_path: Path, nets: dict[str, Any]) -> None:
    torch.save(nets["teacher"].state_dict(), tmp_path / "teacher.pt")
    options = {**SHORT, "student": "mlp", "arch": nets["teacher"]}
    result = datafree.train(teacher=tmp_path / "teacher.pt", data="digits", out=tmp_path / "run", **options)
    scores = datafree.evaluate(tmp_path / "run")
    assert scores["accuracy"] == result.metrics["student_accuracy"]
    assert scores.get("agreement") is None


def test_a_students_own_normalisation_is_left_out(tmp_path: Path, nets: dict[str, Any]) -> None:
    inner = nets["student"]
    wrapped = Normalised(inner, [0.1], [3.0])
    one = datafree.train(**nets, data="digits", out=tmp_path / "one", **SHORT)
    two = datafree.train(teacher=nets["teacher"], student=wrapped, data="digits", out=tmp_path / "two", **SHORT)
    assert same(one.student.state_dict(), two.student.state_dict())
    again = datafree.resume(tmp_path / "two", teacher=nets["teacher"], student=wrapped)
    assert same(again.student.state_dict(), one.student.state_dict())


def test_a_run_of_another_job_takes_no_networks(tmp_path: Path, nets: dict[str, Any]) -> None:
    datafree.condense(data="digits", method="random", ipc=1, out=tmp_path / "set", threads=1)
    with pytest.raises(ValueError, match="holds a condense run, which was given no networks: leave them out"):
        datafree.resume(tmp_path / "set", **nets)


def test_what_is_around_a_network_is_left_out(nets: dict[str, Any]) -> None:
    plain = load_model(nets["teacher"], shape=SHAPE)
    for wrapped in (nn.DataParallel(nets["teacher"]), torch.compile(nets["teacher"])):
        assert isinstance(wrapped, nn.Module)
        found = load_model(wrapped, shape=SHAPE)
        assert (found.arch, found.sha256) == ("memory:Own", plain.sha256)
    half = load_model(build_model(nets["teacher"], shape=SHAPE, classes=10).half(), shape=SHAPE)
    assert all(p.dtype == torch.float32 for p in half.network.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_model(Own(), arch="resnet8"), "leave arch out"),
        (lambda: load_model("memory:Own"), "the network Own was given from memory"),
        (lambda: build_model("memory:Own", shape=SHAPE, classes=10), "the network Own was given from memory"),
        (lambda: build_model(Own(), shape=SHAPE, classes=7), r"memory:Own gives an output of shape \(1, 10\)"),
        (
            lambda: load_model(Own(), shape=(3, 8, 8)),
            r"memory:Own gives no logits \(1, classes\) for one image of 3x8x8",
        ),
        (lambda: load_model(Own(), shape=SHAPE, classes=7), "memory:Own has 10 classes"),
        (lambda: load_model(Uncopied(), shape=SHAPE), r"memory:Uncopied cannot be copied \(TypeError\)"),
        (lambda: load_model(nn.Identity()), "memory:Identity has no layer that tells its images' size"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("traced", [False, True])
def test_a_scripted_network_is_refused_in_one_line(traced: bool, nets: dict[str, Any]) -> None:
    made: Any = (lambda net: torch.jit.trace(net, torch.rand(1, *SHAPE))) if traced else torch.jit.script  # type: ignore[no-untyped-call]
    text = "torch.jit.script or torch.jit.trace .*: give the network that it was made from$"
    for role in ("teacher", "student"):
        with pytest.raises(ValueError, match=text):
            dry_run(**{**nets, role: made(nets[role].eval())}, data="digits", **SHORT)


def test_a_network_is_evaluated_as_its_file_is(tmp_path: Path, nets: dict[str, Any]) -> None:
    net, given = nets["student"], dict[str, Any](data="digits", mean=(0.5,), std=(0.5,))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    wanted = datafree.evaluate(tmp_path / "net.pt", arch=net, teacher=nets["teacher"], **given)
    scores = datafree.evaluate(net, teacher=nets["teacher"], **given)
    assert scores.pop("student") == "memory:Own"
    assert scores == {key: value for key, value in wanted.items() if key != "student"}
    assert net.training
    normalised = datafree.evaluate(Normalised(net, (0.5,), (0.5,)), "digits", teacher=nets["teacher"])
    assert normalised["accuracy"] == scores["accuracy"]
    assert normalised["student"] == "memory:Own"


@pytest.mark.parametrize("student", [None, 3, {"weight": 1}])
def test_what_is_no_student_is_not_evaluated(student: Any) -> None:
    text = f"a {type(student).__name__} is no student: give a run folder \\(a result's path\\), a file or the torch.nn"
    with pytest.raises(ValueError, match=text):
        datafree.evaluate(student, "digits")
