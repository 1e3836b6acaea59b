"""The job: every method end to end on the digits, resume bit for bit, what is written, several processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

import datafree
from datafree.condensation import ABOUT, METHODS, load_method
from datafree.condensation.synthetic import class_counts
from datafree.config import CondenseConfig
from datafree.data.wrapped import from_dataset
from datafree.fields import fields_of
from datafree.jobs import condense, resume_condense
from datafree.jobs.condensing import dry_run_condense
from datafree.runs import CHECKPOINT

OBJECTIVES = [name for name in METHODS if hasattr(load_method(name), "terms")]
# Two steps of the smallest of everything.
TINY: dict[str, Any] = {"data": "digits", "ipc": 2, "arch": "convnet3", "threads": 1}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a step, so that a test can stop at any."""
    monkeypatch.setattr("datafree.jobs.condense_session.LOG_SECONDS", 0.0)


def test_every_method_says_what_it_is_and_has_defaults_that_fit() -> None:
    assert list(ABOUT) == list(METHODS)
    known = {field.name for field in fields_of(CondenseConfig)}
    for name in METHODS:
        method = load_method(name)
        assert set(method.LOOP) <= known, name
        CondenseConfig(**method.LOOP)
        assert hasattr(method, "terms") != hasattr(method, "build"), name


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_makes_a_set_of_the_digits_in_two_steps(name: str, tmp_path: Path) -> None:
    plan = dry_run_condense(method=name, steps=2, **TINY)
    said: list[str] = []
    result = condense(method=name, steps=2, out=tmp_path / "run", say=said.append, **TINY)
    assert plan["budget"] == result.set.budget()
    assert len(plan["beforehand"]) == sum(line.startswith(("training ", "experts: ")) for line in said)
    assert all(" kept in " in line for line in dry_run_condense(method=name, steps=2, **TINY)["beforehand"])
    images, _ = result.set.decoded()
    assert images.shape[1:] == (1, 8, 8)
    assert result.set.images.min() >= 0
    assert result.set.images.max() <= 1
    assert len(result.set.images) == 20
    if not result.set.soft:  # two steps make no teacher whose labels are to be trusted
        assert torch.bincount(result.set.classes(), minlength=10).min() > 0
    again = datafree.load_condensed(tmp_path / "run")
    assert torch.equal(again.images, result.set.images)
    assert torch.equal(again.labels, result.set.labels)
    assert result.metrics["total_seconds"] + result.metrics["preparation_seconds"] < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_resumes_to_the_last_bit(name: str, tmp_path: Path, power_cut: Any) -> None:
    short = {"outer": 2, "inner": 1} if name in ("dc", "dsa") else {}
    common = {**TINY, "method": name, "steps": 6, **short}
    whole = condense(out=tmp_path / "straight", **common)
    with power_cut(4) as show:
        condense(out=tmp_path / "killed", checkpoint_every=1e-9, show=show, **common)
    assert (tmp_path / "killed" / CHECKPOINT).exists()
    again = resume_condense(tmp_path / "killed")
    assert torch.equal(again.set.images, whole.set.images)
    assert torch.equal(again.set.labels, whole.set.labels)
    assert again.set.learning_rate == whole.set.learning_rate


def test_dm_resumes_to_the_last_bit_with_trained_networks_and_an_average(tmp_path: Path, power_cut: Any) -> None:
    common: dict[str, Any] = {**TINY, "method": "dm", "steps": 6, "nets": "trained", "net_pool": 2, "net_steps": 3}
    common |= {"image_ema": 0.5, "factor": 2, "labels": "hard", "real_batch": 4}
    whole = condense(out=tmp_path / "straight", **common)
    with power_cut(4) as show:
        condense(out=tmp_path / "killed", checkpoint_every=1e-9, show=show, **common)
    again = resume_condense(tmp_path / "killed")
    assert torch.equal(again.set.images, whole.set.images)
    rows = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)), "steps that were run twice are logged twice"


