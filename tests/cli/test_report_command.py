"""`datafree report`: what it prints, writes and refuses. For the page see tests/report/test_comparison.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    for name, accuracy in (("a", 0.5), ("b", 0.75)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"job": "pretrain", "config": {"seed": 1}}))
        (tmp_path / name / "result.json").write_text(json.dumps({"accuracy": accuracy, "steps": 10}))
        (tmp_path / name / "metrics.jsonl").write_text("")
    return ["a", "b"]


def test_two_runs_make_a_page(cli: Cli, runs: list[str], tmp_path: Path) -> None:
    answer = cli("report", *runs)
    assert (answer.status, answer.out, answer.err) == (0, "2 runs in report.html\n", "")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "50.00 %" in page
    assert "75.00 %" in page
    assert cli("report", "a", "--out", "one.html").out == "1 run in one.html\n"
    assert cli("report", *runs).status == 0  # its own page is replaced


def test_what_is_left_out_is_told(cli: Cli, runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "b" / "result.json").write_text("{")
    answer = cli("report", *runs, "--out", "x.html")
    assert answer.status == 0
    assert answer.err.startswith("warning: 2 b: result.json could not be read: ")
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("report a nowhere", "nowhere is no run (it is no folder)"),
        ("report a .", "is no run (it holds none of run.json, result.json, metrics.jsonl)"),
        ("report a --out pages/", "pages/ is a folder: name a file in it, pages/report.html"),
        ("report a --out mine.txt", "mine.txt is there, and datafree report did not write it"),
        ("report a --out a", "a is a folder: give a file as --out"),
        ("report a --tensorboard mine.txt", "mine.txt is a file: give a folder as --tensorboard"),
        ("report a --out mine.txt/x.html", "cannot write mine.txt/x.html"),
    ],
)
def test_what_is_refused_is_one_line(cli: Cli, runs: list[str], tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    answer = cli(*line.split())
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert text in answer.err
    assert len(answer.err.splitlines()) == 1
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "report.html").exists()


def test_force_overwrites(cli: Cli, runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert cli("report", "a", "--out", "mine.txt", "--force").status == 0
    assert "<!DOCTYPE html>" in (tmp_path / "mine.txt").read_text(encoding="utf-8")


def test_it_wants_a_run(cli: Cli) -> None:
    answer = cli("report")
    assert answer.status == 2
    assert "Missing argument 'RUN...'" in answer.err
