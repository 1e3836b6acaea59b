"""Which cells and seeds `reproduce` runs, which it leaves alone, and what it says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import datafree
from datafree.jobs import reproduce, reproducing
from datafree.jobs.cell import run_cell
from datafree.jobs.choosing import choose, parse_shard, spelt
from datafree.jobs.reproducing import preview
from datafree.jobs.scheduling import Scheduler
from datafree.tables import load_table


def test_what_is_to_run_again_is_told_and_left_to_who_holds_the_lock(tiny, tmp_path, monkeypatch, cell_of, stale):
    folder = tmp_path / "out" / "tiny"
    paths = [run_cell(cell_of(tiny, name), 0, folder, keep=True) for name in ("a/one", "a/three")]
    orders: list[tuple[int, bool]] = []

    def run(self: Scheduler, missing: list[Any]) -> list[Any]:
        orders.append((len(missing), self.order["retry"]))
        return []

    monkeypatch.setattr(Scheduler, "run", run)
    reproduce(tiny, out=tmp_path / "out", cells=["a/one", "a/three"])
    stale(paths[0])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said: list[str] = []
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"], say=said.append)
    reproduce(tiny, out=tmp_path / "out", cells=["a/three"], retry=True, say=said.append)
    assert orders == [(0, False), (1, False), (1, True)]
    assert said == [
        "a/one: runs again, its result is of other defaults (weight_decay 0.125, now None); the former one is kept",
        "tiny: 1 cells and seeds, 0 there, 1 to run",
        "tiny: 1 cells and seeds, 0 there, 1 to run",
    ]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "Superseded" in (tmp_path / "out" / "tiny.md").read_text(encoding="utf-8")


def test_nothing_is_run_into_the_package(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(reproducing, "tables_folder", lambda: tmp_path.resolve())
    for job in (reproduce, preview):
        with pytest.raises(ValueError, match=r"--out .*mine is in the package's own .*: give a folder elsewhere"):
            job(tiny, out=tmp_path / "mine")
        with pytest.raises(ValueError, match=r"--out .*datafree is in the package's own"):
            job(tiny, out=Path(datafree.__file__).parent)
        with pytest.raises(ValueError, match=r"--seeds is 1001: give 1 to 1,000"):
            job(tiny, seeds=1001)


@pytest.mark.parametrize(
    ("given", "spelt_"),
    [(" 10M ", "10m"), ("600s", "10m"), ("1h", "60m"), ("1m30", "90s"), ("45", "45s"), ("2s", "2.0s"), (None, None)],
)
def test_a_length_is_spelt_in_one_way(tmp_path, given, spelt_):
    """Or its cells would be other specs, whose results nobody finds again."""
    path = tmp_path / "lengths.toml"
    path.write_text(
        "title = 'x'\n[options]\ndata = 'digits'\n[groups.a]\nbudgets = ['10m', '2.0s']\n[rows.noise]\n",
        encoding="utf-8",
    )
    assert spelt(load_table(path), given) == spelt_


def test_why_a_cell_was_not_run_is_told(tiny, tmp_path):
    said: list[str] = []
    done = reproduce(tiny, out=tmp_path / "out", cells=["c/noise"], say=said.append)
    reason = "its teacher net.pt is not here: name the folder that holds it by --teachers"
    assert done.skipped == (("c/noise, seed 0", reason),)
    assert said[-1] == f"[1/1] c/noise, seed 0: not run: {reason}"
    assert not list((tmp_path / "out" / "tiny" / "runs").iterdir())


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "1/0", ""])
def test_a_shard_is_a_number_below_a_count(text):
    with pytest.raises(ValueError, match="--shard"):
        parse_shard(text)


def test_shards_share_out_cells_and_seeds(tiny, tmp_path):
    def names(**options: Any) -> list[str]:
        return [name for name, _ in preview(tiny, out=tmp_path / "out", cells=["a/*"], seeds=2, **options)]

    shards = [names(shard=f"{n}/4") for n in range(4)]
    assert [len(shard) for shard in shards] == [2, 2, 1, 1]
    assert sorted(name for shard in shards for name in shard) == sorted(names())
    assert len(set(names())) == 6


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


def test_what_the_package_has_a_result_of_can_be_left_out(tiny, tmp_path, monkeypatch, cell_of, stale):
    """A result that failed, or one of other defaults, is none."""
    shipped = tmp_path / "package" / "results" / "tiny"
    monkeypatch.setattr(reproducing, "tables_folder", lambda: tmp_path / "package")
    paths = [run_cell(cell_of(tiny, name), 0, shipped) for name in ("a/one", "a/two", "a/three")]
    stale(paths[1])
    asked: dict[str, Any] = {"out": tmp_path / "out", "cells": ["a/*"]}
    listed = dict(preview(tiny, **asked))
    assert listed.pop("a/one, seed 0").startswith("minutes, to run, the package has ")
    assert listed == {f"a/{name}, seed 0": "minutes, to run" for name in ("two", "three")}
    assert dict(preview(tiny, **asked, missing=True)) == listed


def test_cells_that_are_one_spec_at_a_budget_are_run_once(tiny, tmp_path, monkeypatch):
    text = tiny.read_text(encoding="utf-8").replace('"one", "two"', '"one", "longer", "two"')
    tiny.write_text(text + '\n[rows.longer]\noptions = { arch = "lenet5_half", steps = 9 }\n', encoding="utf-8")
    assert [cell.name for cell in choose(load_table(tiny), ["a/*"], None, [])][-1] == "a/longer"
    run: list[str] = []

    def noted(_: Scheduler, missing: list[Any]) -> list[Any]:
        run.extend(cell.name for cell, _ in missing)
        return []

    monkeypatch.setattr(Scheduler, "run", noted)
    said: list[str] = []
    for asked in (["a/one", "a/longer"], ["a/longer"]):
        reproduce(tiny, out=tmp_path / "out", cells=asked, budget="2s", say=said.append)
    assert run == ["a/one@2s", "a/one@2s"]
    assert said == 2 * [
        "a/longer@2s: at this length one with a/one@2s, which is run for both",
        "tiny: 1 cells and seeds, 0 there, 1 to run",
    ]
    assert preview(tiny, out=tmp_path / "out", cells=["a/longer"], budget="2s") == [
        ("a/one@2s, seed 0", "minutes, to run"), ("a/longer@2s", "one with a/one@2s"),
    ]  # fmt: skip
    page = (tmp_path / "out" / "tiny@2s.md").read_text(encoding="utf-8")
    assert "Not run: one · two · three at 2s" in page


@pytest.mark.slow
def test_a_result_at_another_length_is_not_superseded(tiny, tmp_path):
    for budget in (None, "1s"):
        reproduce(tiny, out=tmp_path / "out", cells=["a/one"], budget=budget)
    reproduce(tiny, out=tmp_path / "out", cells=["a/one"])
    for page in ("tiny.md", "tiny@1s.md"):
        text = (tmp_path / "out" / page).read_text(encoding="utf-8")
        assert text.count("| one |") == 1, page
        assert "Superseded" not in text, page


def test_a_file_that_is_not_the_cells_result_stops_all(tiny, tmp_path, cell_of):
    """Its name says it is, and its spec that it is not: it would be neither shown nor run again."""
    folder = tmp_path / "out" / "tiny"
    path = run_cell(cell_of(tiny, "a/one"), 0, folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"steps": 3', '"steps": 4', 1), encoding="utf-8")
    for job in (reproduce, preview):
        with pytest.raises(ValueError, match=rf"{path}:\d+: hash is .*: remove the file and run the cell again"):
            job(tiny, out=tmp_path / "out", cells=["a/one"])
    path.write_text(text.replace('"table": "tiny"', '"table": "tinier"'), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path}:3: a result of the table 'tinier' among those of 'tiny'"):
        reproduce(tiny, out=tmp_path / "out", cells=["a/two"])
