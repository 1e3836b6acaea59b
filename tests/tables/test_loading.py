"""Specifications: what a table's TOML makes of cells, and what is said of its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from datafree.tables import find_tables, load_table
from datafree.tables.specs import with_budget

SMALL = """\
title = "A table"
budgets = ["10m", "30m"]

[options]
threads = 1

[teachers.t]
file = "t.pt"
arch = "nets.py:make"

[groups.a]
title = "Group A"
teacher = "t"
options = { data = "digits", student = "lenet5_half" }

[rows.noise]

[rows.start]
title = "from nothing"
options = { method = "blend", inherit = false }

[published.a]
noise = { value = 88.01, source = "DAFL, Table 1" }
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_cell_is_a_row_of_a_group_at_a_length(tmp_path):
    table = load_table(written(tmp_path, SMALL))
    assert [cell.name for cell in table.cells] == ["a/noise@10m", "a/noise@30m", "a/start@10m", "a/start@30m"]
    first, last = table.cells[0], table.cells[-1]
    assert first.options == {
        "threads": 1, "data": "digits", "student": "lenet5_half", "budget": "10m", "method": "noise",
    }  # fmt: skip
    assert last.options["method"] == "blend"
    assert last.options["inherit"] is False
    assert last.title == "from nothing"
    assert first.published is not None
    assert (first.published.value, first.published.spread) == (88.01, None)
    assert first.teacher == {"name": "t", "file": "t.pt", "arch": "nets.py:make"}


def test_a_cell_overrides_its_row_and_a_length_ousts_another(tmp_path):
    more = SMALL.replace('["10m", "30m"]', '["10m"]') + "\n[cells.a.noise]\nsteps = 7\n"
    cell = load_table(written(tmp_path, more)).cells[0]
    assert cell.name == "a/noise"
    assert cell.options["steps"] == 7
    assert "budget" not in cell.options
    assert with_budget(cell, "90s").options["budget"] == "90s"
    assert "steps" not in with_budget(cell, "90s").options
    assert with_budget(cell, "90s").name == "a/noise@90s"


def test_the_hash_follows_what_decides_the_result_and_nothing_else(tmp_path):
    def digest(text: str, seed: int = 0) -> str:
        return load_table(written(tmp_path, text)).cells[0].digest(seed)

    first = digest(SMALL)
    assert len(first) == 16
    assert digest(SMALL, 1) != first
    assert digest(SMALL.replace("threads = 1", "threads = 2")) != first
    assert digest(SMALL.replace('"t.pt"', '"other.pt"')) != first
    assert digest(SMALL.replace("A table", "Another title").replace("Group A", "A")) == first
    assert digest(SMALL.replace("88.01", "88.02")) == first
    assert digest(SMALL.replace('["10m", "30m"]', '["10m"]')) == first


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("threads = 1", "thread = 1", 5, "unknown option 'thread'"),
        ("threads = 1", "threads = 0", 5, "--threads is 0"),
        ("[rows.start]", "[rows.start]\nmethod = 'blend'", 19, "unknown key 'method' of rows.start"),
        ('method = "blend", inherit = false', 'method = "blen"', 20, "unknown method 'blen'"),
        ('teacher = "t"', 'teacher = "u"', 13, "unknown teacher 'u'"),
        ("noise = {", "dafl = {", 23, "unknown row 'dafl'"),
        ("[published.a]", "[published.b]", 22, "unknown group 'b'"),
        (', source = "DAFL, Table 1"', "", 23, "no source"),
        ("value = 88.01, ", "", 23, "no value"),
        ("[rows.noise]", "[rows.noise", 16, "no valid TOML"),
        ("[rows.noise]", "[rows.noise]\njob = 'sell'", 17, "job is 'sell'"),
        ("[options]", "layout = 'round'\n[options]", 4, "layout is 'round'"),
        ('title = "A table"', "", 1, "no title"),
        ("inherit = false", "temperature = -1.0", 20, "--temperature is -1.0"),
        ('method = "blend", inherit = false', 'method = "noise"', 18, "are one spec"),
        ("inherit = false", "seed = 3", 20, "seed is no option"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, old, new, line, words):
    assert SMALL.count(old) == 1
    path = written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ValueError, match=words) as caught:
        load_table(path)
    assert str(caught.value).startswith(f"{path}:{line}: "), caught.value


def test_an_unknown_table_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown table 'mnist': take one of .*digits-smoke"):
        load_table("mnist")
    with pytest.raises(ValueError, match="cannot be read"):
        load_table("nowhere.toml")


def test_tables_come_in_the_order_of_the_page():
    names = list(find_tables())
    assert names[:3] == ["digits-smoke", "data-free-cpu", "condensation-cpu"]
