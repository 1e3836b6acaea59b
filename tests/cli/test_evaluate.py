"""`datafree evaluate` of sets: options that a set has no use for are refused, the others arrive."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.data.condensed import CondensedSet, to_bytes
from datafree.domain import DOMAINS
from datafree.jobs.machine import find_device

Cli = Callable[..., Any]


@pytest.fixture
def a_set(cli: Cli) -> str:
    """A folder with one image of each digit that has a learned rate."""
    condensed = CondensedSet(
        images=torch.rand(10, 1, 8, 8), labels=torch.arange(10), domain=DOMAINS["digits"], learning_rate=0.03,
        info={"method": "mtt", "data": "digits", "validation": False},
    )  # fmt: skip
    Path("set").mkdir()
    Path("set/condensed.safetensors").write_bytes(to_bytes(condensed))
    return "set"


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The rates that networks were to be trained at in the protocol's place; they stay as they are made."""
    seen: list[float | None] = []

    def train_networks(make: Any, *_: Any, count: int, lr: float | None, **__: Any) -> list[Any]:
        seen.append(lr)
        return [make().eval() for _ in range(count)]

    monkeypatch.setattr("datafree.evaluation.condensed.train_networks", train_networks)
    return seen


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--mean", ".1"), "--mean"),
        (("--std", ".5", "--space", "normalised"), "--space, --std"),
        (("--space", "pixel"), "--space"),
    ],
)
def test_a_set_says_its_own_normalisation(
    cli: Cli, a_set: str, flags: tuple[str, ...], named: str, rates: list[float | None]
) -> None:
    answer = cli("evaluate", a_set, "--seeds", 1, "--arch", "mlp", *flags)
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith(f"error: set says its own normalisation, and {named} is for --images: ")
    assert len(answer.err.splitlines()) == 1
    assert not rates


def test_space_is_for_sets(cli: Cli) -> None:
    Path("run").mkdir()
    answer = cli("evaluate", "run", "--space", "pixel")
    assert answer.status == 2
    assert "run is no condensed set, and --space is for sets: leave it out" in answer.err


def test_nothing_is_neither_a_set_nor_a_student(cli: Cli) -> None:
    for flags in (("--protocol", "vico"), ()):
        answer = cli("evaluate", "nowhere", *flags)
        assert (answer.status, answer.out) == (2, "")
        assert answer.err.startswith("error: there is nothing at nowhere: name a condensed set")
        assert len(answer.err.splitlines()) == 1
    assert "torchvision:resnet18 is no condensed set" in cli("evaluate", "torchvision:resnet18", "--seed", 1).err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seed", 0), "--seed"),
        (("--precision", "32"), "--precision"),
        (("--precision", "bf16", "--seed", 3, "--seeds", 2), "--precision, --seed, --seeds"),
    ],
)
def test_a_student_is_not_trained(cli: Cli, teacher: Path, flags: tuple[object, ...], named: str) -> None:
    """So nothing is drawn, and no arithmetic can be chosen: what was given would go unread."""
    answer = cli("evaluate", teacher, *flags)
    assert (answer.status, answer.out) == (2, "")
    assert f"is no condensed set, and {named} is for sets: leave it out" in answer.err
    assert len(answer.err.splitlines()) == 1


def test_a_set_is_scored_with_the_seed_and_the_arithmetic(cli: Cli, a_set: str, rates: list[float | None]) -> None:
    for flags, wanted in (((), (0, "32")), (("--seed", 3, "--precision", "bf16"), (3, "bf16"))):
        scores = json.loads(cli("evaluate", a_set, "--seeds", 1, "--arch", "mlp", "--json", *flags).out)
        assert (scores["seed"], scores["precision"]) == wanted


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--teacher-mean", ".5"), "--teacher-mean describes"),
        (("--teacher-arch", "mlp", "--teacher-std", ".5"), "--teacher-arch, --teacher-std describe"),
    ],
)
def test_what_describes_a_teacher_needs_one(
    cli: Cli, a_set: str, teacher: Path, flags: tuple[object, ...], named: str
) -> None:
    for what in (a_set, teacher):
        answer = cli("evaluate", what, *flags)
        assert (answer.status, answer.out) == (2, "")
        assert answer.err == f"error: {named} the file of --teacher: give that too, or leave it out\n"


def test_a_teacher_is_for_protocols_that_ask_it(cli: Cli, a_set: str, teacher: Path, rates: list[float | None]) -> None:
    answer = cli("evaluate", a_set, "--teacher", teacher, "--protocol", "vico")
    assert (answer.status, answer.out) == (2, "")
    said = "trains on the set's own labels: leave --teacher out, or give --set-labels teacher"
    assert answer.err == f"error: protocol vico {said}\n"
    assert not rates


