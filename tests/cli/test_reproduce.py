"""`datafree reproduce`, as a person types it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from datafree.jobs.cell import run_cell
from datafree.jobs.scheduling import Scheduler, full_name
from datafree.tables import load_table

TINY = """\
title = "Tiny"

[groups.a]
title = "A"
job = "pretrain"
options = { data = "digits", steps = 2, threads = 1 }

[rows.half]
options = { arch = "lenet5_half" }

[rows.nonsense]
options = { arch = "torchvision:nonsense" }
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def test_without_a_table_it_lists_them(cli):
    answer = cli("reproduce")
    assert answer.status == 0
    line = next(line for line in answer.out.splitlines() if "digits-smoke" in line)
    assert "6 cells" in line
    assert line.endswith("0 here")


def test_flags_of_a_table_need_one(cli):
    answer = cli("reproduce", "--cell", "a/*", "--retry", "--out", "elsewhere")
    assert answer.status == 2
    assert answer.err == "error: --cell, --retry: of which TABLE? 'datafree reproduce' lists them\n"


def test_a_dry_run_says_what_is_to_run_and_runs_nothing(cli, tiny, tmp_path):
    answer = cli("reproduce", tiny, "--dry-run", "--out", tmp_path / "out")
    assert answer.status == 0
    assert [line.split() for line in answer.out.splitlines()] == [
        ["a/half,", "seed", "0", "minutes,", "to", "run"],
        ["a/nonsense,", "seed", "0", "minutes,", "to", "run"],
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--seeds", 2], ["a/half, seed 0", "a/half, seed 1", "a/nonsense, seed 0", "a/nonsense, seed 1"]),
        (["--seeds", 2, "--shard", "1/3"], ["a/half, seed 1"]),
        (["--budget", "5m"], ["a/half@5m, seed 0", "a/nonsense@5m, seed 0"]),
        (["--cell", "a/half", "--seeds", 2, "--budget", "5m", "--shard", "1/2"], ["a/half@5m, seed 1"]),
    ],
)
def test_a_dry_run_lists_what_the_same_flags_would_run(cli, tiny, tmp_path, monkeypatch, flags, names):
    asked: list[str] = []

    def run(_: Scheduler, missing: list[Any]) -> list[Any]:
        asked.extend(full_name(*each) for each in missing)
        return []

    monkeypatch.setattr(Scheduler, "run", run)
    listed = cli("reproduce", tiny, "--dry-run", "--out", tmp_path / "out", *flags).out.splitlines()
    assert [line.split("  ")[1] for line in listed] == names
    cli("reproduce", tiny, "--out", tmp_path / "out", *flags)
    assert asked == names


def test_a_dry_run_says_what_is_there(cli, tiny, tmp_path):
    folder = tmp_path / "out" / "tiny"
    path, _ = (run_cell(cell, 0, folder) for cell in load_table(tiny).cells)

    def states(*flags: str) -> list[str]:
        listed = cli("reproduce", tiny, "--dry-run", "--out", tmp_path / "out", *flags).out.splitlines()
        return [line.split("  ")[-1] for line in listed]

    done, failed = states()
    assert re.fullmatch(r"minutes, \d+\.\d\d % after \d+ s", done)
    assert re.fullmatch(r"minutes, failed: .*nonsense.*", failed)
    assert states("--retry") == [done, f"{failed}, to run again"]
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "defaults": {**content["defaults"], "ema": 0.125}}), encoding="utf-8")
    assert states() == [f"{done}, to run again", failed]


def test_a_dry_run_of_nothing_says_so(cli, tiny, tmp_path):
    answer = cli("reproduce", tiny, "--dry-run", "--shard", "7/8")
    assert (answer.status, answer.out) == (0, "no cells: --cost, --shard and --missing leave none\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-smok"], "unknown table 'digits-smok'"),
        (["digits-smoke", "--cell", "x/y"], "has no cell 'x/y'"),
        (["digits-smoke", "--shard", "3/2"], "--shard 3/2"),
        (["digits-smoke", "--jobs", "0"], "--jobs is 0"),
        (["digits-smoke", "--jobs", "0", "--dry-run"], "--jobs is 0"),
        (["digits-smoke", "--seeds", "0"], "--seeds is 0"),
        (["digits-smoke", "--budget", "soon"], "--budget is 'soon'"),
        (["digits-smoke", "--cost", "cheap"], "--cost cheap"),
        (["nowhere.toml"], "nowhere.toml cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_status_2(cli, arguments, words):
    answer = cli("reproduce", *arguments)
    assert answer.status == 2
    assert words in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_file_is_no_folder_of_results(cli, tiny, tmp_path, flags):
    (tmp_path / "file").write_text("mine")
    answer = cli("reproduce", tiny, "--out", "file", *flags)
    assert (answer.status, answer.err) == (2, "error: file is a file: give a folder as --out\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_misspelt_option_is_named_with_its_line(cli, tiny):
    tiny.write_text(TINY.replace("steps = 2", "stepps = 2"), encoding="utf-8")
    answer = cli("reproduce", tiny)
    assert answer.status == 2
    assert answer.err == f"error: {tiny}:6: unknown option 'stepps' of pretrain\n"


@pytest.mark.slow
def test_a_table_is_run_and_rendered_and_a_failure_shows(cli, tiny, tmp_path):
    answer = cli("reproduce", tiny, "--out", tmp_path / "out", "--jobs", 2)
    assert answer.status == 1  # a cell failed
    assert "a/half, seed 0: " in answer.out
    assert "a/nonsense, seed 0: failed: " in answer.out
    page = (tmp_path / "out" / "tiny.md").read_text(encoding="utf-8")
    assert "| half | 2 steps | **" in page
    assert "| nonsense | 2 steps | failed: " in page
    again = cli("reproduce", tiny, "--out", tmp_path / "out")
    assert "2 there, 0 to run" in again.out
    assert again.status == 0
