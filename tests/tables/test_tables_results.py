"""Result files and the pages made of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datafree.tables import load_table, read_results, render
from datafree.tables.defaults import cell_defaults, defaults_of
from datafree.tables.rendering import _scores, _three_digits, difference, in_cell, link
from datafree.tables.results import current, lacking, make_content, read_result, without_folders
from datafree.tables.specs import digest_of, file_name

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
    made = make_content(cell, number, seconds=10, defaults=cell_defaults(cell), result=result, error=error, run={})
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


def test_a_result_short_by_just_the_tolerance_is_not_marked(table):
    cell = next(cell for cell in table.cells if cell.row == "dafl")  # 91; a point is allowed
    assert difference(cell, [{"result": {"student_accuracy": 0.9}}]) == "−1.0"
    for step in range(1, 9000, 7):  # sums that rounding leaves on either side
        published = replace(cell.published, value=(step + 100) / 100)
        shown = difference(replace(cell, published=published), [{"result": {"student_accuracy": step / 10000}}])
        assert shown == "−1.0"


def test_links_are_those_of_markdown():
    assert link(Path("a/my table/x(1).json"), Path("a/page.md")) == "my%20table/x%281%29.json"


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
    assert ")** (60 ± 0.5; +0.0) | not run |" in page


def test_a_matrix_tells_as_much_as_rows_do(table, tmp_path):
    path, folder = tmp_path / "t.toml", tmp_path / "t"
    text = 'layout = "matrix"\n' + TABLE + '\n[groups.b]\ncost = "gpu"\noptions = { student = "resnet8" }\n'
    path.write_text(text, encoding="utf-8")
    matrix = load_table(path)
    # By hand: mean 58.0, sample standard deviation sqrt((4 + 0 + 4) / 2) = 2; 58 - 60 = -2.
    kept = [keep(matrix, folder, "noise", seed, accuracy) for seed, accuracy in enumerate((0.56, 0.58, 0.6))]
    failed = [keep(matrix, folder, "dafl", 0, None), keep(matrix, folder, "dfq", 0, None)]
    kept.append(keep(matrix, folder, "dfq", 1, 0.93))
    lines = render(matrix, read_results(folder), tmp_path / "t.md")
    page = "\n".join(lines)
    assert f"| noise | **[58.00 ± 2.00 (3)](t/{kept[0].name})** (60 ± 0.5; −2.0*) | not run |" in page
    assert "| dafl | failed (91) | not run |" in page
    assert f"| dfq | **[93.00](t/{kept[3].name})**; 1 failed (92.5; +0.5) | not run |" in page
    assert (
        "In brackets: as published; what was measured less that, in points. A * marks what falls short by more" in page
    )
    assert "Cost of a cell: gpu for noise, dafl, dfq at b; minutes for all others." in page
    links = " ".join(f"[{seed}](t/{file.name})" for seed, file in enumerate(kept[:3]))
    both = f"[0](t/{failed[1].name}) [1](t/{kept[3].name})"
    assert f"* Group A: noise (1,000 steps, 10 s) {links}; dafl (1,000 steps) [0](t/{failed[0].name}); dfq (" in page
    assert f"; dfq (1,000 steps, 10 s) {both}" in page
    assert r"* dafl at Group A, seed 0: loss is NaN \| at step 3" in page
    assert r"* dfq at Group A, seed 0: loss is NaN \| at step 3" in page
    assert not any(line.startswith("* b") for line in lines)


def test_a_matrix_of_one_cost_says_it_once(table, tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('layout = "matrix"\ncost = "gpu"\n' + TABLE, encoding="utf-8")
    lines = render(load_table(path), [], tmp_path / "t.md")
    assert "Cost of a cell: gpu." in lines
    assert not any(line.startswith("Runs") or line.startswith("Failed") for line in lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "fine"}, "status is 'fine' in the place of one of done, failed"),
        ({"schema": 9}, "schema is 9 in the place of 1"),
        ({"seed": 0.5}, "seed is 0.5 in the place of a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1}, "seed is 1, its spec has 0"),
        ({"result": {**DONE, "seed": 1}}, "result.seed is 1, its spec has 0"),
        ({"cell": "dafl"}, "cell is 'dafl' in the place of a text such as"),
        ({"cell": "a/noise"}, "its cell, seed and hash make the name a-noise-0-"),
        ({"hash": "0" * 16}, "hash is '0000000000000000', that of its spec is '"),
        ({"spec": {}}, "no 'job' in its spec"),
        ({"spec": {"job": "sell", "options": {}, "teacher": None, "evaluation": None}}, "spec.job is 'sell'"),
        ({"defaults": []}, r"defaults is \[\] in the place of a section, or null"),
        ({"seconds": float("nan")}, "seconds is nan in the place of a number of 0 or more"),
        ({"curve": ["a"]}, r"curve is \['a'\] in the place of a list of \[step"),
        ({"curve": [[1, 2.0, 17]]}, "curve is "),
        ({"run": None}, "no 'run'"),
        ({"scores": {}}, "scores is {} in the place of null"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"status": "failed"}, "a failed result has an error"),
        ({"result": {"steps": 3}}, "no number 'student_accuracy'"),
        ({"result": {**DONE, "student_accuracy": None}}, "no number 'student_accuracy'"),
        ({"result": {**DONE, "student_accuracy": float("nan")}}, "result.student_accuracy is nan in the place of a"),
        ({"result": {**DONE, "student_accuracy": 17}}, "result.student_accuracy is 17 in the place of a number from"),
        ({"result": {**DONE, "student_accuracy": -3}}, "result.student_accuracy is -3"),
        ({"result": {**DONE, "images": True}}, "result.images is True"),
        ({"result": {**DONE, "steps": "3"}}, "result.steps is '3'"),
        ({"result": {**DONE, "peak_rss_mb": "x"}}, "result.peak_rss_mb is 'x'"),
        ({"result": {**DONE, "agreement": float("nan")}}, "result.agreement is nan"),
        ({"result": {**DONE, "teacher_accuracy": [1]}}, r"result.teacher_accuracy is \[1\]"),
    ],
)
def test_a_malformed_result_is_named_with_file_and_line(table, tmp_path, change, words):
    path = keep(table, tmp_path / "t", "dafl", 0, 0.5, **change)
    with pytest.raises(ValueError, match=words) as caught:
        read_results(tmp_path / "t")
    key, value = next(iter(change.items()))
    lines = path.read_text(encoding="utf-8").splitlines()
    line = next(n for n, text in enumerate(lines, 1) if f'"{key}":' in text)
    if wrong := re.match(rf"{key}\.(\w+) ", words):
        line = next(n for n, text in enumerate(lines[line:], line + 1) if f'"{wrong[1]}":' in text)
    assert str(caught.value).startswith(f"{path}:{line}: ") or (key, value) == ("run", None), caught.value
    assert str(caught.value).endswith(": remove the file and run the cell again")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "no number 'accuracy_mean' in its scores"),
        ({"networks": 0}, "scores.networks is 0 in the place of a whole number above 0"),
        ({"random_accuracy_mean": 0.5}, "no number 'random_accuracy_std' in its scores"),
        ({"archs": []}, r"scores.archs is \[\] in the place of a section"),
        ({"archs": {"mlp": 3}}, "scores.archs.mlp is 3 in the place of a section"),
        ({"archs": {"mlp": {}}}, "no number 'accuracy_mean' in its scores.archs.mlp"),
    ],
)
def test_scores_that_the_page_cannot_show_are_named(tmp_path: Path, change: Any, words: str) -> None:
    path, folder = tmp_path / "c.toml", tmp_path / "c"
    path.write_text(CONDENSING.replace("LAYOUT", ""), encoding="utf-8")
    keep_set(load_table(path), folder, "dm", 0, None if change is None else scored(0.5, **change))
    with pytest.raises(ValueError, match=words):
        read_results(folder)


def test_a_run_is_finished_by_what_its_file_is_read_by() -> None:
    assert lacking("train", DONE, None) is None
    wrong = {**DONE, "agreement": float("nan")}
    assert lacking("train", wrong, None) == "result.agreement is nan in the place of a number from 0 to 1, or null"
    assert lacking("condense", CONDENSED, {}) == "no number 'accuracy_mean' in its scores"


def test_a_result_of_another_table_and_what_is_no_file_are_named(table, tmp_path):
    path = keep(table, tmp_path / "t", "dafl", 0, 0.5)
    assert len(read_results(tmp_path / "t", "t")) == 1
    with pytest.raises(ValueError, match=rf"{path}:\d+: a result of the table 't' among those of 'u'"):
        read_results(tmp_path / "t", "u")
    (tmp_path / "t" / "x.json").mkdir()
    with pytest.raises(ValueError, match=r"x\.json cannot be read \(Is a directory\): move it elsewhere"):
        read_results(tmp_path / "t")


def test_a_spec_that_was_edited_is_no_result_of_its_cell(table, tmp_path):
    path = keep(table, tmp_path / "t", "dafl", 0, 0.5)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["spec"]["options"]["steps"] = 9
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"hash is .*, that of its spec is "):
        read_result(path)
    content["hash"] = digest_of(content["spec"])  # another cell's result under this one's name
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path}:1: its cell, seed and hash make the name a-dafl-0-"):
        read_result(path)


@pytest.mark.parametrize(
    ("length", "shown"),  # by hand
    [('budget = "10m"', "10m | **55.00 ± 7.07 (2)** |"), ("steps = 1000", "1,000 steps | **60.00** |")],
)
def test_of_a_seed_every_run_of_wall_clock_counts_but_what_is_marked(tmp_path, length, shown):
    (tmp_path / "t.toml").write_text(TABLE.replace("steps = 1000", length), encoding="utf-8")
    table = load_table(tmp_path / "t.toml")
    for end, accuracy, why in (("-old1", 0.5, None), ("-old2", 0.9, "read | wrongly"), ("", 0.6, None)):
        path = keep(table, tmp_path / "t", "dafl", 0, accuracy, superseded=why)
        path.rename(path.with_name(f"{path.stem}{end}.json"))
    page = "\n".join(render(table, read_results(tmp_path / "t"), tmp_path / "t.md"))
    assert f"| dafl | {shown}" in page
    assert rf"[a/dafl, seed 0](t/{path.stem}-old2.json) 90.00 (read \| wrongly)." in page
    repeated = f"Not counted, copies or repeated: [a/dafl, seed 0](t/{path.stem}-old1.json) 50.00."
    assert (repeated in page) is ("steps" in length)


def test_of_a_seed_a_failure_and_every_time_of_a_speed_table_stand_beside_a_run(table, tmp_path):
    for row, accuracies in (("noise", (0.5, None)), ("dafl", (0.5, 0.5))):
        for end, accuracy in zip(("-old1", ""), accuracies, strict=True):
            path = keep(table, tmp_path / "t", row, 0, accuracy, seconds=len(end))
            path.rename(path.with_name(f"{path.stem}{end}.json"))
    counts = {name: len(of) for name, of in current(table, read_results(tmp_path / "t"))[0].items()}
    assert counts == {"a/noise": 2, "a/dafl": 1, "a/dfq": 0}
    assert len(current(replace(table, layout="speed"), read_results(tmp_path / "t"))[0]["a/dafl"]) == 2


def test_two_copies_of_a_file_are_one_run(table, tmp_path):
    path = keep(table, tmp_path / "t", "dafl", 0, 0.5)
    again = path.with_name(f"{path.stem}-old1.json")
    again.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    found, others = current(table, read_results(tmp_path / "t"))
    assert [result.path for result in found["a/dafl"]] == [path]
    assert [result.path for result in others] == [again]
    page = "\n".join(render(table, read_results(tmp_path / "t"), tmp_path / "t.md"))
    assert "| dafl | 1,000 steps | **50.00** |" in page
    assert f"Not counted, copies or repeated: [a/dafl, seed 0](t/{again.name}) 50.00." in page
    assert "Superseded" not in page
    path.unlink()
    assert current(table, read_results(tmp_path / "t"))[0]["a/dafl"][0].path == again


def test_torn_json_is_named_with_its_line(table, tmp_path):
    path = keep(table, tmp_path / "t", "dafl", 0, 0.5)
    path.write_text(path.read_text(encoding="utf-8")[:60], encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path}:\d+: no valid JSON"):
        read_result(path)


def test_json_that_is_too_deep_is_named(table, tmp_path):
    path = keep(table, tmp_path / "t", "dafl", 0, 0.5)
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path}:1: no valid JSON"):
        read_result(path)


def test_a_name_that_is_no_text_does_not_stop_the_page():
    """As the system gives a file's name with bytes that are no UTF-8."""
    assert without_folders("/d/caf\udce9.png: broken") == "caf?.png: broken"


