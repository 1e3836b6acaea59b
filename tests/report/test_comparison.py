"""The comparison of runs: made-up folders, whole and in pieces, and what must stand in the page."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datafree.report.compared import Compared, labels, read_runs
from datafree.report.comparison import (
    OURS,
    class_tables,
    configurations,
    figures,
    render_comparison,
    table,
    write_comparison,
)
from datafree.report.figures import Chart, course, images_a_class, inherited, pareto_front
from datafree.report.reading import duration, short

EVIL = '<b onclick="x">&amp;'
ABOUT: dict[str, Any] = {
    "job": "train",
    "config": {"lr": 0.2, "steps": 100, "seed": 0, "mean": [0.5]},
    "method_options": {"bn": 10.0, "adv": 1.0},
    "teacher": {"arch": "resnet20", "parameters": 270000, "multiply_adds": 41000000},
    "student": {"arch": "resnet8", "parameters": 77000, "multiply_adds": 12000000},
    "domain": {"name": "digits", "classes": 3, "class_names": ["cat", EVIL, "$dog$"]},
}
RESULT: dict[str, Any] = {
    "teacher_accuracy": 0.95,
    "student_accuracy": 0.9,
    "agreement": 0.925,
    "images": 12345,
    "steps": 100,
    "total_seconds": 90.0,
    "peak_rss_mb": 700.0,
    "method": "blend",
    "teacher": "resnet20",
    "student": "resnet8",
    "data": "digits",
    "per_class": {"teacher": [1.0, 0.9, 0.95], "student": [0.7, 0.95, 0.93]},
    "confusion": [[7, 2, 1], [0, 20, 0], [0, 0, 10]],
    "warnings": [],
}
LOG = [{"step": 50, "seconds": 45.0, "test/accuracy": 0.8}, {"step": 25, "seconds": 22.0, "test/accuracy": 0.6}]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (200, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


def make(folder: Path, about: dict[str, Any] | None = None, result: dict[str, Any] | None = None) -> Path:
    """A run's folder; a key given as None is left out."""
    (folder / "images").mkdir(parents=True)
    for name, whole, changes in (("run.json", ABOUT, about), ("result.json", RESULT, result)):
        content = {key: value for key, value in {**whole, **(changes or {})}.items() if value is not None}
        (folder / name).write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, LOG)) + '\n{"step": 99, "te')
    for step in (0, 100):
        (folder / f"images/step-{step:07d}.png").write_bytes(png())
    return folder


def make_condensed(folder: Path) -> Path:
    """What a condensation leaves: no student, and no accuracy."""
    about = {"job": "condense", "teacher": None, "student": None, "images_per_class": [10, 20, 30]}
    result = dict.fromkeys(("teacher_accuracy", "student_accuracy", "agreement", "images", "per_class", "confusion"))
    more = {"teacher": None, "student": None, "stored_images": 60, "stored_floats": 3840, "preparation_seconds": 4.0}
    make(folder, {**about, "networks": {"arch": "convnet3", "parameters": 5}}, {**result, **more, "method": "dm"})
    (folder / "metrics.jsonl").write_text("")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Compared]:
    """Makes one run's folder and reads it."""
    numbers: Iterator[int] = iter(range(100))

    def made(about: dict[str, Any] | None = None, result: dict[str, Any] | None = None) -> Compared:
        return read_runs([make(tmp_path / f"made{next(numbers)}", about, result)])[0]

    return made


def page_of(*paths: Path) -> str:
    runs = read_runs(paths)
    page = render_comparison(runs, figures(runs))
    Parsed(page)
    return page