@pytest.mark.parametrize(
    ("method", "options", "needed"),
    [
        ("dm", {"init": "herding"}, 1),
        ("dm", {"labels": "soft", "init": "herding", "factor": 2}, 1),
        ("frepo", {}, 0),
        ("ncfm", {"calibration": 0.0}, 0),
        ("ncfm", {"labels": "soft"}, 1),
        ("random", {"labels": "soft"}, 1),
        ("random", {}, 0),
        ("rded", {}, 1),
        ("rded", {"labels": "hard"}, 1),
    ],
)
def test_a_dry_run_foresees_what_options_need(
    method: str, options: dict[str, Any], needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datafree.condensation.trained.train", lambda *_: None)  # networks as they are initialised
    plan = dry_run_condense(method=method, steps=1, **options, **TINY)
    said: list[str] = []
    result = condense(method=method, steps=1, out=tmp_path / "run", say=said.append, **options, **TINY)
    assert plan["budget"] == result.set.budget()
    assert len(plan["beforehand"]) == sum(line.startswith("training ") for line in said) == needed


@pytest.mark.parametrize(("init", "first"), [("noise", 0), ("real", 2)])
def test_no_grid_shows_the_real_images_that_a_set_begins_with(init: str, first: int, tmp_path: Path) -> None:
    condense(method="dm", init=init, steps=20, out=tmp_path / "run", **{**TINY, "arch": "mlp", "real_batch": 4})
    grids = sorted(path.name for path in (tmp_path / "run" / "images").glob("step-*.png"))
    assert (grids[0], grids[-1]) == (f"step-{first:07d}.png", "step-0000020.png")


def test_what_is_written(tmp_path: Path) -> None:
    result = condense(method="dm", steps=3, factor=2, out=tmp_path / "run", **TINY)
    held = {path.name for path in (tmp_path / "run").iterdir()}
    assert held >= {"run.json", "result.json", "metrics.jsonl", "report.html", "card.md", "condensed.safetensors"}
    folder = ImageFolder(str(tmp_path / "run" / "images"))
    assert folder.classes == [str(i) for i in range(10)]
    assert len(folder) == 20 * 4
    assert [label for _, label in folder.samples] == sorted(result.set.classes().tolist())
    assert any(path.name.startswith("step-") for path in (tmp_path / "run" / "images").iterdir())
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())
    assert metrics["stored_floats"] == 20 * 64
    assert metrics["decoded_images"] == 80
    assert "datafree condense --config run.json" in (tmp_path / "run" / "report.html").read_text()
    card = (tmp_path / "run" / "card.md").read_text()
    assert "1,280" in card
    assert "80 (factor 2)" in card


def test_rerunning_gives_the_same_set_and_another_seed_another(tmp_path: Path) -> None:
    one, two, other = (
        condense(method="dm", steps=2, out=tmp_path / str(i), seed=seed, **TINY).set.images
        for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_any_dataset_and_any_size(tmp_path: Path) -> None:
    x, y = torch.rand(30, 3, 9, 14), torch.arange(30) % 3
    dataset = torch.utils.data.TensorDataset(x, y)
    result = condense(data=dataset, method="dm", ipc=2, steps=2, real_batch=4, out=tmp_path / "run", threads=1)
    assert result.set.images.shape == (6, 3, 9, 14)
    assert result.set.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["dataset", "digits"])
