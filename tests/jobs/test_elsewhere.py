"""What a run keeps of paths: it goes on, and is used, from another folder than the one it began in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datafree
from datafree.jobs import record_experts, resume_condense, resume_pretrain

NET = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 90, 3))\n"
TINY: dict[str, Any] = {"data": "npz:four.npz", "threads": 1}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with colour data and a network, which is the present one; beside it an empty one, "other"."""
    rng = np.random.RandomState(0)
    y = np.arange(24) % 3
    x = rng.randint(0, 256, (24, 9, 10, 3)).astype(np.uint8)
    (tmp_path / "home").mkdir()
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "home" / "four.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    (tmp_path / "home" / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def stop(row: Any) -> None:
    raise KeyboardInterrupt


def test_a_condensation(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.jobs.condense_session.LOG_SECONDS", 0.0)
    common: dict[str, Any] = {**TINY, "method": "dm", "ipc": 1, "steps": 2, "arch": "net.py:make", "real_batch": 4}
    with pytest.raises(KeyboardInterrupt):
        datafree.condense(out="set", show=stop, **common)
    monkeypatch.chdir(home.parent / "other")
    result = datafree.resume("../home/set")
    assert (result.metrics["data"], result.set.info["data"]) == (f"npz:{home / 'four.npz'}",) * 2
    assert result.metrics["arch"] == f"{home / 'net.py'}:make"
    scores = datafree.evaluate_set("../home/set", protocol="vico-noaug", networks=1, archs=["mlp"])
    assert scores["split"] == "test"
    # What is handed out names no folder of this machine; alone it does not know where the data lie.
    alone = home.parent / "other" / "alone"
    alone.mkdir()
    for name in ("condensed.safetensors", "card.md"):
        content = (home / "set" / name).read_bytes()
        assert str(home).encode() not in content
        (alone / name).write_bytes(content)
    info = datafree.load_condensed(alone).info
    assert (info["data"], info["arch"]) == ("npz:four.npz", "net.py:make")
    for where in (alone, home):
        monkeypatch.chdir(where)
        with pytest.raises(
            ValueError,
            match=r"^this set is of npz:four.npz, and where that lies here is not known: give data= \(--data\)$",
        ):
            datafree.evaluate_set(alone)


def test_a_pretraining(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.jobs.pretraining.LOG_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        datafree.pretrain(out="net", show=stop, arch="net.py:make", steps=2, **TINY)
    datafree.pretrain(out="plain", arch="mlp", steps=2, **TINY)
    monkeypatch.chdir(home.parent / "other")
    assert datafree.resume("../home/net")["steps"] == 2
    assert datafree.evaluate("../home/plain")["data"] == f"npz:{home / 'four.npz'}"
    (home / "four.npz").rename(home.parent / "other" / "four.npz")
    with pytest.raises(
        ValueError, match=r"^../home/plain is of npz:/.*, and where that lies here is not known: give data="
    ):
        datafree.evaluate("../home/plain")
    assert datafree.evaluate("../home/plain", "npz:four.npz")["data"] == "npz:four.npz"


def test_experts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_experts(out="mine", count=1, epochs=2, every=1, batch_size=12, arch="net.py:make", **TINY)
    common: dict[str, Any] = {**TINY, "method": "mtt", "ipc": 1, "steps": 1, "arch": "net.py:make"}
    datafree.condense(out="set", expert_folder="mine", inner_steps=1, max_start=1, **common)
    about = json.loads(Path("set/run.json").read_text())
    assert about["method_options"]["expert_folder"] == str(home / "mine")
    Path("set/result.json").unlink()
    monkeypatch.chdir(home.parent / "other")
    assert resume_condense("../home/set").metrics["steps"] == 1


def test_names_and_data_without_a_path_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet8").mkdir()  # an architecture all the same
    options: dict[str, Any] = {"method": "rded", "teacher": "resnet8", "ipc": 1, "threads": 1}
    plan = datafree.jobs.dry_run_condense(data="digits", **options)
    assert (plan["config"]["data"], plan["method_options"]["teacher"]) == ("digits", "resnet8")
    images = np.zeros((6, 8, 8), dtype=np.uint8)
    plan = datafree.jobs.dry_run_condense(data=[(image, n % 2) for n, image in enumerate(images)], **options)
    assert plan["config"]["data"] == "dataset"


def test_resume_goes_by_the_runs_own_job(tmp_path: Path) -> None:
    made = datafree.condense(data="digits", method="random", ipc=1, out=tmp_path / "set", threads=1)
    assert datafree.resume(tmp_path / "set").metrics == made.metrics
    done = datafree.pretrain(data="digits", arch="mlp", steps=1, out=tmp_path / "net", threads=1)
    assert datafree.resume(tmp_path / "net") == done == resume_pretrain(tmp_path / "net")
    (tmp_path / "set" / "run.json").write_text('{"job": "sample"}')
    with pytest.raises(ValueError, match="holds a sample run, which is not resumed: start that again"):
        datafree.resume(tmp_path / "set")


@pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
def test_experts_go_into_no_folder_of_other_things(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"holds no experts, but other things .*: give another --out"):
        record_experts(data="digits", arch="mlp", count=1, epochs=1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match="is a file: give a folder as --out"):
        record_experts(data="digits", arch="mlp", count=1, epochs=1, out=tmp_path / name)
