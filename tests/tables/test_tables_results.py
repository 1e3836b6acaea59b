"""Result files and the pages made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datafree.tables import load_table, read_results, render
from datafree.tables.defaults import defaults_of
from datafree.tables.rendering import _scores, in_cell
from datafree.tables.results import current, make_content, read_result, without_folders

TABLE = """\
title = "A table"
metric = "accuracy"
seeds = 3

[options]
data = "digits"
steps = 1000

[groups.a]
title = "Group A"

[rows.noise]

[rows.dafl]

[rows.dfq]

[published.a]
noise = { value = 60.0, spread = 0.5, source = "Somebody, Table 2" }
dafl = { value = 91.0, source = "Somebody, Table 2" }
dfq = { value = 92.5, source = "Another, Table 1" }
"""


DONE = {"student_accuracy": 0.5, "steps": 3, "images": 4, "total_seconds": 1.5}
CONDENSED = {"steps": 3, "decoded_images": 10, "preparation_seconds": 0.0}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text(TABLE, encoding="utf-8")
    return load_table(path)


def keep(table: Any, folder: Path, row: str, number: int, accuracy: float | None, **more: Any) -> Path:
    cell = next(cell for cell in table.cells if cell.row == row)
    result = None if accuracy is None else {
        "student_accuracy": accuracy, "steps": 1000, "images": 64, "total_seconds": 9.5, "agreement": 0.5,
    }  # fmt: skip
    error = "loss is NaN | at step 3" if accuracy is None else None
    made = make_content(
        cell, number, seconds=10, defaults=defaults_of(cell.job, cell.options), result=result, error=error
    )
    content = {**made, **more}
    folder.mkdir(exist_ok=True)
    path: Path = folder / cell.file_name(number)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def test_the_page_shows_mean_spread_difference_failures_and_what_was_not_run(table, tmp_path):
    folder = tmp_path / "t"
    # By hand: mean 59.0, sample standard deviation sqrt((4 + 0 + 4) / 2) = 2; 59 - 60 = -1, short of 60 ± 1 by nothing.
    for seed, accuracy in enumerate((0.57, 0.59, 0.61)):
        keep(table, folder, "noise", seed, accuracy)
    keep(table, folder, "dafl", 0, None)
    page = "\n".join(render(table, read_results(folder), tmp_path / "t.md"))
    assert "| noise | 1,000 steps | **59.00 ± 2.00 (3)** | 60 ± 0.5 | −1.0 |" in page
    assert r"| dafl | 1,000 steps | failed: loss is NaN \| at step 3 | 91 |  |" in page
    assert "Not run: dfq (92.5) at 1,000 steps (minutes)." in page
    assert "Published: Somebody, Table 2; Another, Table 1." in page
    names = [next(cell for cell in table.cells if cell.row == "noise").file_name(seed) for seed in range(3)]
    assert " ".join(f"[{seed}](t/{name})" for seed, name in enumerate(names)) in page


def test_a_result_short_by_more_than_the_tolerance_is_marked(table, tmp_path):
    keep(table, tmp_path / "t", "dafl", 0, 0.8999)
    page = "\n".join(render(table, read_results(tmp_path / "t"), tmp_path / "t.md"))
    assert "| −1.0* |" in page
    assert "A * marks what falls short by more than 1 point and by more than the published spread." in page


def test_a_number_of_another_spec_is_a_footnote(table, tmp_path):
    keep(table, tmp_path / "t", "dafl", 0, 0.5)
    path = tmp_path / "t.toml"
    path.write_text(TABLE.replace("steps = 1000", "steps = 2000"), encoding="utf-8")
    changed = load_table(path)
    found, superseded = current(changed, read_results(tmp_path / "t"))
    assert not any(found.values())
    assert [result.cell for result in superseded] == ["a/dafl"]
    page = "\n".join(render(changed, read_results(tmp_path / "t"), tmp_path / "t.md"))
    assert "Superseded, made by another spec or with other defaults: [a/dafl, seed 0](t/" in page
    assert ") 50.00." in page


def test_a_matrix_has_rows_by_groups(table, tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('layout = "matrix"\n' + TABLE + '\n[groups.b]\nrows = ["noise"]\n', encoding="utf-8")
    text = path.read_text(encoding="utf-8").replace("[groups.b]\n", '[groups.b]\noptions = { student = "resnet8" }\n')
    path.write_text(text, encoding="utf-8")
    matrix = load_table(path)
    keep(matrix, tmp_path / "t", "noise", 0, 0.6)
    page = "\n".join(render(matrix, read_results(tmp_path / "t"), tmp_path / "t.md"))
    assert "| method | Group A | b |" in page
    assert "| dafl | not run (91) | – |" in page
    assert ")** (60 ± 0.5) | not run |" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "fine"}, "status 'fine'"),
        ({"schema": 9}, "schema 9"),
        ({"seed": 0.5}, "'seed' is 0.5"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"status": "failed"}, "a failed result has an error"),
        ({"result": {"steps": 3}}, "no number 'student_accuracy'"),
        ({"result": {**DONE, "student_accuracy": None}}, "no number 'student_accuracy'"),
        ({"result": {**DONE, "student_accuracy": float("nan")}}, "no number 'student_accuracy'"),
        ({"result": {**DONE, "images": True}}, "no number 'images'"),
        ({"result": {**DONE, "steps": "3"}}, "no number 'steps'"),
        ({"scores": None, "spec": {"job": "condense"}, "result": CONDENSED}, "no number 'accuracy_mean' in its scores"),
    ],
)
def test_a_malformed_result_is_named_with_file_and_line(table, tmp_path, change, words):
    path = keep(table, tmp_path / "t", "dafl", 0, 0.5, **change)
    with pytest.raises(ValueError, match=words) as caught:
        read_results(tmp_path / "t")
    key = next(iter(change))
    line = next(n for n, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if f'"{key}"' in text)
    assert str(caught.value).startswith(f"{path}:{line}: ") or key == "status"


def test_torn_json_is_named_with_its_line(table, tmp_path):
    path = keep(table, tmp_path / "t", "dafl", 0, 0.5)
    path.write_text(path.read_text(encoding="utf-8")[:60], encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path}:\d+: no valid JSON"):
        read_result(path)


def test_files_are_named_without_their_folders():
    assert without_folders({"a": ["/home/me/nets/x.py:make", "--data npz:/d/mnist.npz", "plain", 3]}) == {
        "a": ["x.py:make", "--data npz:mnist.npz", "plain", 3]
    }
    assert (
        without_folders("datafree train --teacher ../t/net.pt --out runs/a")
        == "datafree train --teacher net.pt --out runs/a"
    )
    whole = ["give i/n with i from 0", "64/128 images", "see https://a.b/c/d", "--shard 0/4"]
    assert without_folders(whole) == whole
    assert without_folders(f"{Path.home()}/my nets/z.pt") == "my nets/z.pt"


def test_a_result_of_other_defaults_is_superseded(table, tmp_path):
    cell = next(cell for cell in table.cells if cell.row == "dafl")
    now = defaults_of(cell.job, cell.options)
    assert now["balance"] > 0
    assert "'temperature'" in now["STUDENT"]
    assert "'adam'" in now["WITHOUT_NORM"]
    assert "steps" not in now  # the table gives it
    keep(table, tmp_path / "t", "dafl", 0, 0.5, defaults={**now, "balance": 0.125})
    keep(table, tmp_path / "t", "dafl", 1, 0.6, defaults={**now, "gone": 1})  # an option that is no more
    keep(table, tmp_path / "t", "dafl", 2, 0.7, defaults=None)  # of the time before they were kept
    found, old = current(table, read_results(tmp_path / "t"))
    assert [result.seed for result in found["a/dafl"]] == [1, 2]
    assert [result.seed for result in old] == [0]


def test_a_speed_table_shows_times_a_piece_and_no_accuracy(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(TABLE[: TABLE.index("[published")].replace("seeds = 3", 'layout = "speed"'), encoding="utf-8")
    table = load_table(path)
    # By hand: 3.2 s for 64 images, 20 s for 1,000 steps.
    times = {"synthesis_seconds": 3.2, "distillation_seconds": 20.0, "peak_rss_mb": 900.4}
    result = {"student_accuracy": 0.5, "steps": 1000, "images": 64, "total_seconds": 24.0, **times}
    keep(table, tmp_path / "s", "noise", 0, 0.5, result=result)
    keep(table, tmp_path / "s", "dafl", 0, None)
    page = "\n".join(render(table, read_results(tmp_path / "s"), tmp_path / "s.md"))
    assert "| method | length | an image made | a student's step | a step with its images | peak |" in page
    assert "| noise | 1,000 steps | 50 ms | 20 ms | 23.2 ms | 900 MB |" in page
    assert r"| dafl | 1,000 steps | failed: loss is NaN \| at step 3 |" in page


def test_a_network_has_a_column_by_its_short_name_too() -> None:
    scored = {"accuracy_mean": 0.5, "accuracy_std": 0.01, "random_accuracy_mean": 0.4}
    shown = _scores([{"scores": {"seconds": 1.0, "archs": {"lenet5": scored, "mlp": scored}}}])
    assert shown["lenet"] == shown["lenet5"] == "50.0 ± 1.0 (random 40.0)"
    assert set(shown) == {"scored", "lenet", "lenet5", "mlp"}


CONDENSING = """\
title = "Sets"
seeds = 2
LAYOUT

