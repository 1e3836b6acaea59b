"""`datafree pretrain`: what it says of its defaults, and a dry run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datafree.jobs.filling import RATES
from datafree.jobs.pretraining import DEFAULTS, LENGTH

Cli = Callable[..., Any]
LINES = ("length: 30 epochs (--steps, --epochs or --budget sets another)", "rate: 0.1 (sgd, 128 images a step")


def test_the_help_names_the_length_and_the_rate_that_hold(cli: Cli) -> None:
    text = " ".join(cli("pretrain", "--help").out.split())
    said = f"{LENGTH['epochs']} epochs, SGD at a rate of {DEFAULTS['lr']:g} (cosine) with a weight decay of"
    assert f"{said} {DEFAULTS['weight_decay']:g}. Adam's rate is {RATES['adam']:g}." in text
    assert (DEFAULTS["optimizer"], DEFAULTS["schedule"]) == ("sgd", "cosine")


def test_a_run_says_what_nobody_asked_for(cli: Cli) -> None:
    answer = cli("pretrain", "--arch", "mlp", "--epochs", 0.1, "--lr", 0.2, "--out", "asked")
    assert answer.status == 0, answer
    assert "rate:" not in answer.err
    assert "length:" not in answer.err
    answer = cli("pretrain", "--arch", "mlp", "--steps", 1, "--out", "net")
    assert LINES[1] in answer.err
    assert json.loads(Path("net/run.json").read_text())["set_by_user"] == ["steps", "arch"]


def test_a_dry_run_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    answer = cli("pretrain", "--arch", "mlp", "--dry-run", "--out", "net")
    assert (answer.status, answer.err) == (0, ""), answer
    assert all(line in answer.out for line in LINES)
    rows = dict(line.split(None, 1) for line in answer.out.splitlines())
    assert (rows["epochs"], rows["lr"], rows["batch_size"], rows["data"]) == ("30", "0.1", "128", "digits")
    assert rows["network"].startswith("mlp: ")
    assert list(tmp_path.iterdir()) == []
    answer = cli("pretrain", "--resume", "--out", "net", "--dry-run")
    assert answer.status == 2
    assert "leave out --dry-run" in answer.err


@pytest.mark.parametrize(("labels", "named"), [((0, 1, 2), None), ((1, 2, 3), "0"), ((0, 1, 5), "2, 3, 4")])
def test_a_class_without_images_is_told(cli: Cli, labels: tuple[int, ...], named: str | None, tmp_path: Path) -> None:
    y = np.array(labels * 8)
    x = np.zeros((len(y), 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    answer = cli("pretrain", "--data", "npz:own.npz", "--arch", "mlp", "--steps", 1, "--out", "net", "-q")
    assert answer.status == 0
    line = f"warning: no training image is of class {named}: where none should be, number the classes from 0 without"
    assert answer.err == ("" if named is None else f"{line} gaps\n")
