"""A table's teachers: trained once by a recipe, or found beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datafree import jobs
from datafree.jobs.cell import NotHereError, data_state, run_cell, teacher_options, trained_teacher


def test_a_recipe_teacher_is_trained_once(tiny, tmp_path, cell_of):
    cell = cell_of(tiny, "b/noise")
    first = teacher_options(cell.teacher, beside=tiny, teachers=None, download=False)["teacher"]
    weights = Path(first) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    content = json.loads(run_cell(cell, 0, tmp_path / "out").read_text(encoding="utf-8"))
    assert content["status"] == "done", content["error"]
    assert content["result"]["teacher"] == "lenet5"
    assert weights.stat().st_mtime_ns == before
    assert content["run"]["config"]["teacher"] == Path(first).name  # no folder of this machine


def test_a_recipe_teacher_is_of_its_data_and_of_todays_defaults(tmp_path, monkeypatch):
    made: list[Path] = []

    def pretrain(config: Any, *, out: Path, force: bool) -> None:
        made.append(out)
        out.mkdir(parents=True)
        (out / "result.json").write_text("{}")

    monkeypatch.setattr("datafree.jobs.cell.cache_folder", lambda: tmp_path)
    monkeypatch.setattr(jobs, "pretrain", pretrain)
    file = tmp_path / "d.npz"
    recipe = {"data": f"npz:{file}", "arch": "mlp"}
    file.write_bytes(b"one")
    assert trained_teacher(recipe) == trained_teacher(recipe)
    file.write_bytes(b"other")
    trained_teacher(recipe)
    monkeypatch.setattr("datafree.jobs.cell.defaults_of", lambda *_: {"lr": 7})
    trained_teacher(recipe)
    for content in (None, "one", "other"):  # of no such file the training itself tells
        if content is not None:
            (tmp_path / "nets.py").write_text(content)
        trained_teacher({"arch": f"{tmp_path}/nets.py:make"})
    assert len(made) == len(set(made)) == 6


def test_the_state_of_data_sees_pictures_behind_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    states = [data_state(f"imagefolder:{tmp_path}/data")]
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"one")
    states.append(data_state(f"imagefolder:{tmp_path}/data"))
    assert states[0] != states[1]


def test_a_network_by_a_teachers_recipe_is_the_teacher(tiny, tmp_path, monkeypatch, cell_of):
    cell, pretrain = cell_of(tiny, "a/one"), jobs.pretrain
    trained: list[Path] = []

    def noted(*arguments: Any, out: Path, **more: Any) -> Any:
        trained.append(out)
        return pretrain(*arguments, out=out, **more)

    monkeypatch.setattr(jobs, "pretrain", noted)
    teacher = trained_teacher(cell.options)
    path = run_cell(cell, 0, tmp_path / "out", recipes=[cell.options])
    assert trained == [teacher]
    kept = json.loads((teacher / "result.json").read_text(encoding="utf-8"))
    assert json.loads(path.read_text(encoding="utf-8"))["result"]["accuracy"] == kept["accuracy"]
    run_cell(cell, 1, tmp_path / "out", recipes=[cell.options])
    assert len(trained) == 2


@pytest.mark.parametrize("arch", ["nets.py:make", "~/nets.py:make"])
def test_an_architecture_in_a_file_is_looked_for_beside_the_table(tmp_path, monkeypatch, arch):
    folder = tmp_path / "home" if "~" in arch else tmp_path.resolve()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    entry = {"source": "torchvision:resnet18", "arch": arch, "mean": [0.5]}
    options = teacher_options(entry, beside=tmp_path / "t.toml", teachers=None, download=True)
    assert options == {
        "arch": f"{folder}/nets.py:make", "mean": [0.5], "teacher": "torchvision:resnet18", "download": True,
    }  # fmt: skip


def test_a_teachers_recipe_finds_its_network_beside_the_table_too(tiny, tmp_path, monkeypatch, cell_of):
    text = tiny.read_text(encoding="utf-8").replace('"lenet5"', '"nets.py:make"')
    (tmp_path / "nets.py").touch()
    tiny.write_text(text.replace('"lenet5_half" }', '"nets.py:make", steps = 2 }', 1), encoding="utf-8")
    seen: list[Any] = []

    def trained(recipe: Any, *_: Any) -> Path:
        seen.append(recipe["arch"])
        raise NotHereError("enough")

    monkeypatch.setattr("datafree.jobs.cell.trained_teacher", trained)
    own = cell_of(tiny, "a/one")
    for cell in (cell_of(tiny, "b/noise"), own):
        with pytest.raises(NotHereError, match="enough"):
            run_cell(cell, 0, tmp_path / "out", recipes=[own.options])
    assert seen == [f"{tmp_path.resolve()}/nets.py:make"] * 2