def test_a_long_name_makes_a_file_that_a_disk_takes():
    assert len(file_name("\U0001d518" * 300, 0, "0" * 16).encode()) < 255


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
    now = cell_defaults(cell)
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


def test_defaults_hold_what_names_stand_for_and_how_a_teacher_is_trained(tmp_path):
    path = tmp_path / "d.toml"
    path.write_text(
        TABLE[: TABLE.index("[groups")]
        + """
[teachers.own.pretrain]
data = "digits"
steps = 2

[groups.a]
teacher = "own"
rows = ["dafl"]

[groups.c]
job = "condense"
evaluation = { protocol = "vico" }
rows = ["dm"]

[rows.dafl]
options = { preset = "official" }

[rows.dm]
""",
        encoding="utf-8",
    )
    taught, condensed = (cell_defaults(cell) for cell in load_table(path).cells)
    assert "'activation': 0.01" in taught["PRESET"]
    assert taught["teacher's arch"] == "lenet5"
    assert {"teacher's steps", "teacher's data"}.isdisjoint(taught)  # the recipe gives them
    assert "'adam': 0.001" in taught["teacher's RATES"]
    assert "augmentation='color_crop_cutout_flip_scale_rotate', epochs=1000" in condensed["PROTOCOL"]
    assert "note=" not in condensed["PROTOCOL"]
    assert (condensed["protocol's networks"], condensed["protocol's mode"]) == ("5", "'single'")
    assert {"protocol's epochs", "protocol's note", "protocol's name"}.isdisjoint(condensed)


