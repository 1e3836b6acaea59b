"""The benchmark of condensation: the usual way computes the same as ours, and the JSON has the documented fields."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.condensation import experts, initial, setting
from datafree.domain import Domain
from datafree.evaluation import accuracy, networks
from scripts import speed_condensation as speed
from scripts import timing

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = Domain(name="small", shape=(1, 16, 16), classes=2, mean=(0.3,), std=(0.35,), flip=False)
SIZES: dict[str, dict[str, Any]] = {
    "dm": {"ipc": 2, "real_batch": 3, "images": 20},
    "dc": {"ipc": 2, "real_batch": 3, "images": 20},
    "mtt": {"ipc": 2, "images": 20, "inner_steps": 2},
    "evaluate": {"ipc": 2, "networks": 2, "steps": 2},
}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """float64: in float32, rounding that moves a ReLU's input over zero would make differences of a per cent."""
    for module in (setting, initial, experts, networks, accuracy, speed):
        monkeypatch.setattr(module, "to_float", lambda images: images.to(torch.float64) / 255)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", SIZES)
def test_ours_and_the_usual_way_compute_the_same(double: None, tmp_path: Path, method: str) -> None:
    """Two looks: the second one starts from where the first step left the set."""
    names = ("usual", "ours_32")
    usual, ours = (speed.make_case(method, name, tmp_path, domain=SMALL, **SIZES[method]) for name in names)
    first = usual.look()
    assert speed.distances(ours.look(), first) == pytest.approx(dict.fromkeys(first, 0.0), abs=1e-10)
    second = usual.look()
    assert speed.distances(ours.look(), second) == pytest.approx(dict.fromkeys(second, 0.0), abs=1e-9)
    if method != "evaluate":
        assert min(speed.distances(first, second).values()) > 1e-3, "the set has not moved"


@pytest.mark.parametrize("method", ["dm", "evaluate"])
def test_a_comparison_has_the_documented_fields(method: str) -> None:
    found = speed.compare(method, ["32", "bf16"], repeats=1, domain=SMALL, **SIZES[method])
    assert found.keys() == {"iteration_ms", "speedup", "cpu_ms", "cpu_speedup", "difference"}
    for name in ("iteration_ms", "cpu_ms"):
        assert found[name].keys() == {"usual", "ours_32", "ours_bf16"}
        assert min(found[name].values()) > 0
    for name in ("speedup", "cpu_speedup", "difference"):
        assert found[name].keys() == {"ours_32", "ours_bf16"}
    (second,) = found["difference"]["ours_32"].keys() - {"loss"}
    assert found["difference"]["ours_32"][second] < found["difference"]["ours_bf16"][second] < 0.2


def test_memory_is_of_the_process() -> None:
    found = speed.memory("dm", "ours_32", domain=SMALL, **SIZES["dm"])
    assert 1 < found["start"] <= found["peak"]


def test_a_case_is_put_together_from_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """mtt's memory at each number of steps, from children that are told apart by what they are asked for."""

    def child(script: str, case: dict[str, Any], threads: int) -> dict[str, Any]:
        if "variant" not in case:
            return {"speedup": {"ours_32": 2.0}}
        peak = 100.0 + case.get("inner_steps", 10) * (9 if case["variant"] == "usual" else 1)
        return {"start": 100.0, "peak": peak}

    monkeypatch.setattr(timing, "in_child", child)
    found = speed.measure("mtt", 1, ["32"], 3, {"real_batch": 4}, 1)
    assert found["peak_memory_mb"] == {"usual": 190.0, "ours_32": 110.0}
    assert found["unrolled"]["peak_memory_mb"] == {
        10: {"usual": 190.0, "ours_32": 110.0},
        50: {"usual": 550.0, "ours_32": 150.0},
    }
    assert found["unrolled"]["rise_mb"] == {"usual": 360.0, "ours_32": 40.0}
    assert found["unrolled"]["copies_mb"] == 50.8  # 40 copies of 317,706 numbers of 4 bytes
    assert "unrolled" not in speed.measure("dm", 1, ["32"], 3, {"real_batch": 4}, 1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods", "dk"], "dk"),
        (["--ipc", "1,x"], "--ipc"),
        (["--ipc", "0"], "--ipc"),
        (["--precision", "16"], "16"),
        (["--real-batch", "0"], "--real-batch"),
    ],
)
def test_wrong_arguments_end_with_a_line(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        speed.parse(arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_prints_json() -> None:
    command = [sys.executable, str(SCRIPTS / "speed.py"), "--condensation", "--methods", "dm", "--ipc", "1"]
    command += ["--precision", "32", "--real-batch", "2", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPTS.parent)
    report = json.loads(done.stdout)
    assert {"machine", "versions", "settings", "description", "cases"} <= report.keys()
    assert "random" in report["settings"]["data"]
    (case,) = report["cases"]
    assert (case["method"], case["ipc"]) == ("dm", 1)
    assert case["peak_memory_mb"].keys() == case["start_memory_mb"].keys() == {"usual", "ours_32"}