[options]
data = "digits"
steps = 400

[groups.one]
job = "condense"

[rows.dm]

[rows.random]

[published.one]
dm = { value = 78.0, spread = 3.0, source = "Somebody, Table 2" }
"""


def scored(accuracy: float, **more: Any) -> dict[str, Any]:
    return {"accuracy_mean": accuracy, "accuracy_std": 0.0123, "networks": 5, "seconds": 61.0, **more}


def keep_set(table: Any, folder: Path, row: str, seed: int, scores: Any, **result: Any) -> None:
    cell = next(cell for cell in table.cells if cell.row == row)
    given = {**CONDENSED, "steps": 400, "total_seconds": 100.0, "preparation_seconds": 20.0, **result}
    made = make_content(
        cell, seed, seconds=100, defaults=defaults_of(cell.job, cell.options), result=given, scores=scores
    )
    folder.mkdir(exist_ok=True)
    (folder / cell.file_name(seed)).write_text(json.dumps(made), encoding="utf-8")


def test_a_set_is_shown_with_the_spread_of_its_networks_and_several_with_their_own(tmp_path: Path) -> None:
    path, folder = tmp_path / "c.toml", tmp_path / "c"
    path.write_text(CONDENSING.replace("LAYOUT", ""), encoding="utf-8")
    table = load_table(path)
    drawn = {"random_accuracy_mean": 0.5, "random_accuracy_std": 0.045}
    keep_set(table, folder, "dm", 0, scored(0.7512, **drawn))
    keep_set(table, folder, "random", 0, scored(0.5), steps=0)
    page = "\n".join(render(table, read_results(folder), tmp_path / "c.md"))
    # 75.1 is short of 78 by more than a point, but not by more than the published spread.
    assert "| dm | 400 steps | **75.1 ± 1.2 (5)** | 78 ± 3 | −2.9 | 50.0 ± 4.5 |" in page
    assert "| random | – | **50.0 ± 1.2 (5)** |" in page  # a selection takes no time
    # 75.12 and 77.12: mean 76.12, sample standard deviation sqrt(1 + 1). Means of 10 and 30 images, 20 s and 40 s.
    keep_set(table, folder, "dm", 1, scored(0.7712), decoded_images=30, preparation_seconds=40.0)
    page = "\n".join(render(table, read_results(folder), tmp_path / "c.md"))
    assert "| **76.12 ± 1.41 (2)** | 78 ± 3 | −1.9 | 50.0 ± 4.5 | 20 | 30 s | 400 |" in page


def test_a_step_of_condensing_is_timed_without_what_was_prepared(tmp_path: Path) -> None:
    path, folder = tmp_path / "c.toml", tmp_path / "c"
    path.write_text(CONDENSING.replace("LAYOUT", 'layout = "speed"'), encoding="utf-8")
    table = load_table(path)
    keep_set(table, folder, "dm", 0, scored(0.75))
    # By hand: (100 - 20) s for 400 steps.
    assert "| dm | 400 steps | 200 ms | 20 s |" in "\n".join(render(table, read_results(folder), tmp_path / "c.md"))


def test_a_result_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"table": "für"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{path}:1: not UTF-8 .*: remove the file"):
        read_result(path)


def test_a_title_keeps_to_its_cell_of_the_table():
    assert in_cell("a | b\nc") == r"a \| b c"