@pytest.mark.parametrize("method", ["tesla", "dsa", "datm"])
def test_defaults_that_are_taken_by_name_stand_in_full(method: str) -> None:
    held = defaults_of("condense", {"method": method})
    assert ".LOOP" in held["LOOP"]  # as results have it from before
    assert "'image_momentum': 0.5" in held["LOOP in full"]
    assert "LOOP in full" not in defaults_of("condense", {"method": "dm"})


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


def test_times_have_three_digits_and_no_powers_of_ten() -> None:
    times = {0.0015649: "0.00156", 7.2: "7.2", 99.96: "100", 1424.9: "1,420", 12345.0: "12,300"}
    assert {value: _three_digits(value) for value in times} == times


def test_a_network_has_a_column_by_its_short_name_too() -> None:
    scored = {"accuracy_mean": 0.5, "accuracy_std": 0.01, "random_accuracy_mean": 0.4}
    shown = _scores([{"seed": 0, "scores": {"seconds": 1.0, "archs": {"lenet5": scored, "mlp": scored}}}])
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
    made = make_content(cell, seed, seconds=100, defaults=cell_defaults(cell), result=given, scores=scores, run={})
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


def test_networks_and_random_images_are_shown_as_means_over_seeds_too():
    def run(seed: int, mlp: float, random: float, seconds: float) -> dict[str, Any]:
        of_mlp = {"accuracies": [mlp, mlp], "accuracy_mean": mlp, "accuracy_std": 0.5, "random_accuracy_mean": random}
        drawn = {"random_accuracy_mean": random, "random_accuracy_std": 0.5}
        scores = {**of_mlp, **drawn, "networks": 2, "seconds": seconds, "archs": {"mlp": of_mlp}}
        return {"seed": seed, "scores": scores}

    # By hand: 50 and 60 are 55 with a deviation of sqrt(25 + 25); 20 and 30 are 25 with the same.
    shown = _scores([run(0, 0.5, 0.2, 10.0), run(1, 0.6, 0.3, 30.0)])
    assert shown == {"scored": "20 s", "random real": "25.0 ± 7.1", "mlp": "55.0 ± 7.1 (random 25.0)"}
    assert _scores([run(0, 0.5, 0.2, 10.0)])["mlp"] == "50.0 ± 50.0 (random 20.0)"
    # Two runs of a seed have the same draws.
    again = _scores([run(0, 0.5, 0.2, 10.0), run(0, 0.6, 0.2, 30.0)])
    assert again == {"scored": "20 s", "random real": "20.0 ± 50.0", "mlp": "55.0 ± 7.1 (random 20.0)"}
    third = _scores([run(0, 0.5, 0.2, 10.0), run(0, 0.6, 0.2, 30.0), run(1, 0.7, 0.4, 20.0)])
    assert (third["random real"], third["mlp"]) == ("30.0 ± 14.1", "60.0 ± 10.0 (random 30.0)")


