"""A cell that is run: its result, its failure, what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datafree import jobs
from datafree.jobs import reproduce, reproducing
from datafree.jobs.cell import NotHereError, run_cell, teacher_options
from datafree.report.compared import read_runs
from datafree.report.comparison import table as compared_table
from datafree.tables import defaults, load_table, read_results


def test_a_cell_is_run_once_and_its_result_names_its_spec(tiny, tmp_path, cell_of):
    cell = cell_of(tiny, "a/one")
    path = run_cell(cell, 0, tmp_path / "out")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["status"] == "done"
    assert content["hash"] == cell.digest(0)
    assert content["result"]["steps"] == 3
    assert [p.name for p in (tmp_path / "out").glob("*.json")] == [path.name]
    assert not list((tmp_path / "out" / "runs").iterdir())
    before = path.stat().st_mtime_ns
    assert run_cell(cell, 0, tmp_path / "out") == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["a/one", "b/noise"])
def test_a_seed_reaches_the_run(name, tiny, tmp_path, cell_of):
    content = json.loads(run_cell(cell_of(tiny, name), 1, tmp_path / "out").read_text(encoding="utf-8"))
    assert [content["seed"], content["result"]["seed"], content["run"]["seed"]] == [1, 1, 1]
    assert content["run"]["config"]["seed"] == 1


def test_a_result_of_other_defaults_is_run_again_and_kept(tiny, tmp_path, cell_of, stale):
    cell = cell_of(tiny, "a/one")
    path = run_cell(cell, 0, tmp_path / "out", keep=True)
    stale(path)
    other = path.read_text(encoding="utf-8")
    begun = (tmp_path / "out" / "runs" / path.stem / "run.json").stat().st_mtime_ns
    assert run_cell(cell, 0, tmp_path / "out", keep=True) == path
    assert path.with_name(f"{path.stem}-old1.json").read_text(encoding="utf-8") == other
    assert json.loads(path.read_text(encoding="utf-8"))["defaults"]["weight_decay"] is None
    assert (tmp_path / "out" / "runs" / path.stem / "run.json").stat().st_mtime_ns > begun  # not the former run
    # The run that --keep handed over is kept beside its result.
    assert (tmp_path / "out" / "runs" / f"{path.stem}-old1" / "run.json").stat().st_mtime_ns == begun
    stale(path)
    run_cell(cell, 0, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*-old*.json")) == [
        f"{path.stem}-old1.json", f"{path.stem}-old2.json",
    ]  # fmt: skip


def test_a_failure_is_run_again_where_that_is_asked_for(tiny, tmp_path, cell_of):
    cell = cell_of(tiny, "a/three")
    before = run_cell(cell, 0, tmp_path / "out").stat().st_mtime_ns
    assert run_cell(cell, 0, tmp_path / "out").stat().st_mtime_ns == before
    assert run_cell(cell, 0, tmp_path / "out", retry=True).stat().st_mtime_ns > before
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def test_a_result_names_the_defaults_from_before_its_run(tiny, tmp_path, monkeypatch, cell_of):
    """Sources that are edited during a run are not what it had."""
    pretrain = jobs.pretrain

    def edited(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setitem(defaults.JOB_DEFAULTS, "pretrain", {"pretraining.py": ("LENGTH",)})
        return pretrain(*arguments, **options)

    monkeypatch.setattr(jobs, "pretrain", edited)
    content = json.loads(run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out").read_text(encoding="utf-8"))
    assert "LENGTH" not in content["defaults"]
    assert "'weight_decay': 0.0005" in content["defaults"]["DEFAULTS"]


def test_a_failure_is_a_result(tiny, tmp_path, cell_of):
    path = run_cell(cell_of(tiny, "a/three"), 0, tmp_path / "out")
    (result,) = read_results(tmp_path / "out")
    assert result.path == path
    assert result.status == "failed"
    assert "nonsense" in result.content["error"]


def test_what_is_not_here_is_no_failure(tiny, tmp_path, cell_of):
    cell = cell_of(tiny, "c/noise")
    with pytest.raises(NotHereError, match=r"its teacher net\.pt is not here: .*--teachers"):
        run_cell(cell, 0, tmp_path / "out", teachers=tmp_path)
    assert not list((tmp_path / "out").glob("*.json"))
    (tmp_path / "net.pt").write_bytes(b"another")
    with pytest.raises(ValueError, match="the table wants 00"):
        teacher_options(cell.teacher, beside=tiny, teachers=tmp_path, download=False)


@pytest.mark.parametrize("where", ["b", "teachers.lenet.pretrain"])
def test_missing_test_data_are_found_before_anything_is_trained(tiny, tmp_path, where, cell_of):
    """Of a distillation: the data that it names, else its teacher's."""
    text = tiny.read_text(encoding="utf-8").replace('data = "digits"\nsteps', "steps")
    text = text.replace("[groups.a]", "[groups.a]\noptions = { lr = 0.1 }")
    if where == "b":
        text = text.replace('student = "lenet5_half", batch', 'data = "mnist", student = "lenet5_half", batch')
    else:
        text = text.replace('pretrain = { data = "digits"', 'pretrain = { data = "mnist"')
    tiny.write_text(text, encoding="utf-8")
    with pytest.raises(NotHereError, match="mnist was not found in"):
        run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))
    assert not (Path.home() / ".cache" / "datafree" / "teachers").exists()


def test_a_run_that_nothing_was_tested_in_is_a_failure(tiny, tmp_path, cell_of):
    """Data that are there, without test images: a number is missing that every page shows."""
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "train.npz", x_train=images, y_train=labels)
    text, data = tiny.read_text(encoding="utf-8"), f'data = "npz:{tmp_path}/train.npz"'
    tiny.write_text(text.replace("batch_size = 8", f"batch_size = 8, {data}"), encoding="utf-8")
    run_cell(cell_of(tiny, "b/noise"), 0, tmp_path / "out")
    (result,) = read_results(tmp_path / "out")
    assert result.status == "failed"
    assert "nothing is evaluated" in result.content["error"]


