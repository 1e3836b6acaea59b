"""The benchmark of inner loops: the usual way computes the same as the package, and the JSON has its fields."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import speed_inversion as speed

SCRIPT = Path(__file__).parents[1] / "scripts" / "speed.py"
PAIR = ("wrn10_1", "resnet8")
SIZES: dict[str, Any] = {"batch": 3, "width": 2}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", speed.USUAL)
def test_ours_and_the_usual_way_take_the_same_step(method: str, frozen: bool) -> None:
    """In float32, one inner step: each term, and the images that are kept. Unmasked: untrained networks agree on no
    image, and there would be no adversarial term to compare."""
    ours = speed.make(method, PAIR, steps=1, masked=False, **SIZES)
    usual = speed.USUAL[method](ours, frozen=frozen)
    torch.manual_seed(1)
    theirs, images = usual.call()
    torch.manual_seed(1)
    assert ours.update("32") == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(ours.method.store.last, images, rtol=0, atol=1e-5)
    assert abs(theirs["adv"]) > 1e-3
    assert (usual.judges.teacher.network.conv1.weight.grad is None) == frozen


# nayer's rows of classes are float32 whatever the default.
@pytest.mark.parametrize("method", [name for name in speed.USUAL if name != "nayer"])
def test_ours_and_the_usual_way_go_on_alike(double: None, method: str) -> None:
    """In float64, where rounding decides nothing: two calls of two steps, so that all that learns or is remembered is
    part of what is compared."""
    ours = speed.make(method, PAIR, steps=2, masked=False, **SIZES)
    usual = speed.USUAL[method](ours)
    for seed in range(2):
        torch.manual_seed(seed)
        theirs, images = usual.call()
        torch.manual_seed(seed)
        assert ours.update("32") == pytest.approx(theirs, rel=1e-6)
        torch.testing.assert_close(ours.method.store.last, images, rtol=0, atol=1e-6)


def test_a_comparison_has_the_documented_fields() -> None:
    found = speed.compare("fast", PAIR, ["32", "bf16"], repeats=1, steps=1, **SIZES)
    ours = {"ours_32", "ours_bf16"}
    for name in ("step_ms", "cpu_step_ms"):
        assert found[name].keys() == {"usual", "frozen", *ours}
        assert min(found[name].values()) > 0
    for name in ("speedup", "speedup_over_frozen", "cpu_speedup", "cpu_speedup_over_frozen", "difference"):
        assert found[name].keys() == ours
    assert found["difference"]["ours_32"]["terms"] < 1e-4
    assert found["difference"]["ours_32"]["images"] < 1e-5 < found["difference"]["ours_bf16"]["images"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods", "dfq"], "dfq"),
        (["--steps", "0"], "--steps"),
        (["--pairs", "wrn16_1:resnet9"], "resnet9"),
    ],
)
def test_wrong_arguments_end_with_a_line(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        speed.parse(arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_prints_json() -> None:
    command = [sys.executable, str(SCRIPT), "--inner", "--methods", "fast", "--pairs", ":".join(PAIR)]
    command += ["--precision", "32", "--batch", "4", "--width", "2", "--steps", "1", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parents[1])
    report = json.loads(done.stdout)
    assert {"machine", "versions", "settings", "description", "cases"} <= report.keys()
    (case,) = report["cases"]
    assert (case["method"], case["teacher"], case["student"]) == ("fast", *PAIR)
