"""Two small tables for the tests of `reproduce`, and their cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datafree.tables import load_table

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
options = { arch = "torchvision:nonsense" }

[rows.noise]
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


SETS = """\
title = "Sets"
[options]
data = "digits"
ipc = 1
threads = 1
[groups.c]
job = "condense"
evaluation = { networks = 1, protocol = "vico-noaug", archs = ["mlp"] }
[rows.random]
"""


@pytest.fixture
def sets(tmp_path):
    path = tmp_path / "sets.toml"
    path.write_text(SETS, encoding="utf-8")
    return path


@pytest.fixture
def cell_of() -> Any:
    """Takes a table's file and a cell's name."""

    def cell_of(table: Path, name: str) -> Any:
        return next(cell for cell in load_table(table).cells if cell.name == name)

    return cell_of


@pytest.fixture
def stale() -> Any:
    """Makes a result one of other defaults."""

    def stale(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["defaults"]["weight_decay"] = 0.125
        path.write_text(json.dumps(content), encoding="utf-8")

    return stale
