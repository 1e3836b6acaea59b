"""The report: a made-up run's folder, whole and in pieces, and what must stand in the page."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.pictures import grid, png_bytes
from datafree.report import render_report, single

EVIL = '<script>alert("x")</script>'
RUN: dict[str, Any] = {
    "datafree": "0.1.0",
    "job": "train",
    "command": "datafree train --teacher 'my net.pt' --lr 0.2",
    "config": {"lr": 0.2, "batch_size": 256, "mean": [0.4914, 0.4822, 0.4465], "ema": False, "arch": None},
    "method_options": {"bn": 10.0, "one_hot": 0.123456789},
    "set_by_user": ["lr", "one-hot"],
    "choices": ["student: resnet18 (next smaller)"],
    "seed": 7,
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "git": "0a1b2c3",
    "machine": {"platform": "Linux", "cpu": "a processor", "cores": 2, "memory_gb": 15.6, "device": "cpu"},
    "teacher": {"source": "my net.pt", "sha256": "9f86d081", "arch": "resnet34", "parameters": 21282122},
    "student": {"arch": "resnet18", "parameters": 11173962, "multiply_adds": 555422720},
    "domain": {"name": "cifar10", "shape": [3, 8, 8], "classes": 3, "class_names": ["cat", EVIL, "$dog_1"]},
}
RESULT: dict[str, Any] = {
    "teacher_accuracy": 0.9175,
    "student_accuracy": 0.7502,
    "agreement": 0.7731,
    "kl": 0.82131,
    "images": 1234560,
    "synthesis_seconds": 903.2,
    "distillation_seconds": 12.34,
    "total_seconds": 7261.0,
    "peak_rss_mb": 1812.3,
    "precision": "bf16",
    "threads": 1,
    "seed": 7,
    "method": "dfq",
    "teacher": "resnet34",
    "student": "resnet18",
    "data": "cifar10",
    "per_class": {"teacher": [0.9, 0.8, 1.0], "student": [0.1234, None, 0.5]},
    "warnings": ["the teacher is near chance"],
    "steps": 6000,
    "generator_parameters": 31337,
    "student_latency_ms": 3.21098,
    "latency_on": "cpu, 1 thread",
}


def line(step: int) -> dict[str, Any]:
    entry = {"step": step, "seconds": step / 10, "generator/bn": 40 / step, "student/kl": 1 / step, "lr": 0.1}
    entry["agreement"] = 1 - 0.5 / step
    return {**entry, "test/accuracy": 0.7} if step % 500 == 0 else entry


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "resnet34-1"
    (run / "images").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(RUN))
    (run / "result.json").write_text(json.dumps(RESULT))
    lines = [json.dumps(line(step)) for step in range(1, 6001)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6001, "student/k')
    for step in (0, 1500, 3000, 4500, 6000):
        (run / f"images/step-{step:06d}.png").write_bytes(png_bytes(grid(torch.rand(4, 3, 8, 8), ["cat 9 %"] * 4)))
    return run


@pytest.fixture(scope="module")
def page(whole: Path) -> str:
    return render_report(whole)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


class Checker(HTMLParser):
    """Every element closed in order, and what the page refers to."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_well_formed_and_accessible(page: str):
    checker = Checker(page)
    assert page.startswith("<!DOCTYPE html>")
    ids = [attributes["id"] for _, attributes in checker.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in checker.elements if "aria-labelledby" in attributes} <= {
        *ids
    }
    assert len(checker.all("th")) > 20
    assert all(attributes.get("scope") in ("row", "col") for attributes in checker.all("th"))
    assert all(attributes.get("alt") for attributes in checker.all("img"))
    assert checker.all("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in page


def test_the_page_loads_nothing(page: str):
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    for tag, attributes in Checker(page).elements:
        assert tag not in ("script", "link", "iframe", "object")
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")
    assert len(page) < 2_000_000


@pytest.mark.parametrize(
    "text",
    [
        "resnet34 → resnet18",
        "Finished after 6,000 steps",
        "91.75 %",
        "75.02 %",
        "−16.73 points",  # 75.02 - 91.75
        "77.31 %",
        "0.8213",
        "21,282,122",
        'Latency of one image (ms)</th><td class="number">–</td><td class="number">3.21</td>',
        "Latency measured on",
        "11,173,962",
        "555 M",
        "1,234,560",
        "15 min 3 s",  # 903.2 s
        "12.3 s",
        "2 h 1 min",  # 7261 s
        "1,812 MB",
        "the teacher is near chance",
        "student: resnet18 (next smaller)",
        "generator/bn",
        "first 40, last 0.006667, lowest 0.006667, highest 40",  # 40/1 .. 40/6000
        "dashed: the teacher, 91.75 %",
        "12.34 %",
        "datafree train --teacher &#39;my net.pt&#39; --lr 0.2",
        "datafree train --config run.json",
        "0.4914, 0.4822, 0.4465",
        "0.123456789",
        "generator_parameters",
        "31337",
        "9f86d081",
        "0a1b2c3",
        "3.11.7",
    ],
)
def test_the_page_tells(page: str, text: str):
    assert text in page


def test_held_out_images_are_no_test_set(run: Path):
    assert "Result on the test set" in render_report(run)
    about = {**RUN, "config": {**RUN["config"], "validation": True}}
    (run / "run.json").write_text(json.dumps(about))
    assert "Result on held-out training images" in render_report(run)


def test_a_finished_run_tells_its_own_last_step(run: Path):
    """The log has a row a second: its last is rarely the run's."""
    (run / "metrics.jsonl").write_text(json.dumps(line(2)))
    assert "Finished after 6,000 steps" in render_report(run)
    (run / "result.json").unlink()
    assert "last logged at step 2" in render_report(run)


def test_bars_are_as_long_as_the_accuracies(page: str):
    assert {"12.3", "80.0", "50.0"} <= set(re.findall(r'<span style="width: ([\d.]+)%">', page))


@pytest.mark.parametrize(("seconds", "unit", "shown"), [(119, "seconds", 119), (600, "minutes", 10)])
def test_scores_are_shown_against_wall_clock(
    run: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, unit: str, shown: float
):
    drawn: list[tuple[list[float], str]] = []

    def chart(x: Sequence[float], y: Sequence[float], *, xlabel: str, **_: Any) -> str:
        drawn.append((list(x), xlabel))
        return ""

    monkeypatch.setattr(single, "line_chart", chart)
    rows = [{"step": 1, "seconds": 0.0, "test/accuracy": 0.5}, {"step": 9, "seconds": seconds, "test/accuracy": 0.6}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    render_report(run)
    assert drawn[0] == ([0.0, shown], unit)


def test_only_what_a_person_set_is_marked(page: str):
    marked = [row.split("</code>")[0].split("<code>")[1] for row in page.split('<tr class="set">')[1:]]
    assert marked == ["lr", "one_hot"]


def test_text_of_the_run_is_escaped(page: str):
    assert EVIL not in page
    assert "&lt;script&gt;" in page


def test_first_middle_and_last_grid_are_shown(page: str):
    words = [attributes["alt"] or "" for attributes in Checker(page).all("img")]
    assert [text.split(" at ")[1].split(", each")[0] for text in words] == ["step 0", "step 3,000", "step 6,000"]


def test_other_pictures_are_shown_where_there_are_no_steps(run: Path):
    """A condensed set's folder holds a picture of the whole set beside those of the steps."""
    steps = sorted((run / "images").glob("step-*.png"))
    (run / "images" / "grid.png").write_bytes(steps[0].read_bytes())
    assert "at grid, each" not in render_report(run)
    for path in steps:
        path.unlink()
    assert "at grid, each" in render_report(run)


FILES = ("run.json", "result.json", "metrics.jsonl", "images")


@pytest.mark.parametrize("missing", [c for n in range(1, 5) for c in itertools.combinations(FILES, n)], ids="+".join)
def test_missing_files_leave_a_page(run: Path, missing: tuple[str, ...]):
    if "metrics.jsonl" not in missing:  # a short log: the curves are drawn sixteen times
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": 2, "student/kl": 0.5}))
    for name in missing:
        shutil.rmtree(run / name) if name == "images" else (run / name).unlink()
    page = render_report(run)
    Checker(page)
    assert ("Finished" in page) == ("result.json" not in missing)
    assert ("--resume --out ." in page) == ("result.json" in missing)
    assert ("student/kl" in page) == ("metrics.jsonl" not in missing)


@pytest.mark.parametrize("key", sorted(RUN))
def test_missing_keys_of_the_run_leave_a_page(run: Path, key: str):
    (run / "metrics.jsonl").unlink()
    (run / "run.json").write_text(json.dumps({name: value for name, value in RUN.items() if name != key}))
    Checker(render_report(run))
    (run / "run.json").write_text(json.dumps({**RUN, key: None}))
    Checker(render_report(run))


def test_null_results_leave_a_page(run: Path):
    (run / "metrics.jsonl").unlink()
    (run / "result.json").write_text(json.dumps(dict.fromkeys(RESULT)))
    page = render_report(run)
    Checker(page)
    assert "no labelled test data" in page


def test_torn_files_are_named_and_skipped(run: Path):
    (run / "metrics.jsonl").unlink()
    (run / "run.json").write_text('{"datafree": "0.1')
    (run / "result.json").write_bytes(b"\xff\xfe")
    picture = run / "images/step-006000.png"
    picture.write_bytes(picture.read_bytes()[:100])
    page = render_report(run)
    Checker(page)
    for name in ("run.json", "result.json", "images/step-006000.png"):
        assert f"{name} could not be read" in page
    assert page.count("<img") == 2


def test_a_log_with_repeated_steps_gaps_and_numbers_that_are_none(run: Path):
    entries = [
        '{"step": 1, "seconds": 1, "student/kl": 4.0}',
        "not json",
        "[1, 2]",
        '{"seconds": 5, "student/kl": 99.0}',
        '{"step": 3, "seconds": 2, "student/kl": 9.0}',
        '{"step": 2, "seconds": 3, "student/kl": 3.0}',  # after a resume from step 1
        '{"step": 3, "seconds": 4, "student/kl": 2.0, "student/l1": "high"}',
        '{"step": 4, "seconds": 5, "student/kl": NaN, "agreement": Infinity, "test/accuracy": null}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(entries))
    page = render_report(run)
    assert "first 4, last 2, lowest 2, highest 4" in page
    assert page.count("<figcaption>") == 1


def test_a_training_with_data(run: Path):
    (run / "run.json").write_text(
        json.dumps({"job": "pretrain", "student": {"arch": "resnet20", "parameters": 272474}})
    )
    (run / "result.json").write_text(json.dumps({"accuracy": 0.9, "per_class": {"student": [0.5, 1.5]}}))
    (run / "metrics.jsonl").unlink()
    page = render_report(run)
    Checker(page)
    assert "training with data" in page
    assert "<h1>resnet20</h1>" in page
    assert "90.00 %" in page
    assert "--config" not in page
    assert ">Teacher<" not in page


def test_no_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="give the folder of a run"):
        render_report(tmp_path / "nowhere")