def test_one_network_has_no_spread(tmp_path: Path) -> None:
    path, folder = tmp_path / "c.toml", tmp_path / "c"
    path.write_text(CONDENSING.replace("LAYOUT", ""), encoding="utf-8")
    keep_set(load_table(path), folder, "dm", 0, scored(0.75, networks=1, accuracies=[0.75]))
    page = "\n".join(render(load_table(path), read_results(folder), tmp_path / "c.md"))
    assert "| **75.0 (1)** |" in page


def test_a_speed_table_of_several_jobs_shows_failures(tmp_path: Path) -> None:
    path, folder = tmp_path / "c.toml", tmp_path / "c"
    text = CONDENSING.replace("LAYOUT", 'layout = "speed"').replace('[groups.one]\njob = "condense"', "[groups.one]")
    text = text.replace("[rows.dm]", '[rows.noise]\n\n[rows.dm]\njob = "condense"')
    path.write_text(text.replace("[rows.random]\n", "").replace("steps = 400", "steps = 400\nthreads = 1"))
    table = load_table(path)
    keep(table, folder, "noise", 0, 0.5, **{})
    keep_set(table, folder, "dm", 0, scored(0.75))
    cell = next(cell for cell in table.cells if cell.row == "dm")
    made = make_content(cell, 1, seconds=1, defaults=cell_defaults(cell), error="no room", run={})
    (folder / cell.file_name(1)).write_text(json.dumps(made), encoding="utf-8")
    page = "\n".join(render(table, read_results(folder), tmp_path / "c.md"))
    assert "250 ms; 1 failed: no room" in page


def test_a_step_of_condensing_is_timed_without_what_was_prepared(tmp_path: Path) -> None:
    path, folder = tmp_path / "c.toml", tmp_path / "c"
    path.write_text(CONDENSING.replace("LAYOUT", 'layout = "speed"'), encoding="utf-8")
    table = load_table(path)
    keep_set(table, folder, "dm", 0, scored(0.75))
    # By hand: 100 s for 400 steps; the clock of a run starts after what is prepared.
    assert "| dm | 400 steps | 250 ms | 20 s |" in "\n".join(render(table, read_results(folder), tmp_path / "c.md"))


def test_a_result_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"schema": 1,\n"table": "für"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{path}:2: not UTF-8 .*: remove the file"):
        read_result(path)


def test_a_title_keeps_to_its_cell_of_the_table():
    assert in_cell("a | b\nc") == r"a \| b c"
