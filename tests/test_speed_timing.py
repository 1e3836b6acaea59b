"""What the benchmark scripts share: figures of turns that are written out here, child processes, flags."""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import pytest

from scripts import timing
from scripts.timing import PROCESSOR, WALL

# (wall, processor) of three turns. The second one met another program, which slowed everything.
TURNS: list[timing.Turn] = [
    {"usual": (60.0, 50.0), "ours_32": (30.0, 25.0), "ours_bf16": (20.0, 10.0)},
    {"usual": (90.0, 60.0), "ours_32": (60.0, 20.0), "ours_bf16": (36.0, 24.0)},
    {"usual": (80.0, 40.0), "ours_32": (20.0, 16.0), "ours_bf16": (25.0, 8.0)},
]


def test_medians_are_of_one_clock_and_by_the_step() -> None:
    assert timing.median(TURNS, "usual", PROCESSOR) == 50
    assert timing.medians(TURNS, WALL) == {"usual": 80.0, "ours_32": 30.0, "ours_bf16": 25.0}
    assert timing.medians(TURNS, PROCESSOR, steps=3) == {"usual": 16.7, "ours_32": 6.7, "ours_bf16": 3.3}


def test_a_ratio_is_the_median_within_the_turns() -> None:
    """By the wall clock 2, 1.5 and 4, and 3, 2.5 and 3.2; of the medians it would be 2.67 and 3.2."""
    assert timing.ratios(TURNS, "usual", WALL) == {"ours_32": 2.0, "ours_bf16": 3.0}
    assert timing.ratios(TURNS, "usual", PROCESSOR) == {"ours_32": 2.5, "ours_bf16": 5.0}
    assert timing.ratios(TURNS[1:2], "ours_32", WALL, digits=3) == {"ours_32": 1.0, "ours_bf16": 1.667}


def test_turns_go_round() -> None:
    acted: list[str] = []
    turns = timing.take_turns({name: partial(acted.append, name) for name in ("a", "b")}, 3)
    assert acted == ["a", "b"] * 3
    assert [list(turn) for turn in turns] == [["a", "b"]] * 3


def test_the_wall_clock_counts_sleep_and_the_processor_does_not() -> None:
    wall, processor = timing.times(lambda: time.sleep(0.1))
    assert wall > 99
    assert processor < 50


def test_a_child_gets_the_case_and_answers_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "child.py"
    script.write_text("import json, sys\nprint(json.dumps({'argv': sys.argv[1:]}))\n")
    case = {"method": "dm", "ipc": 1}
    found = timing.in_child(str(script), case, 2)
    assert found["argv"][:3] == ["--threads", "2", "--case"]
    assert json.loads(found["argv"][3]) == case
    assert json.loads(capsys.readouterr().err) == case  # what runs is said beside the report


def test_flags_are_read_as_what_they_mean() -> None:
    parser = timing.common_flags("About.", ["dm", "dc"], repeats=3)
    timing.pair_flags(parser)
    args = parser.parse_args(["--methods", "dc", "--pairs", "resnet20:resnet8,wrn16_1:resnet8", "--case", '{"a": [1]}'])
    assert (args.methods, args.precision, args.repeats, args.threads) == (["dc"], ["32", "bf16"], 3, 1)
    assert args.pairs == [("resnet20", "resnet8"), ("wrn16_1", "resnet8")]
    assert args.case == {"a": [1]}
    assert parser.parse_args([]).methods == ["dm", "dc"]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_counts_begin_at_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="1 or more"):
        timing.count(text)


@pytest.mark.parametrize("text", ["resnet8", "resnet20:resnet8,", "resnet20:resnet8:resnet8", "resnet20:"])
def test_a_pair_is_two_names(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"TEACHER:STUDENT|is unknown"):
        timing.pairs(text)


def test_a_device_that_is_not_there_ends_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = timing.common_flags("About.", ["dm"], repeats=3)
    assert parser.parse_args([]).device == "cpu"
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--device", "cuda:99"])
    assert stopped.value.code == 2
    assert "--device cuda:99 is not there: take cpu" in capsys.readouterr().err
