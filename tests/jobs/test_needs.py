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
from datafree.distillation.attention import check_maps
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


def probable():
    return nn.Sequential(build_model("resnet8", shape=(1, 8, 8), classes=10), nn.Softmax(1))


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
    torch.save({f"0.{name}": t for name, t in state.items()}, folder / "probable.pt")
    files = {"silent": "box", "foreign": "box", "script": "script", "probable": "probable"}
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


@pytest.mark.parametrize("options", [{"method": "dfq"}, {"method": "noise"}, {"source": "real"}])
def test_a_teacher_that_answers_with_probabilities_is_refused(
    options: dict[str, str], teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    text = refused(tmp_path / "run", **options, **teachers["probable"])
    assert "probable.pt answers with probabilities: its forward must return the logits" in text
    dry_run(method="blackbox", probabilities=True, **{**SHORT, **teachers["probable"]})


def test_a_condensation_refuses_a_teacher_that_answers_with_probabilities(
    teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"teacher": teachers["probable"]["teacher"], "teacher_arch": teachers["probable"]["arch"]}
    with pytest.raises(ValueError, match=r"probable.pt answers with probabilities: its forward must return the logits"):
        datafree.condense(data="digits", method="rded", ipc=1, out=tmp_path / "set", **given)
    data = datafree.load_data("digits")
    some = datafree.CondensedSet(images=torch.rand(10, 1, 8, 8), labels=torch.arange(10), domain=data.domain)
    with pytest.raises(ValueError, match=r"probable.pt answers with probabilities"):
        datafree.evaluate_set(some, data, networks=1, set_labels="teacher", **given)


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


def test_embeddings_are_found_from_any_folder(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.eye(10))
    np.save("onehot", np.eye(10))
    for given, kept in (("rows.npy", str(tmp_path / "rows.npy")), ("onehot", "onehot")):
        about = dry_run(**{**SHORT, "teacher": teacher, "method": "nayer", "embedding": given})
        assert about["method_options"]["embedding"] == kept


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


@pytest.mark.parametrize("options", [{"inherit": True}, {"attention": 1.0}])
def test_a_black_box_gives_nothing_but_answers(options: dict[str, Any], teacher: str, tmp_path: Path) -> None:
    text = refused(tmp_path / "run", teacher=teacher, method="blackbox", **options)
    assert text.startswith(f"--{next(iter(options))} with --method blackbox: ")
    dry_run(teacher=teacher, method="blackbox", inherit=False, attention=0.0, **SHORT)


@pytest.mark.parametrize("method", ["spaceshipnet", "zskt"])
def test_attention_without_common_maps_is_refused_before_a_run(
    method: str, teacher: str, plain_teacher: str, tmp_path: Path
) -> None:
    """An mlp has no maps, as teacher or as student."""
    for options in ({"teacher": plain_teacher}, {"teacher": teacher, "student": "mlp"}):
        with pytest.raises(ValueError, match="--attention: student and teacher have no maps of one size"):
            dry_run(**{**SHORT, "method": method, **options})
        assert dry_run(**{**SHORT, "method": method, "attention": 0.0, **options})


def test_maps_are_looked_for_where_each_network_lies() -> None:
    """A student is on the CPU still when the teacher is on a GPU already; "meta" stands for the other device."""
    networks = [build_model("resnet8", shape=(1, 8, 8), classes=10).to(device) for device in ("meta", "cpu")]
    check_maps(networks[0], networks[1], torch.full((1, 1, 8, 8), 0.5))


def test_looking_for_maps_changes_nothing() -> None:
    networks = [build_model("resnet8", shape=(1, 8, 8), classes=10) for _ in range(2)]
    networks[1].bn1 = torch.nn.Sequential(torch.nn.BatchNorm2d(16).eval(), torch.nn.Dropout(0.5))
    before = [{name: t.clone() for name, t in network.state_dict().items()} for network in networks]
    modes = [[m.training for m in network.modules()] for network in networks]
    state = torch.random.get_rng_state()
    check_maps(networks[0], networks[1], torch.full((1, 1, 8, 8), 0.5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [[m.training for m in network.modules()] for network in networks] == modes
    for network, was in zip(networks, before, strict=True):
        assert all(torch.equal(t, was[name]) for name, t in network.state_dict().items())
        assert not any(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize("options", [{"first_bn": 5.0}, {"bn_momentum": 0.5}])
def test_an_option_of_the_statistics_is_refused_where_the_teacher_has_none(
    options: dict[str, float], plain_teacher: str
) -> None:
    short = {**SHORT, "teacher": plain_teacher, "method": "dfq"}
    with pytest.raises(ValueError, match=f"^--{next(iter(options)).replace('_', '-')}: the teacher has no batch norm"):
        dry_run(**{**short, **options})
    made = dry_run(**short)  # as a run is written down
    assert dry_run(**{**short, **made["method_options"]})["method_options"] == made["method_options"]


@pytest.mark.parametrize("method", ["fast", "cmi", "spaceshipnet", "nayer"])
def test_a_prior_that_nothing_follows_is_refused(method: str, teacher: str, tmp_path: Path) -> None:
    prior = (1.0, *[0.0] * 9)
    text = refused(tmp_path / "run", teacher=teacher, method=method, onehot=0.0, prior=prior)
    assert text == f"--prior: {method} without --onehot makes images of no class in particular; leave it out"
    dry_run(teacher=teacher, method=method, prior=prior, **SHORT)


def test_a_bank_that_nobody_draws_from_is_left_alone(plain_teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.jobs.filling.BANK_BYTES", 64 * 100)
    short = {**SHORT, "teacher": plain_teacher, "method": "noise"}
    made = dry_run(**short)
    assert made["method_options"]["bank"] == 20_000
    assert not any(choice.startswith("bank") for choice in made["choices"])
    assert dry_run(**short, distribution="shapes")["method_options"]["bank"] == 100


@pytest.mark.parametrize(
    ("method", "options", "banks"),
    [("mad", {}, 2), ("mad", {"copy_share": 0.0}, 1), ("blend", {"shapes": 0.5}, 2), ("blend", {"shapes": 0.0}, 1)],
)
def test_all_banks_of_a_method_count(
    method: str, options: dict[str, float], banks: int, plain_teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**SHORT, "teacher": plain_teacher, "method": method, **options}
    small, large = (dry_run(**short, bank=size)["expected_memory_mb"] for size in (10, 1_000_000))
    assert large - small == pytest.approx(64 * banks, abs=1)
    monkeypatch.setattr("datafree.jobs.filling.BANK_BYTES", 64 * 100)
    made = dry_run(**short)
    assert made["method_options"]["bank"] == 100 // banks
    said = {1: "bank: 100 images (0 MB)", 2: "banks: 2 of 50 images each (0 MB)"}
    assert said[banks] in made["choices"]