def test_a_protocol_of_a_teachers_labels_names_the_flag(cli: Cli, a_set: str) -> None:
    answer = cli("evaluate", a_set, "--protocol", "rded", "--seeds", 1)
    assert (answer.status, answer.out) == (2, "")
    assert "trains on a teacher's labels: give a teacher, --teacher FILE" in answer.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ((), "1 network, test images\n"),
        (("--set-labels", "own"), "1 network, test images\n"),
        (("--set-labels", "hard"), "1 network, test images, hard labels\n"),
    ],
)
def test_whose_labels_is_said(
    cli: Cli, a_set: str, rates: list[float | None], flags: tuple[str, ...], shown: str
) -> None:
    answer = cli("evaluate", a_set, "--seeds", 1, "--arch", "mlp", *flags)
    assert answer.status == 0, answer
    assert shown in answer.out


def test_a_teachers_labels_by_command(cli: Cli, a_set: str, teacher: Path, rates: list[float | None]) -> None:
    answer = cli("evaluate", a_set, "--seeds", 1, "--arch", "mlp", "--set-labels", "teacher", "--teacher", teacher)
    assert answer.status == 0, answer
    assert "1 network, test images, a teacher's labels of set and random images\n" in answer.out
    refused = cli("evaluate", a_set, "--set-labels", "teacher")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == "error: --set-labels teacher: give the teacher, --teacher FILE\n"
    student = cli("evaluate", teacher, "--set-labels", "hard", "--rank")
    assert (student.status, student.out) == (2, "")
    assert "--rank, --set-labels is for sets: leave it out" in student.err


def test_dd_rankings_scores_by_command(cli: Cli, a_set: str, rates: list[float | None]) -> None:
    names = [
        f"{name}_{what}"
        for what in ("mean", "std")
        for name in (
            "hard_label_recovery", "improvement_over_random", "label_robust_score", "augmentation_robust_score",
        )
    ]  # fmt: skip
    flags = ("evaluate", a_set, "--seeds", 2, "--arch", "mlp", "--protocol", "ddranking")
    scores = json.loads(cli(*flags, "--json").out)
    assert not set(names) & set(scores)
    scores = json.loads(cli(*flags, "--rank", "--json").out)
    assert [name for name in names if not isinstance(scores[name], float)] == []
    assert scores["ranking_accuracies"]["full_hard"] == [scores["whole_accuracy"]] * 2
    answer = cli(*flags, "--rank")
    for shown in (
        "hard-label recovery", "improvement over random", "label-robust score", "augmentation-robust score",
    ):  # fmt: skip
        (line,) = [line for line in answer.out.splitlines() if line.strip().startswith(shown)]
        assert re.search(r" -?0\.\d{3} ± 0\.\d{3}$", line)
    refused = cli("evaluate", a_set, "--rank")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.endswith("not DD-Ranking's: give --protocol ddranking, or leave --rank out\n")


@pytest.mark.parametrize(("seeds", "shown"), [(1, "1 network, test images"), (2, "2 networks, test images")])
def test_one_network_has_no_spread(cli: Cli, a_set: str, rates: list[float | None], seeds: int, shown: str) -> None:
    answer = cli("evaluate", a_set, "--seeds", seeds, "--arch", "mlp")
    assert answer.status == 0, answer
    assert shown in answer.out
    assert answer.out.count("±") == (2 if seeds > 1 else 0)
    assert answer.err.count(f"network {seeds} of {seeds}: ") == 2


@pytest.mark.parametrize("flags", [(), ("--device", "auto"), ("--device", "cpu")])
def test_a_device_is_found(cli: Cli, teacher: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def found(name: str) -> torch.device:
        seen.append(name)
        return find_device(name)

    monkeypatch.setattr("datafree.jobs.scoring.find_device", found)
    answer = cli("evaluate", teacher, *flags, "--json")
    assert answer.status == 0, answer
    assert json.loads(answer.out)["images"] == 355
    assert seen == [flags[1] if flags else "auto"]


@pytest.mark.parametrize(("flags", "rate"), [((), 0.03), (("--set-lr", 0.05), 0.05)])
def test_the_rate_of_the_set_can_be_replaced(
    cli: Cli, a_set: str, flags: tuple[object, ...], rate: float, rates: list[float | None]
) -> None:
    answer = cli("evaluate", a_set, "--seeds", 1, "--arch", "mlp", "--validation", "--json", *flags)
    assert answer.status == 0, answer
    scores = json.loads(answer.out)
    assert (scores["lr"], scores["left_out"], scores["split"]) == (rate, False, "validation")
    assert rates == [rate, None]
    assert answer.err.startswith("warning: this set was condensed from all training images")


def test_a_foreign_set_has_the_rate_that_is_given(cli: Cli, rates: list[float | None]) -> None:
    torch.save(torch.rand(10, 1, 8, 8), "images.pt")
    torch.save(torch.arange(10), "labels.pt")
    files = ("evaluate", "--images", "images.pt", "--labels", "labels.pt", "--data", "digits", "--seeds", 1, "--json")
    scores = json.loads(cli(*files, "--arch", "mlp", "--set-lr", 0.04).out)
    assert scores["lr"] == 0.04
    assert rates == [0.04, None]
    refused = cli(*files, "--arch", "mlp", "--set-lr", 0.04, "--protocol", "rded")
    assert refused.status == 2
    assert refused.err.startswith("error: --set-lr is a rate of SGD")