def test_data_of_no_name_are_given_again(name: str, tmp_path: Path, power_cut: Any) -> None:
    """Also where they bear that of others."""
    x, y = (torch.rand(30, 1, 8, 8) * 255).round().div(255), torch.arange(30) % 10
    data = from_dataset(torch.utils.data.TensorDataset(x, y), name=name)
    with power_cut(1) as show:
        condense(data=data, method="dm", ipc=1, steps=3, show=show, out=tmp_path / "run", threads=1)
    again = re.escape(f"datafree.resume('{tmp_path / 'run'}', data=...)")
    with pytest.raises(ValueError, match=again) as caught:
        datafree.resume(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert datafree.resume(tmp_path / "run", data=data).metrics["steps"] == 3


def test_class_counts() -> None:
    assert class_counts([5, 9], 3, None, allow_fewer=False) == [3, 3]
    assert class_counts([100, 300, 600], None, 10, allow_fewer=False) == [1, 3, 6]
    assert class_counts([1, 1, 998], None, 10, allow_fewer=False) == [1, 1, 8]
    assert sum(class_counts([33, 33, 34], None, 50, allow_fewer=False)) == 50
    assert class_counts([2, 9], 3, None, allow_fewer=True) == [2, 3]
    with pytest.raises(ValueError, match="class 0 has 2 images, fewer than the 3 asked for"):
        class_counts([2, 9], 3, None, allow_fewer=False)
    with pytest.raises(ValueError, match="--images 2 for 3 classes"):
        class_counts([9, 9, 9], None, 2, allow_fewer=False)


@pytest.mark.parametrize(("sizes", "label"), [([0, 9, 9], 0), ([9, 0, 9], 1), ([9, 9, 0], 2)])
@pytest.mark.parametrize("allow_fewer", [True, False])
def test_a_class_without_training_images_is_refused(sizes: list[int], label: int, allow_fewer: bool) -> None:
    """Labels from 1, labels with a gap, and a class that the test split alone has."""
    says = f"class {label} has no training image: give it one, or number the classes from 0 without gaps"
    for budget in ((3, None), (None, 6)):
        with pytest.raises(ValueError, match=says):
            class_counts(sizes, *budget, allow_fewer=allow_fewer)


def test_projection_keeps_pixels_and_saving_clips(tmp_path: Path) -> None:
    """With `--clip save` pixels may leave [0, 1] during the run; the set never does."""
    rates: dict[str, Any] = {"image_lr": 50.0, "optimizer": "sgd"}
    for clip in ("step", "save"):
        result = condense(method="dm", steps=2, clip=clip, out=tmp_path / clip, **rates, **TINY)
        assert result.set.images.min() >= 0
        assert result.set.images.max() <= 1
    assert "brought back into [0, 1] on saving" in (tmp_path / "save" / "card.md").read_text()


def test_a_folder_that_is_being_written_is_left_to_its_owner(tmp_path: Path) -> None:
    common: dict[str, Any] = {**TINY, "method": "dm", "steps": 4, "real_batch": 4}
    whole, out, refused = condense(out=tmp_path / "straight", **common), tmp_path / "run", list[str]()

    def show(row: Mapping[str, Any]) -> None:
        if row["step"] == 2:
            acts: tuple[Callable[[], Any], ...] = (
                partial(resume_condense, out),
                partial(condense, out=out, force=True, **common),
            )
            for act in acts:
                # Another process: it seeds none of this one's generators.
                with torch.random.fork_rng(), pytest.raises(ValueError, match="another run is being written") as caught:
                    act()
                refused.append(str(caught.value))

    again = condense(out=out, show=show, **common)
    assert len(refused) == 2
    assert torch.equal(again.set.images, whole.set.images)
    assert not list(out.glob(".*"))


def test_nothing_of_a_set_survives_what_is_made_in_its_place(tmp_path: Path, power_cut: Any) -> None:
    """Else `evaluate` would score the former set of a folder that holds a student now."""
    common: dict[str, Any] = {**TINY, "method": "dm", "steps": 1, "real_batch": 4}
    condense(out=tmp_path, **common)
    (tmp_path / "evaluation.json").write_text("{}")
    with power_cut(1) as show:
        condense(out=tmp_path, force=True, show=show, **common)
    assert not {"condensed.safetensors", "card.md", "evaluation.json"} & {path.name for path in tmp_path.iterdir()}


def test_a_term_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datafree.training import TermError

    method = load_method("dm")
    honest = method.terms

    def terms(self: Any, synthetic: Any) -> Any:
        held = honest(self, synthetic)
        return {name: value * float("nan") for name, value in held.items()}

    monkeypatch.setattr(method, "terms", terms)
    with pytest.raises(TermError, match="'mean' became nan at step 0"):
        condense(method="dm", steps=3, out=tmp_path / "run", **TINY)


# The second processes' shares are of what the first one has alone, but for rounding: small steps keep it small, since
# it grows with them and pixels at 0 or 1 hide it.
EVERY_METHOD = """
import sys
from datafree import parallel
from datafree.condensation import METHODS, load_method
from datafree.jobs import condense, condense_session
condense_session.LOG_SECONDS = 0.0
short = {"outer": 2, "inner": 1, "image_lr": 1e-4}
extra = {"dc": short, "dsa": short, "mtt": {"experts_per_step": 2}}
for name in METHODS:
    options = {"image_lr": 1e-3, **extra.get(name, {})} if hasattr(load_method(name), "terms") else {}
    condense(data="digits", method=name, ipc=2, arch="convnet3", threads=1, device="cpu", steps=2,
             out=f"{sys.argv[1]}/{name}", **options)
parallel.finish()
"""


@pytest.mark.slow
def test_every_method_in_two_processes_gives_what_one_gives(tmp_path: Path) -> None:
    """The images and what is logged: the whole terms, not the first one's share."""
    script = tmp_path / "every.py"
    script.write_text(EVERY_METHOD)
    root = str(Path(__file__).parents[2])
    for size in (1, 2):
        home = tmp_path / f"home{size}"  # where networks and experts are kept: each size trains its own
        home.mkdir()
        env = {**os.environ, "HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
        command = [sys.executable, *launch, str(script), str(tmp_path / str(size))]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    wrong = {name: said for name in METHODS if (said := difference(tmp_path / "1" / name, tmp_path / "2" / name))}
    assert wrong == {}


def difference(one: Path, two: Path) -> str:
    images, others = (load_file(folder / "condensed.safetensors")["images"] for folder in (one, two))
    if not torch.allclose(images, others, rtol=1e-4, atol=1e-5):
        return f"images by {(images - others).abs().max():.1e}"
    if rows(one) != [pytest.approx(row, rel=1e-4) for row in rows(two)]:
        return f"logged {rows(one)} and {rows(two)}"
    return ""


def rows(folder: Path) -> list[dict[str, float]]:
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
