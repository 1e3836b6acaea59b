"""The benchmark script: the usual way computes the same as the package, and the JSON has the documented fields."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.generators import large, small
from datafree.synthesis import METHODS
from scripts import speed

SCRIPT = Path(__file__).parents[1] / "scripts" / "speed.py"
PAIR = ("wrn10_1", "resnet8")


@pytest.mark.parametrize("make", [small, large])
def test_the_cheaper_generator_equals_the_textbook_one(double: None, make: Any) -> None:
    generator = make(6, (3, 16, 16), 4).to(memory_format=torch.channels_last)
    both: list[Any] = [generator, speed.Textbook(generator)]
    z, target = torch.randn(5, 6), torch.rand(5, 3, 16, 16)
    grids = []
    for network in both:
        images = network(z)
        weights = [block.weight for block in network.blocks]
        gradients = torch.autograd.grad((images - target).square().sum(), weights)
        grids.append((images, *gradients))
    for ours, usual in zip(*grids, strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_ours_and_the_usual_way_make_the_same_round(double: None) -> None:
    """In float64 from the same weights and latents: terms, images and student; two steps of each network."""
    options: dict[str, Any] = {"generator_width": 4, "generator_steps": 1, "student_steps": 1}
    ours = speed.Ours("dfq", PAIR, batch=3, augmented=False, **options)
    usual = speed.Usual(ours)
    for _ in range(2):
        theirs, images = usual.update()
        mine = ours.update("32")
        assert mine.keys() == theirs.keys()
        assert list(mine.values()) == pytest.approx(list(theirs.values()), rel=1e-6)
        torch.testing.assert_close(ours.method.imaging.store.last, images, rtol=0, atol=1e-6)
        # The bank rounds to 1/255 and draws from the same generator as the latents: the student is stepped by hand.
        usual.student_step(images)
        with torch.no_grad():
            target = ours.teacher(images)
        ours.trainer.step({"kl": usual.criterion(ours.student(images), target, ours.temperature)}, 0.0)
    for mine_, theirs_ in zip(ours.student.parameters(), usual.student.parameters(), strict=True):
        torch.testing.assert_close(mine_, theirs_, rtol=0, atol=1e-7)


# The other methods run by the same lines; all of them stand in benchmarks/speed/methods.json.
@pytest.mark.parametrize("method", ["dfq", "dafl", "dfad", "noise", "zeroq", "spaceshipnet"])
def test_a_case_has_the_documented_fields(method: str) -> None:
    case = speed.measure_case(method, PAIR, "32", batch=2, width=2, repeats=1)
    parts = {"generator_step_ms", "pixel_step_ms", "student_step_ms", "image_ms"}
    assert case.keys() == {"method", "teacher", "student", "precision", *parts, "cpu", "peak_memory_mb"}
    assert case["cpu"].keys() == parts
    assert (case["generator_step_ms"] is None) == (method in ("noise", "zeroq"))
    assert (case["pixel_step_ms"] is None) == (method != "zeroq")
    assert case["student_step_ms"] > 0
    assert case["image_ms"] >= 0
    assert case["peak_memory_mb"] > 1


@pytest.mark.slow
def test_a_comparison_has_the_documented_fields() -> None:
    found = speed.compare(PAIR, ["32", "bf16"], batch=2, width=2, repeats=1)
    assert found["round_ms"].keys() == {"usual", "usual_kept", "ours_32", "ours_bf16"}
    for name in ("speedup", "speedup_over_kept"):
        assert found[name].keys() == {"ours_32", "ours_bf16"}
    assert found["difference"]["images"] < 1e-5
    assert found["difference"]["terms"] < 1e-3
    assert found["difference"]["images_after_step"] < found["difference"]["moved_by_step"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods", "dfk"], "dfk"),
        (["--pairs", "wrn16_1"], "TEACHER:STUDENT"),
        (["--pairs", "wrn16_1:resnet9"], "resnet9"),
        (["--precision", "16"], "16"),
        (["--batch", "0"], "--batch"),
        (["--inner", "--condensation"], "not allowed"),
        (["--inner", "--methods", "dfq"], "fast"),  # dfq is no method of that part
    ],
)
def test_wrong_arguments_end_with_a_line(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        speed.main(arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ["--baseline", "speed.py --inner", "speed.py --condensation"]),
        (["--inner"], ["--steps", "cpu_step_ms"]),
        (["--inn"], ["--steps"]),  # argparse takes beginnings of flags
        (["--condensation"], ["--ipc", "iteration_ms"]),
    ],
)
def test_help_shows_the_parts_and_the_part(
    capsys: pytest.CaptureFixture[str], arguments: list[str], texts: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        speed.main([*arguments, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert [text for text in texts if text not in printed] == []


@pytest.mark.slow
def test_the_script_prints_json() -> None:
    command = [sys.executable, str(SCRIPT), "--methods", "dfq", "--pairs", ":".join(PAIR), "--precision", "32"]
    command += ["--batch", "4", "--width", "2", "--repeats", "1", "--baseline"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parents[1])
    report = json.loads(done.stdout)
    assert {"machine", "versions", "settings", "cases", "baseline"} <= report.keys()
    assert len(report["cases"]) == 1
    assert len(report["baseline"]["comparisons"]) == 1
    assert "float32" in report["baseline"]["description"]


def test_the_kept_run_covers_every_method() -> None:
    report = json.loads((SCRIPT.parents[1] / "benchmarks" / "speed" / "methods.json").read_text())
    assert [case["method"] for case in report["cases"]] == list(METHODS)
