"""What is shown while a job runs: a live line on a terminal, plain lines elsewhere, warnings alone when quiet."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from datafree.cli.display import Display, describe, percent, table

ROW = {
    "step": 40, "seconds": 2.0, "generator/onehot": 1.25, "generator/bn": 12.5, "student/kl": 0.5, "agreement": 0.75,
    "lr": 0.1, "test/accuracy": 0.625, "fraction": 0.25, "seconds_left": 3725.0,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_row_in_a_line() -> None:
    assert describe(ROW) == "agreement 75%  test accuracy 62.5%  onehot 1.25  bn 12.5  kl 0.5"
    assert describe({"step": 1, "student/kl": 0.001234}) == "kl 0.00123"


def test_plain_lines_come_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=False) as display:
        display.say("student: resnet8")
        for _ in range(3):  # the second and third come too soon
            display.show(ROW)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"student: resnet8\n 25%  step 40  {describe(ROW)}  1h02m left\n"


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (0.4, "0s"), (59.4, "59s"), (61, "1m01s"), (7260, "2h01m")])
def test_time_left(capsys: pytest.CaptureFixture[str], seconds: float | None, text: str) -> None:
    with Display(quiet=False) as display:
        display.show({**ROW, "seconds_left": seconds})
    assert capsys.readouterr().err.endswith(f"  {text} left\n")


def test_quiet_shows_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=True) as display:
        display.say("student: resnet8")
        display.show(ROW)
        display.say("warning: near chance")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: near chance\n")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_live_line_keeps_the_time_left_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    long = "warning: " + "a long line that must not be broken " * 5
    with Display(quiet=False) as display:
        display.show(ROW)
        display.say(long)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if "step 40" in line]
    assert lines
    for line in lines:
        assert " 25% 1h02m left step 40  agreement 75%" in re.sub(r" +left", " left", line)
        assert len(line) <= columns
    assert long.rstrip() in shown
    assert ("kl 0.5" in shown) == (columns == 200)


def test_tables_and_percentages() -> None:
    assert table([("a", "1"), ("long", "2")]) == "  a     1\n  long  2"
    assert percent(0.12345) == "12.35%"
    assert percent(None) == "not measured"


@pytest.mark.parametrize("command", ["condense", "pretrain"])
def test_of_several_processes_the_first_alone_prints_the_result(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for rank, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        answer = cli(command, "--steps", 1, "--threads", 1, "--out", f"run-{rank}")
        assert answer.status == 0
        assert bool(answer.out) == printed


def test_of_several_processes_the_first_alone_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, spoken in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with Display(quiet=False) as display:
            display.say("warning: a word")
            display.show(ROW)
        assert bool(capsys.readouterr().err) == spoken