class Parsed(HTMLParser):
    """Every element closed in order, and what the page refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trainings, of which the second has a smaller student and an epsilon, and a condensation."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"arch": "resnet8_half", "parameters": 20000, "multiply_adds": 3000000}
    options = {"config": {**ABOUT["config"], "lr": 0.1}, "method_options": {"bn": 10.0, "kd": "on"}}
    return [
        make(folder / "plain"),
        make(folder / EVIL, {"student": small, **options}, {"student_accuracy": 0.85, "epsilon": 2.5}),
        make_condensed(folder / "set"),
    ]


@pytest.fixture(scope="module")
def page(three: list[Path]) -> str:
    return page_of(*three)


def test_the_page_is_well_formed_and_loads_nothing(page: str):
    elements = Parsed(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {attributes["aria-labelledby"] for _, attributes in elements if "aria-labelledby" in attributes}
    assert named <= {*ids}
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in elements if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")
    assert page.startswith("<!DOCTYPE html>")
    assert "prefers-color-scheme: dark" in page
    for word in ("http://", "https://", "@import"):
        assert word not in page
    for tag, attributes in elements:
        assert tag not in ("script", "link", "iframe", "object")
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")


@pytest.mark.parametrize(
    "text",
    [
        "3 runs compared",
        "resnet20 → resnet8",
        "through convnet3",
        "90.00 %",
        "92.50 %",
        "12,345",
        "1 min 30 s (and 4.0 s before)",
        "700 MB",
        "77,000 parameters",
        "3,840 floats",
        "12 M",
        "<th scope=\"col\">Epsilon</th>",
        "Accuracy against epsilon",
        "Accuracy against parameters",
        "Accuracy against wall clock",
        "Last accuracy against images made",
        "last: 1: 90.00 %, 2: 85.00 %",
        "on the front: 2, 1",  # less for less, and more for more
        "loses most at cat (−30.0), $dog$ (−2.0); gains at &lt;b onclick=&#34;x&#34;&gt;&amp;amp; (+5.0)",
        # 37 of 40 on the diagonal
        "alike on 92.50 % of 40 images; most often apart: cat → &lt;b onclick",
        "&gt;&amp;amp; (2), cat → $dog$ (1)",
        "datafree evaluate SET --json",
        "<mark>0.1</mark>",
        "step 100",
    ],
)  # fmt: skip
def test_the_page_tells(page: str, text: str):
    assert text in page


def test_what_no_run_knows_is_left_out(page: str):
    assert "latency" not in page.lower()
    assert "Last accuracy against images a class" not in page  # no condensed set has been evaluated


def test_latency_is_a_column_and_a_pareto_front(tmp_path: Path):
    known = {"teacher_latency_ms": 2.0, "student_latency_ms": 0.5, "latency_on": "cpu, 1 thread"}
    slow = {**known, "student_latency_ms": 1.234567, "student_accuracy": 0.85}
    runs = [make(tmp_path / "a", None, known), make(tmp_path / "b", None, slow), make(tmp_path / "c")]
    page = page_of(*runs)
    assert '<th scope="col">Latency (ms)</th>' in page
    assert "<td>0.5</td>" in page
    assert "<td>1.23</td>" in page
    assert "Accuracy against latency (ms)" in page
    (chart,) = (chart for chart in figures(read_runs(runs))["cost"] if "latency" in chart.title)
    assert chart.words == "on the front: 1"  # more for less
    assert "2" in [text.get_text() for text in chart.draw(legend=True).axes[0].texts]  # the third has none
    assert "do not compare" not in page
    other = make(tmp_path / "d", None, {**known, "latency_on": "cpu, 2 threads"})
    assert "latencies were measured on cpu, 1 thread; cpu, 2 threads: they do not compare" in page_of(runs[0], other)


def test_text_of_the_runs_is_escaped(page: str):
    assert EVIL not in page
    assert "<b onclick" not in page


def test_one_run_is_a_page_too(three: list[Path]):
    page = page_of(three[0])
    assert "<h1>plain</h1>" in page
    assert "<mark>" not in page
    assert "epsilon" not in page.lower()


# Reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["x/a"], ["a"]),
        (["x/a", "x/b"], ["a", "b"]),
        (["x/a", "y/a", "b"], ["x/a", "y/a", "b"]),
        (["p/x/a", "q/x/a", "q/y/a"], ["p/x/a", "q/x/a", "y/a"]),
        (["x/a", "x/../x/a", "x/a/"], ["a", "a (2)", "a (3)"]),
        (["x/a", "x/a", "x/a (2)"], ["a", "a (3)", "a (2)"]),
    ],
)
def test_labels_are_distinct(paths: list[str], wanted: list[str]):
    assert labels([Path("/runs") / path for path in paths]) == wanted


def test_the_same_run_twice(three: list[Path]):
    runs = read_runs([three[0], three[0]])
    assert [(run.mark, run.label) for run in runs] == [("1", "plain"), ("2", "plain (2)")]
    assert configurations(runs)[:2] == ([], [])


@pytest.mark.parametrize(("what", "text"), [("nowhere", "it is no folder"), ("empty", "it holds none of run.json")])
def test_what_is_no_run_is_named(three: list[Path], tmp_path: Path, what: str, text: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=text) as error:
        read_runs([three[0], tmp_path / what])
    assert str(tmp_path / what) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["run.json", "result.json", "metrics.jsonl", "images"])
@pytest.mark.parametrize("how", ["missing", "torn", "of another kind"])
def test_a_bad_file_of_one_run_is_a_note(tmp_path: Path, name: str, how: str):
    good, bad = make(tmp_path / "good"), make(tmp_path / "bad")
    for folder in (good, bad):  # fewer charts, to be quick
        (folder / "result.json").write_text(json.dumps({"student_accuracy": 0.5, "steps": 10}))
    place = bad / name
    if how == "missing":
        shutil.rmtree(place) if name == "images" else place.unlink()
    elif name == "images":
        (place / "step-0000100.png").write_bytes(png()[:40] if how == "torn" else b"text")
    else:
        place.write_bytes(place.read_bytes()[:20] if how == "torn" else b"[[1, 2], null]")
    page = page_of(good, bad)
    notes = page.partition('aria-labelledby="warnings"')[2].partition("</section>")[0]
    if name == "metrics.jsonl" and how != "missing":
        assert notes == ""  # a log ends torn wherever a run was killed
    else:
        assert notes.count("<li>") == 1
        assert f"<li>2 bad: {name}" in notes
    assert "50.00 %" in page


@pytest.mark.parametrize(
    "broken",
    [
        {"config": [1], "method_options": 3, "teacher": "x", "student": [], "domain": 7, "job": ["train"]},
        {"domain": {"class_names": "abc"}, "images_per_class": [None, "x"], "networks": 1},
    ],
)
def test_values_of_other_kinds_leave_a_page(tmp_path: Path, broken: dict[str, Any]):
    result = {"per_class": [1], "confusion": [[1, 2], [3]], "steps": "many", "student_accuracy": "good", "warnings": 1}
    page = page_of(make(tmp_path / "run", broken, {**result, "total_seconds": True, "images": 10**400}))
    assert "confusion in result.json is no square table of counts" in page


def test_null_results_leave_a_page(tmp_path: Path):
    folder = make(tmp_path / "run")
    (folder / "result.json").write_text(json.dumps(dict.fromkeys(RESULT)))
    page_of(folder)


@pytest.mark.parametrize(
    ("confusion", "known"),
    [
        ([[1, 0], [0, 1]], True),
        ([[1, 0], [0, -1]], False),
        ([[1, 0], [0, 1.5]], False),
        ([[1, 0, 0], [0, 1, 0]], False),
        ([[1]], False),
        ([[1] * 21] * 21, False),
        ("text", False),
    ],
)
def test_only_a_square_table_of_counts_is_taken(run: Callable[..., Compared], confusion: Any, known: bool):
    assert (run(result={"confusion": confusion}).decisions() is not None) == known


def test_runs_on_different_data_are_a_note_and_have_fronts_of_their_own(tmp_path: Path):
    one = make(tmp_path / "one")
    two = make(tmp_path / "two", result={"data": "mnist", "student_accuracy": 0.5})
    page = page_of(one, two)
    assert "the runs are on different data (digits, mnist)" in page
    assert "on the front: 1, 2" in page  # the second has less for as much, but on other data


def test_runs_that_were_tested_on_held_out_images_say_so(tmp_path: Path):
    held = {"config": {**ABOUT["config"], "validation": True}}
    one, two = make(tmp_path / "one"), make(tmp_path / "two", held)
    page = page_of(one, two)
    assert "some runs were tested on the test set, some on held-out training images: their accuracies do not" in page
    assert "On held-out training images, as it was logged" in page_of(two)
    assert "On the test set, as it was logged" in page_of(one)


# Numbers -----------------------------------------------------------------------------------------------------------


def test_the_front_is_who_is_not_dominated():
    draw = random.Random(0)
    for _ in range(300):
        points = [(draw.randrange(6), draw.randrange(6)) for _ in range(draw.randrange(1, 9))]
        costs, gains = zip(*points, strict=True)
        front = pareto_front(costs, gains)
        better = {
            i
            for i, (cost, gain) in enumerate(points)
            if any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        }
        assert set(front) == set(range(len(points))) - better
        assert [costs[i] for i in front] == sorted(costs[i] for i in front)


def test_a_course_ends_with_the_last_evaluation(run: Callable[..., Compared]):
    assert course(run(), 0) == [(25, 0.6), (50, 0.8), (100, 0.9)]
    assert course(run(), 1) == [(22.0, 0.6), (45.0, 0.8), (90.0, 0.9)]
    assert course(run(result={"student_accuracy": None}), 0) == [(25, 0.6), (50, 0.8)]


@pytest.mark.parametrize(
    ("seconds", "unit"), [(119, "seconds"), (121, "minutes"), (7300, "hours")]
)  # fmt: skip
def test_the_clock_is_shown_in_a_unit_that_fits(tmp_path: Path, seconds: float, unit: str):
    runs = read_runs([make(tmp_path / "run", result={"total_seconds": seconds})])
    chart = next(chart for chart in figures(runs)["accuracy"] if chart.tag == "accuracy/wall clock")
    assert chart.draw().axes[0].get_xlabel() == unit


def test_classes_are_told_by_what_they_lose(run: Callable[..., Compared]):
    made = run()
    assert [index for index, _, _ in made.losses()] == [0, 2, 1]  # -.3, -.02, +.05
    assert inherited(made).endswith(f"the teacher's weakest: {EVIL} (90.00 %), $dog$ (95.00 %)")  # cat is at 100 %
    assert inherited(run(result={"per_class": {"student": [1.0, 0.5, 0.5]}})) == "beside no teacher"
    assert inherited(run(result={"per_class": {"student": [1.0, 1.0], "teacher": [1.0, 1.0]}})) == "no class loses"
    gaps = run(result={"per_class": {"student": [1.0, None, 0.5], "teacher": [None, 0.5, 0.6]}})
    assert gaps.losses() == [(2, 0.5, 0.6)]


def test_the_table_of_classes_is_sorted_by_the_mean_loss(tmp_path: Path):
    one = make(tmp_path / "one", result={"per_class": {"teacher": [1.0, 1.0, 1.0], "student": [0.9, 0.7, 1.0]}})
    two = make(tmp_path / "two", result={"per_class": {"teacher": [1.0, 1.0, 1.0], "student": [0.5, 0.9, None]}})
    other = make(tmp_path / "other", {"domain": {}}, {"per_class": {"teacher": [1.0, 1.0], "student": [0.9, 1.0]}})
    tables = class_tables(read_runs([one, two, other]))
    assert [[run.label for run in each["runs"]] for each in tables] == [["one", "two"], ["other"]]
    # cat: -.1 and -.5, EVIL: -.3 and -.1, dog: 0 and unknown.
    assert [name for name, _ in tables[0]["rows"]] == ["cat", EVIL, "$dog$"]
    assert tables[0]["rows"][0][1] == [("90.00 %", "−10.00"), ("50.00 %", "−50.00")]
    assert tables[0]["rows"][2][1] == [("100.00 %", "+0.00"), ("–", "")]
    assert [name for name, _ in tables[1]["rows"]] == ["0", "1"]


def test_of_many_classes_those_that_lose_most_are_shown(run: Callable[..., Compared]):
    # Class i of 30 loses i per cent.
    scores = {"teacher": [1.0] * 30, "student": [1 - i / 100 for i in range(30)]}
    made = run({"domain": {}}, {"per_class": scores})
    chart = figures([made])["classes"][0]
    assert [text.get_text() for text in chart.draw().axes[0].get_yticklabels()] == [str(i) for i in range(10, 30)]
    only = class_tables([made])[0]
    assert [name for name, _ in only["rows"]] == [str(i) for i in range(29, 9, -1)]
    assert only["classes"] == 30
    assert chart.words.endswith("; 20 of 30 classes")
    assert "of 3 classes" not in figures([run()])["classes"][0].words


def test_classes_of_other_data_are_in_a_table_of_their_own(tmp_path: Path):
    runs = [make(tmp_path / name, {"domain": {}}, {"data": name}) for name in ("mnist", "svhn")]
    assert [[run.data for run in each["runs"]] for each in class_tables(read_runs(runs))] == [["mnist"], ["svhn"]]


def test_the_fronts_points_are_drawn(tmp_path: Path):
    small = {"arch": "resnet8", "parameters": 10, "multiply_adds": 10}
    runs = read_runs([make(tmp_path / "a"), make(tmp_path / "b", {"student": small}, {"student_accuracy": 0.5})])
    chart = next(chart for chart in figures(runs)["cost"] if chart.tag == "cost/parameters")
    (stair,) = [line for line in chart.draw().axes[0].lines if line.get_drawstyle() == "steps-post"]
    assert tuple(np.asarray(each).tolist() for each in stair.get_data()) == ([10, 77000], [0.5, 0.9])


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (short(999_600), "1 M"),
        (short(999_400), "999 k"),
        (short(999_999_999), "1 G"),
        (short(12), "12"),
        (duration(59.94), "59.9 s"),
        (duration(59.97), "1 min 0 s"),
    ],
)
def test_a_unit_is_chosen_after_rounding(told: str, wanted: str):
    assert told == wanted


def test_a_long_latency_is_no_power_of_ten(tmp_path: Path):
    runs = read_runs([make(tmp_path / str(ms), result={"student_latency_ms": ms}) for ms in (1234.5, 1.2345)])
    shown = table(runs)
    assert [row[shown["heads"].index("Latency (ms)")] for row in shown["rows"]] == ["1,234", "1.23"]


def test_options_that_differ_are_parted_from_those_that_do_not(three: list[Path]):
    differing, partial, shared = configurations(read_runs(three[:2]))
    assert differing == [("lr", [("0.2", False), ("0.1", True)])]
    assert partial == [("adv", [("1", False), ("", False)]), ("kd", [("", False), ("on", False)])]
    assert [name for name, _ in shared] == ["steps", "seed", "mean", "bn"]
    assert shared[2][1] == [("0.5", False), ("0.5", False)]


def test_an_option_is_compared_with_the_first_run_that_has_it(tmp_path: Path):
    own = [{}, {"bn": 1.0, "k": None}, {"bn": 1.0, "k": 2}, {"bn": 2.0, "k": None}]
    runs = read_runs([make(tmp_path / str(i), {"config": {}, "method_options": each}) for i, each in enumerate(own)])
    assert configurations(runs)[0] == [
        ("bn", [("", False), ("1", False), ("1", False), ("2", True)]),
        ("k", [("", False), ("–", False), ("2", True), ("–", False)]),
    ]


def test_a_condensed_set_is_shown_with_what_networks_trained_on_it_reach(tmp_path: Path):
    folder = make_condensed(tmp_path / "set")
    (folder / "evaluation.json").write_text(json.dumps({"accuracy_mean": 0.6, "accuracy_std": 0.015}))
    made = read_runs([folder])[0]
    assert made.accuracy == 0.6
    assert images_a_class(made) == 20
    shown = table([made])
    assert shown["rows"][0][shown["heads"].index("Accuracy")] == "60.00 ± 1.50 %"
    tags = [chart.tag for chart in figures([made, made])["accuracy"]]
    assert tags == ["accuracy/steps", "accuracy/wall clock", "accuracy/images a class"]
    # One run has nothing to be compared with.
    assert [chart.tag for chart in figures([made])["accuracy"]] == tags[:2]
    assert "evaluate SET" not in page_of(folder)


def judge(folder: Path, **said: Any) -> Path:
    scores = {"accuracy_mean": 0.6, "accuracy_std": 0.015, "protocol": "vico", "arch": "convnet3", "data": "digits"}
    (folder / "evaluation.json").write_text(json.dumps({**scores, "split": "test", "networks": 5, **said}))
    return folder


def test_sets_that_were_judged_in_other_ways_are_a_note(tmp_path: Path):
    one = judge(make_condensed(tmp_path / "one"))
    two = judge(make_condensed(tmp_path / "two"), protocol="rded", split="validation")
    note = "the condensed sets were judged by vico convnet3 digits test; rded convnet3 digits validation: their"
    assert note in page_of(one, two)
    assert "their accuracies do not compare" not in page_of(one, judge(make_condensed(tmp_path / "three")))
    shown = table(read_runs([one, make(tmp_path / "trained")]))
    judged = [row[shown["heads"].index("Judged by")] for row in shown["rows"]]
    assert judged == ["vico convnet3 digits test", "–"]


def test_sets_and_students_on_other_images_or_with_other_labels_are_a_note(tmp_path: Path):
    held = judge(make_condensed(tmp_path / "held"), split="validation")
    hard = judge(make_condensed(tmp_path / "hard"), set_labels="hard")
    own = judge(make_condensed(tmp_path / "own"), set_labels="own")
    student = make(tmp_path / "student")
    assert "On held-out training images, as it was logged" in page_of(held)
    assert "some runs were tested on held-out training images, some on the test set" in page_of(held, student)
    assert "some runs were tested" not in page_of(own, student)
    assert "judged by vico convnet3 digits test hard labels; vico convnet3 digits test: their" in page_of(hard, own)


def test_one_network_has_no_spread(tmp_path: Path):
    folder = judge(make_condensed(tmp_path / "set"), networks=1, accuracy_std=0.0)
    shown = table(read_runs([folder]))
    assert shown["rows"][0][shown["heads"].index("Accuracy")] == "60.00 %"


# Files -------------------------------------------------------------------------------------------------------------


def test_only_a_page_of_ours_is_overwritten(three: list[Path], tmp_path: Path):
    out = tmp_path / "new" / "page.html"
    write_comparison(three[2:], out)
    first = out.read_text(encoding="utf-8")
    assert OURS in first
    write_comparison(three[2:], out)
    assert out.read_text(encoding="utf-8") == first  # the same runs, the same page
    out.write_text("mine")
    with pytest.raises(ValueError, match="did not write it"):
        write_comparison(three[2:], out)
    assert out.read_text() == "mine"
    write_comparison(three[2:], out, force=True)
    assert out.read_text(encoding="utf-8") == first
    with pytest.raises(ValueError, match="is a folder"):
        write_comparison(three[2:], tmp_path, force=True)


def test_the_same_figures_go_to_tensorboard(three: list[Path], tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_comparison(three[:1], tmp_path / "page.html", tensorboard=tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0})
    events.Reload()
    charts: list[Chart] = [chart for section in figures(read_runs(three[:1])).values() for chart in section]
    tags = events.Tags()["images"]
    assert len(tags) == len(charts) + 1
    assert {tag.partition("/")[0] for tag in tags} == {"accuracy", "cost", "classes", "decisions", "images"}
    grid = events.Images(next(tag for tag in tags if tag.startswith("images/")))[0]
    assert (grid.width, grid.height) == (30, 20)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        write_comparison(three[:1], tmp_path / "page.html", tensorboard=tmp_path / "file")


# A browser ---------------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(*arguments: str, home: Path) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={home}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")
def test_a_browser_shows_the_page_on_a_desk_and_on_a_phone(page: str, tmp_path: Path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    picture = tmp_path / "page.png"
    address = (tmp_path / "page.html").as_uri()
    browse("--window-size=1200,900", f"--screenshot={picture}", address, home=tmp_path / "home")
    with Image.open(picture) as seen:
        assert seen.size == (1200, 900)
        assert len(seen.convert("RGB").getcolors(1 << 24) or []) > 20
    # The ground by day and by night, as style.css.j2 has it.
    for number, (flags, ground) in enumerate({(): (255, 255, 255), ("--force-dark-mode",): (20, 23, 27)}.items()):
        phone = tmp_path / f"phone{number}.png"
        browse(*flags, "--window-size=500,1800", f"--screenshot={phone}", address, home=tmp_path / "home")
        with Image.open(phone) as seen:
            assert seen.convert("RGB").getpixel((2, 1000)) == ground
    # In a frame as narrow as a phone nothing sticks out. The page itself forbids scripts, so one around it looks.
    frame = f"""<!DOCTYPE html><body><iframe width="390" height="800"></iframe><script>
    const frame = document.querySelector("iframe");
    frame.onload = () => document.title = "wide: " + frame.contentDocument.documentElement.scrollWidth;
    frame.srcdoc = {json.dumps(page).replace("</", "<" + chr(92) + "/")};
    </script></body>"""
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    shown = browse("--dump-dom", (tmp_path / "frame.html").as_uri(), home=tmp_path / "home")
    assert "<title>wide: 390</title>" in shown
