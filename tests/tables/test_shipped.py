"""The package's own tables: what they name exists, and their published figures are those of the sources."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from datafree.config import PretrainConfig
from datafree.data import DATA
from datafree.evaluation.protocols import PROTOCOLS
from datafree.fields import replace
from datafree.models import ALIASES, MODELS
from datafree.synthesis import load_method
from datafree.tables import Table, find_tables, load_table, render

TABLES = find_tables()
GPU = {name for name in TABLES if name.endswith("-gpu")}
# Read in the sources by hand: value, spread, and who is quoted.
READ: dict[str, tuple[float, float | None, str]] = {
    "data-free-cifar10-gpu resnet34-resnet18/dafl": (92.22, None, "Fast-Datafree"),
    "data-free-cifar10-gpu wrn40_2-wrn16_1/cmi": (90.01, None, "Fast-Datafree"),
    "data-free-cifar10-gpu vgg11-resnet18/fast-5": (89.94, None, "Fast-Datafree"),
    "data-free-cifar10-gpu wrn40_2-wrn40_1/cudfkd": (93.18, None, "DataFree README at 56bc3b8"),
    "data-free-cifar100-gpu wrn40_2-wrn16_2/cmi": (68.75, None, "Fast-Datafree"),
    "data-free-cifar100-gpu vgg11-resnet18/zskt": (54.31, None, "Fast-Datafree"),
    "data-free-cifar100-gpu resnet34-resnet18/spaceshipnet": (77.15, 0.21, "SpaceshipNet"),
    "data-free-cifar100-gpu resnet34-resnet18/pre": (77.01, None, "DataFree README at 56bc3b8"),
    "data-free-imagenet-gpu resnet50-resnet18/fast": (53.45, None, "Fast-Datafree"),
    "condensation-mnist-gpu ipc-1/dc": (91.7, 0.5, "VICO"),
    "condensation-fashion-mnist-gpu ipc-50/dsa": (88.7, 0.2, "VICO"),
    "condensation-svhn-gpu ipc-10/idc": (87.5, None, "Efficient-Dataset-Condensation"),
    "condensation-cifar10-gpu ipc-10/idc": (67.5, None, "Efficient-Dataset-Condensation"),
    "condensation-mnist-gpu ipc-50/idc": (99.1, None, "Efficient-Dataset-Condensation"),
    "condensation-fashion-mnist-gpu ipc-50/idc-i": (89.1, None, "Efficient-Dataset-Condensation"),
    "condensation-svhn-gpu ipc-1/idc-i": (46.7, None, "Efficient-Dataset-Condensation"),
    "condensation-cifar10-gpu ipc-1/idc": (50.6, None, "Efficient-Dataset-Condensation"),
    "condensation-cifar100-gpu ipc-10/idc": (45.1, None, "Efficient-Dataset-Condensation"),
    "condensation-cifar100-gpu ipc-50/mtt": (47.7, 0.2, "FTD"),
    "condensation-tiny-imagenet-gpu ipc-10/dm": (12.9, 0.4, "FTD"),
}


@cache
def table(name: str) -> Table:
    return load_table(name)


@pytest.fixture
def tables() -> dict[str, Table]:
    return {name: table(name) for name in TABLES}


def test_the_tables_that_are_spoken_of_are_there() -> None:
    assert {"digits-smoke", "data-free-cpu", "condensation-cpu", "cross-architecture", "private"} <= set(TABLES)
    data_free = {f"data-free-{data}-gpu" for data in ("cifar10", "cifar100", "imagenet", "tiny-imagenet")}
    assert data_free | {f"condensation-{data}-gpu" for data in DATA if data != "digits"} <= GPU


@pytest.mark.parametrize("name", TABLES)
def test_a_table_loads_and_shows_each_of_its_cells(name: str) -> None:
    read = table(name)
    page = "\n".join(render(read, [], Path("page.md")))
    assert read.cells
    assert all(cell.title in page and read.groups[cell.group] in page for cell in read.cells)


@pytest.mark.parametrize("name", sorted(GPU))
def test_tables_for_a_gpu_say_so_in_every_cell(name: str) -> None:
    assert {cell.cost for cell in table(name).cells} == {"gpu"}
    assert table(name).layout == "matrix"


def test_published_figures_are_percentages_with_a_source(tables: dict[str, Table]) -> None:
    figures = [cell.published for read in tables.values() for cell in read.cells if cell.published is not None]
    assert figures
    for figure in figures:
        assert 0 < figure.value < 100
        assert figure.spread is None or 0 < figure.spread < 10
        assert len(figure.source) > 10


@pytest.mark.parametrize("place", READ)
def test_published_figures_are_those_of_the_sources(place: str) -> None:
    where, _, name = place.partition(" ")
    (cell,) = (cell for cell in table(where).cells if cell.name == name)
    assert cell.published is not None
    value, spread, source = READ[place]
    assert (cell.published.value, cell.published.spread) == (value, spread)
    assert source in cell.published.source


def test_presets_networks_and_recipes_exist(tables: dict[str, Table]) -> None:
    """What a cell names is looked up when it is run alone; here it is looked up for all."""
    known = {*MODELS, *ALIASES}
    for read in tables.values():
        for cell in read.cells:
            options = cell.options
            if "preset" in options:
                assert options["preset"] in load_method(options["method"]).PRESETS, (read.name, cell.name)
            for name in ("student", "arch"):
                assert options.get(name, "mlp") in known or ":" in options[name], (read.name, cell.name)
            if cell.job == "condense":
                assert options.get("teacher", "mlp") in known, (read.name, cell.name)
                assert cell.evaluation is not None
                assert cell.evaluation["protocol"] in PROTOCOLS
                assert set(cell.evaluation["archs"]) <= known
            if cell.teacher is not None and "pretrain" in cell.teacher:
                recipe: dict[str, Any] = cell.teacher["pretrain"]
                replace(PretrainConfig(), {k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()})
                assert recipe["arch"] in known
                assert recipe["data"] == options["data"]


def test_students_with_data_are_trained_as_their_teachers_are() -> None:
    for name in ("data-free-cifar10-gpu", "data-free-cifar100-gpu", "data-free-tiny-imagenet-gpu"):
        cells = table(name).cells
        recipes = [dict(cell.teacher["pretrain"]) for cell in cells if cell.teacher is not None]
        baselines = [cell.options for cell in cells if cell.job == "pretrain"]
        assert {recipe.pop("arch") for recipe in recipes} <= {baseline["arch"] for baseline in baselines}
        for baseline in baselines:
            assert all({name: baseline[name] for name in recipe} == recipe for recipe in recipes)
