"""`reproduce`: what is run, what is left alone, and what survives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from datafree.jobs import reproduce
from datafree.jobs.cell import NotHereError, run_cell, teacher_options
from datafree.jobs.reproducing import Scheduler, choose, parse_shard
from datafree.tables import load_table, read_results

TINY = """\
title = "Tiny"

[options]
data = "digits"
steps = 3
threads = 1

[teachers.lenet]
pretrain = { data = "digits", arch = "lenet5", steps = 2 }

[teachers.elsewhere]
file = "net.pt"
sha256 = "00"

[groups.a]
job = "pretrain"
rows = ["one", "two", "three"]

[groups.b]
teacher = "lenet"
rows = ["noise"]
options = { student = "lenet5_half", batch_size = 8 }

[groups.c]
teacher = "elsewhere"
rows = ["noise"]

[rows.one]
options = { arch = "lenet5_half" }

[rows.two]
options = { arch = "lenet5_half", lr = 0.01 }

[rows.three]
options = { arch = "nonsense" }

[rows.noise]
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def cell_of(table: Path, name: str) -> Any:
    return next(cell for cell in load_table(table).cells if cell.name == name)


def test_a_cell_is_run_once_and_its_result_names_its_spec(tiny, tmp_path):
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


def test_a_result_of_other_defaults_is_run_again_and_kept(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder, keep=True)
    asked: list[int] = []

    def run(_: Any, missing: list[Any]) -> list[Any]:
        asked.append(len(missing))
        return []

    monkeypatch.setattr(Scheduler, "run", run)
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
    content = json.loads(path.read_text(encoding="utf-8"))
    content["defaults"]["weight_decay"] = 0.125
    path.write_text(json.dumps(content), encoding="utf-8")
    said: list[str] = []
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"], say=said.append)
    assert asked == [0, 1]
    assert "a/one: runs again, its result is of other defaults (weight_decay 0.125, now None)" in said[0]
    assert [p.name for p in folder.glob("*.json")] == [f"{path.stem}-old1.json"]
    assert not (folder / "runs" / path.stem).exists()  # else the former run would be taken for the new one
    assert "Superseded" in (tmp_path / "out" / "tiny.md").read_text(encoding="utf-8")


def test_a_failure_is_a_result(tiny, tmp_path):
    path = run_cell(cell_of(tiny, "a/three"), 0, tmp_path / "out")
    (result,) = read_results(tmp_path / "out")
    assert result.path == path
    assert result.status == "failed"
    assert "nonsense" in result.content["error"]


def test_a_recipe_teacher_is_trained_once(tiny, tmp_path):
    cell = cell_of(tiny, "b/noise")
    first = teacher_options(cell.teacher, beside=tiny, teachers=None, download=False)["teacher"]
    weights = Path(first) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    content = json.loads(run_cell(cell, 0, tmp_path / "out").read_text(encoding="utf-8"))
    assert content["status"] == "done", content["error"]
    assert content["result"]["teacher"] == "lenet5"
    assert weights.stat().st_mtime_ns == before
    assert content["run"]["config"]["teacher"] == Path(first).name  # no folder of this machine


def test_what_is_not_here_is_no_failure(tiny, tmp_path):
    cell = cell_of(tiny, "c/noise")
    with pytest.raises(NotHereError, match=r"its teacher net\.pt is not here: .*--teachers"):
        run_cell(cell, 0, tmp_path / "out", teachers=tmp_path)
    assert not list((tmp_path / "out").glob("*.json"))
    (tmp_path / "net.pt").write_bytes(b"another")
    with pytest.raises(ValueError, match="the table wants 00"):
        teacher_options(cell.teacher, beside=tiny, teachers=tmp_path, download=False)


def test_an_architecture_in_a_file_is_looked_for_beside_the_table(tmp_path):
    entry = {"source": "torchvision:resnet18", "arch": "nets.py:make", "mean": [0.5]}
    options = teacher_options(entry, beside=tmp_path / "t.toml", teachers=None, download=True)
    assert options == {
        "arch": f"{tmp_path.resolve()}/nets.py:make", "mean": (0.5,),
        "teacher": "torchvision:resnet18", "download": True,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "1/0", ""])
def test_a_shard_is_a_number_below_a_count(text):
    with pytest.raises(ValueError, match="--shard"):
        parse_shard(text)


def test_cells_are_chosen_by_pattern_and_cost(tiny):
    table = load_table(tiny)
    names = [cell.name for cell in choose(table, ["a/*", "b/noise"], None, ["hours"])]
    assert names == ["a/one", "a/two", "a/three", "b/noise"]
    assert choose(table, [], None, ["gpu"]) == []
    assert [cell.name for cell in choose(table, ["a/one"], "2s", [])] == ["a/one@2s"]
    with pytest.raises(ValueError, match=r"tiny has no cell 'd/\*': take GROUP/ROW of a/one"):
        choose(table, ["d/*"], None, [])
    with pytest.raises(ValueError, match="--budget is"):
        choose(table, ["a/one"], "soon", [])


@pytest.mark.slow
def test_shards_side_by_side_make_the_same_results_as_one(tiny, tmp_path):
    lines: list[str] = []
    whole = reproduce(tiny, out=tmp_path / "whole", cells=["a/*", "b/*"], seeds=2, jobs=2, say=lines.append)
    assert (whole.run, whole.found, whole.failed) == (8, 0, 2)
    assert lines[0] == "tiny: 8 cells and seeds, 0 there, 8 to run"
    for shard in ("0/2", "1/2"):
        reproduce(tiny, out=tmp_path / "parts", cells=["a/*", "b/*"], seeds=2, shard=shard)
    again = reproduce(tiny, out=tmp_path / "parts", cells=["a/*", "b/*"], seeds=2)
    assert (again.run, again.found) == (0, 8)
    assert figures(tmp_path / "whole" / "tiny") == figures(tmp_path / "parts" / "tiny")
    skipped = reproduce(tiny, out=tmp_path / "whole").skipped
    assert [name for name, _ in skipped] == ["c/noise, seed 0"]
    assert "| one | 3 steps | **" in whole.page.read_text(encoding="utf-8")
    assert "failed: " in whole.page.read_text(encoding="utf-8")


def figures(folder: Path) -> dict[str, Any]:
    """What a result says, without what the clock says."""

    def plain(held: Any) -> Any:
        if isinstance(held, dict):
            return {k: plain(v) for k, v in held.items() if "seconds" not in k and "peak" not in k}
        return held

    return {
        r.path.name: (r.status, plain(r.content["result"]), plain(r.content["scores"])) for r in read_results(folder)
    }


@pytest.mark.slow
def test_the_smoke_table_survives_being_killed_and_is_then_the_same(tmp_path):
    command = [sys.executable, "-m", "datafree", "reproduce", "digits-smoke", "--out"]
    draw = random.Random(0)
    while True:  # killed at three random moments, then left alone
        kills = len(list(tmp_path.glob("kill*")))
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        if kills == 3:
            assert process.wait(400) == 0
            break
        time.sleep(draw.uniform(8, 30))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (tmp_path / f"kill{kills}").touch()
    assert subprocess.run([*command, str(tmp_path / "whole")], check=False, capture_output=True).returncode == 0
    assert figures(tmp_path / "killed" / "digits-smoke") == figures(tmp_path / "whole" / "digits-smoke")
    begun = time.monotonic()
    done = subprocess.run([*command, str(tmp_path / "whole")], check=False, capture_output=True, text=True)
    assert time.monotonic() - begun < 10
    assert "6 there, 0 to run" in done.stdout