def test_a_kept_set_holds_its_scores_for_report(tmp_path, sets, cell_of):
    result = run_cell(cell_of(sets, "c/random"), 0, tmp_path / "out", keep=True)
    content = json.loads(result.read_text(encoding="utf-8"))
    assert content["error"] is None
    scores = content["scores"]
    kept = json.loads((tmp_path / "out" / "runs" / result.stem / "evaluation.json").read_text(encoding="utf-8"))
    assert kept["accuracy_mean"] == scores["accuracy_mean"]
    shown = compared_table(read_runs([tmp_path / "out" / "runs" / result.stem]))
    accuracy = dict(zip(shown["heads"], shown["rows"][0], strict=True))["Accuracy"]
    assert accuracy.startswith(f"{100 * scores['accuracy_mean']:.2f} ")


def test_a_set_whose_scoring_failed_is_scored_again_and_not_condensed_again(sets, tmp_path, monkeypatch, cell_of):
    cell, out = cell_of(sets, "c/random"), tmp_path / "out"
    asked: list[int] = []

    def scoring(*_: Any, seed: int, **__: Any) -> Any:
        asked.append(seed)
        if len(asked) == 1:
            raise RuntimeError("out of memory")
        return {"accuracy_mean": 0.5, "accuracy_std": 0.0, "networks": 1, "seconds": 3.0, "archs": {}}

    monkeypatch.setattr(jobs, "evaluate_set", scoring)
    path = run_cell(cell, 1, out)
    assert json.loads(path.read_text(encoding="utf-8"))["error"] == "RuntimeError: out of memory"
    begun = (out / "runs" / path.stem / "condensed.safetensors").stat().st_mtime_ns
    reproducing._tidy([path])
    assert run_cell(cell, 1, out) == path
    assert (out / "runs" / path.stem / "condensed.safetensors").stat().st_mtime_ns == begun
    monkeypatch.setattr(jobs, "condense", None)
    content = json.loads(run_cell(cell, 1, out, retry=True).read_text(encoding="utf-8"))
    assert content["status"] == "done"
    assert asked == [1, 1]  # the run's seed is that of its scoring too
    assert content["seconds"] == pytest.approx(3 + content["result"]["total_seconds"], abs=0.1)  # no sitting's
    assert not (out / "runs" / path.stem).exists()


def test_a_run_that_was_kept_stays(tiny, tmp_path, cell_of):
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder, keep=True)
    run_cell(cell_of(tiny, "a/one"), 0, folder)
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
    assert (folder / "runs" / path.stem / "model.safetensors").is_file()
    path.unlink()  # as messages of a malformed result say
    run_cell(cell_of(tiny, "a/one"), 0, folder)
    assert (folder / "runs" / f"{path.stem}-old1" / "model.safetensors").is_file()


def test_whatever_a_network_of_ones_own_raises_is_a_result(tiny, tmp_path, monkeypatch, cell_of):
    boom: dict[str, Any] = {}
    monkeypatch.setattr(jobs, "pretrain", lambda *_, **__: boom["boom"])
    (result,) = read_results(run_cell(cell_of(tiny, "a/one"), 0, tmp_path / "out").parent)
    assert result.content["error"].startswith("KeyError: 'boom' (test_one_cell.py, line ")


@pytest.mark.parametrize(
    ("group", "name"),
    [("b", "student"), ("a", "arch"), ("d", "teacher")],
)
def test_a_network_in_a_file_is_looked_for_beside_the_table(tiny, tmp_path, monkeypatch, group, name, cell_of):
    text = tiny.read_text(encoding="utf-8").replace('"lenet5_half"', '"nets.py:make"')
    text = text.replace("[rows.one]", '[groups.d]\njob = "condense"\nrows = ["sre2l"]\n[rows.one]')
    (tmp_path / "nets.py").touch()
    tiny.write_text(text + '\n[rows.sre2l]\noptions = { teacher = "nets.py:make" }\n', encoding="utf-8")
    seen: list[str] = []

    def job(config: Any = None, *, out: Path, **options: Any) -> None:
        seen.append(options[name] if config is None else getattr(config, name))
        raise ValueError("enough")

    monkeypatch.setattr(jobs, "train", job)
    monkeypatch.setattr(jobs, "pretrain", job)
    monkeypatch.setattr(jobs, "condense", job)
    monkeypatch.setattr("datafree.jobs.cell.trained_teacher", lambda *_: tmp_path)
    run_cell(cell_of(tiny, {"a": "a/one", "b": "b/noise", "d": "d/sre2l"}[group]), 0, tmp_path / "out")
    assert seen == [f"{tmp_path.resolve()}/nets.py:make"]


def test_networks_in_files_that_judge_a_set_keep_their_names(tmp_path, sets, cell_of):
    sets.write_text(sets.read_text(encoding="utf-8").replace('["mlp"]', '["mlp", "nets.py:make"]'), encoding="utf-8")
    network = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (tmp_path / "nets.py").write_text(network, encoding="utf-8")
    content = json.loads(run_cell(cell_of(sets, "c/random"), 0, tmp_path / "out").read_text(encoding="utf-8"))
    assert list(content["scores"]["archs"]) == ["mlp", "nets.py:make"]
    assert str(tmp_path) not in json.dumps(content)
    reproducing.write_page(load_table(sets), tmp_path / "out", tmp_path / "page.md")
    assert "| mlp | nets.py:make |" in (tmp_path / "page.md").read_text(encoding="utf-8")
