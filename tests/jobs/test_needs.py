"""What a method needs and the teacher cannot give is one line, before a run begins; a black box is enough for some."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import datafree
from datafree.jobs import dry_run
from datafree.models import build_model

SHORT: dict[str, Any] = {"data": "digits", "student": "resnet8", "steps": 4, "batch_size": 8, "threads": 1}

# Teachers that a person may have: behind no_grad, behind another library, as TorchScript.
TEACHERS = """
import torch
from torch import nn
from datafree.models import build_model


class Box(nn.Module):
    def __init__(self, foreign):
        super().__init__()
        self.inner, self.foreign = build_model("resnet8", shape=(1, 8, 8), classes=10), foreign

    def forward(self, images):
        if self.foreign:
            images = torch.from_numpy(images.numpy())
        with torch.no_grad():
            return self.inner(images)


def silent():
    return Box(False)


def foreign():
    return Box(True)


def script():
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(build_model("resnet8", shape=(1, 8, 8), classes=10).eval(), torch.rand(2, 1, 8, 8))
"""


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Name -> teacher and architecture, all with the same weights."""
    folder = tmp_path_factory.mktemp("needs")
    (folder / "teachers.py").write_text(TEACHERS)
    state = build_model("resnet8", shape=(1, 8, 8), classes=10).state_dict()
    torch.save({f"inner.{name}": t for name, t in state.items()}, folder / "box.pt")
    torch.save(state, folder / "script.pt")
    files = {"silent": "box", "foreign": "box", "script": "script"}
    return {
        name: {"teacher": str(folder / f"{file}.pt"), "arch": f"{folder / 'teachers.py'}:{name}"}
        for name, file in files.items()
    }


def refused(out: Path, **options: Any) -> str:
    """The one line that says why; nothing is written."""
    with pytest.raises(ValueError, match=r".") as caught:
        datafree.train(out=out, **{**SHORT, **options})
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["silent", "foreign"])
@pytest.mark.parametrize("method", ["dfq", "dafl", "nayer"])
def test_a_black_box_is_refused_by_methods_that_need_gradients(
    kind: str, method: str, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    text = refused(tmp_path / "run", method=method, **teachers[kind])
    assert text.startswith(f"--method {method} needs gradients, and the teacher gives none")
    assert text.endswith("take --method blackbox, which asks it for answers alone")


@pytest.mark.parametrize("method", ["blackbox", "noise"])
def test_a_black_box_is_enough_for_methods_that_only_ask(
    method: str, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    narrow = {"latent": 8, "generator_width": 4} if method == "blackbox" else {}
    result = datafree.train(out=tmp_path / "run", method=method, **{**SHORT, **teachers["foreign"], **narrow})
    assert (tmp_path / "run" / "student.safetensors").exists()
    if method == "blackbox":
        # One round: 8 images at two points; 4 student steps of 8 images.
        assert result.metrics["queries"] == 2 * 8 + 4 * 8
        assert json.loads((tmp_path / "run" / "result.json").read_text())["queries"] == 48
    else:
        assert "queries" not in result.metrics


def test_torchscript_gives_gradients_but_shows_no_features(teachers: dict[str, dict[str, str]], tmp_path: Path) -> None:
    narrow = {"latent": 8, "generator_width": 4}
    text = refused(tmp_path / "run", method="dafl", **teachers["script"], **narrow)
    assert (
        text
        == "--activation needs the features before the teacher's last layer, which cannot be seen: give --activation 0"
    )
    datafree.train(out=tmp_path / "run", method="dafl", activation=0.0, **{**SHORT, **teachers["script"], **narrow})
    assert load_file(tmp_path / "run" / "student.safetensors")


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (np.ones((9, 4)), "has 9 rows, the teacher 10 classes: give one a class"),
        (np.ones(10), "give one finite array (classes, D)"),
        (np.full((10, 4), np.nan), "give one finite array (classes, D)"),
        (None, "take teacher, onehot, orthogonal, or a file that exists"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(teacher: str, rows: Any, text: str, tmp_path: Path) -> None:
    if rows is not None:
        np.save(tmp_path / "rows.npy", rows)
    said = refused(tmp_path / "run", teacher=teacher, method="nayer", embedding=str(tmp_path / "rows.npy"))
    assert text in said


def test_what_only_the_method_itself_can_know_is_refused_too(teacher: str, tmp_path: Path) -> None:
    text = refused(tmp_path / "run", teacher=teacher, method="dfq", feed="last", synthesis_batch=6)
    assert text == "--feed last: give --synthesis-batch 8, as the student's batch"


def test_building_a_method_aside_draws_no_random_numbers(teacher: str) -> None:
    after = []
    for method in ("noise", "nayer"):
        torch.manual_seed(1)
        dry_run(teacher=teacher, **SHORT, method=method)
        after.append(torch.rand(1))
    assert torch.equal(*after)


@pytest.mark.parametrize(("given", "wanted"), [({}, (None, 100.0)), ({"steps": 7}, (7, None))])
def test_a_length_goes_before_a_presets(teacher: str, given: dict[str, Any], wanted: tuple[Any, Any]) -> None:
    options = {**SHORT, "method": "nayer", "preset": "official", "teacher": teacher, "bank": 10}
    del options["steps"], options["batch_size"]
    config = dry_run(**{**options, **given})["config"]
    assert (config["steps"], config["epochs"]) == wanted
    assert config["batch_size"] == 512


def test_the_line_names_the_method_and_the_fix(teachers: dict[str, dict[str, str]], tmp_path: Path) -> None:
    text = refused(tmp_path / "run", method="dfq", **teachers["foreign"])
    assert re.search(r"gives none \(RuntimeError: .*\): take --method blackbox", text)
