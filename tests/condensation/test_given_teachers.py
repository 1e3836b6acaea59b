"""`rded` and `sre2l` with a trained network from a file instead of one that they train."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import datafree
from datafree.condensation.trained import is_checkpoint
from datafree.jobs import dry_run_condense, resume_condense
from datafree.models.checkpoint import file_sha256
from datafree.teacher import Teacher

TINY: dict[str, Any] = {"data": "digits", "ipc": 1, "arch": "convnet3", "threads": 1}
OWN: dict[str, dict[str, Any]] = {"rded": {"candidates": 5, "crops": 2}, "sre2l": {"steps": 2}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet8 of the digits with a normalisation of its own, as `pretrain` writes it."""
    folder = tmp_path_factory.mktemp("given") / "teacher"
    datafree.pretrain(data="digits", arch="resnet8", steps=20, mean=(0.2,), std=(0.6,), out=folder, threads=1)
    return folder


@pytest.mark.parametrize("method", ["rded", "sre2l"])
def test_a_checkpoint_is_taken_as_it_is(
    method: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any) -> None:
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr("datafree.condensation.trained.train", train)
    monkeypatch.chdir(teacher.parent)
    said: list[str] = []
    plan = dry_run_condense(method=method, teacher="teacher", **OWN[method], **TINY)
    assert plan["beforehand"] == []
    result = datafree.condense(
        method=method, teacher="teacher", out=tmp_path / "set", say=said.append, **OWN[method], **TINY
    )
    file = teacher / "model.safetensors"
    known = {"file": str(teacher), "arch": "resnet8", "sha256": file_sha256(file)}
    assert result.set.info["teacher_file"] == known == plan["teacher_file"]
    assert result.set.info["options"]["teacher"] == str(teacher)
    assert known["sha256"] in (tmp_path / "set" / "card.md").read_text()
    assert "teacher: resnet8 from teacher, with its own normalisation; it is not trained" in said
    network = datafree.load_teacher(str(file)).loaded.network
    logits = Teacher(network, (0.2,), (0.6,))(result.set.decoded()[0])
    torch.testing.assert_close(result.set.labels.softmax(1), logits.softmax(1), rtol=1e-3, atol=1e-4)


def test_a_foreign_file_takes_the_datas_normalisation_and_may_need_its_architecture(
    teacher: Path, tmp_path: Path
) -> None:
    torch.save(load_file(teacher / "model.safetensors"), tmp_path / "best.pth")
    common: dict[str, Any] = {"method": "sre2l", "teacher": str(tmp_path / "best.pth"), **OWN["sre2l"], **TINY}
    with pytest.raises(ValueError, match="name it with --teacher-arch"):
        dry_run_condense(**common)
    plan = dry_run_condense(teacher_arch="resnet8", **common)
    assert any("with the data's normalisation" in line for line in plan["choices"])
    with pytest.raises(ValueError, match="--teacher-arch resnet8 goes with a checkpoint"):
        dry_run_condense(**{**common, "teacher": "resnet8", "teacher_arch": "resnet8"})


def test_a_run_goes_on_with_the_same_file_alone(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.jobs.condense_session.LOG_SECONDS", 0.0)

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "resnet8.safetensors"
    shutil.copy(teacher / "model.safetensors", file)
    with pytest.raises(KeyboardInterrupt):
        datafree.condense(method="sre2l", teacher=str(file), out=tmp_path / "set", show=stop, **OWN["sre2l"], **TINY)
    assert json.loads((tmp_path / "set" / "run.json").read_text())["teacher_file"]["sha256"] == file_sha256(file)
    kept = file.read_bytes()
    datafree.pretrain(data="digits", arch="resnet8", steps=1, out=tmp_path / "other", threads=1)
    shutil.copy(tmp_path / "other" / "model.safetensors", file)
    with pytest.raises(ValueError, match="has changed since the run began"):
        resume_condense(tmp_path / "set")
    file.write_bytes(kept)
    assert resume_condense(tmp_path / "set").metrics["steps"] == 2


def test_teachers_that_do_not_fit_are_refused_before_anything_is_written(teacher: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    datafree.pretrain(data="digits", arch="lenet5", steps=1, out=plain, threads=1)
    cases: list[tuple[str, str, str]] = [
        ("sre2l", str(plain), "has no batch norm"),
        ("rded", "nowhere.pt", "no file nowhere.pt"),
        ("rded", "resnet9", "unknown network 'resnet9'"),
    ]
    for method, name, text in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=text):
            datafree.condense(method=method, teacher=name, out=tmp_path / "set", **OWN[method], **TINY)
        assert not (tmp_path / "set").exists()
    with pytest.raises(ValueError, match=r"lies in --out .*, which is overwritten"):
        datafree.condense(method="rded", teacher=str(teacher), out=teacher, force=True, **OWN["rded"], **TINY)
    assert (teacher / "model.safetensors").exists()
    three = [(torch.zeros(1, 8, 8), n % 3) for n in range(9)]
    with pytest.raises(ValueError, match="has 10 classes"):
        datafree.condense(data=three, method="rded", teacher=str(teacher), ipc=1, out=tmp_path / "set")


def test_what_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("resnet8", "run"):
        Path(name).mkdir()
    assert [name for name in ("run", "./resnet8", "a.pt", "a.safetensors") if not is_checkpoint(name)] == []
    others = ("resnet8", "convnet", "torchvision:resnet18", "timm:resnet18", "net.py:make", "resnet9", "")
    assert [name for name in others if is_checkpoint(name)] == []
