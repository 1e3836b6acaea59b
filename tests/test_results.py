"""The pages are what the result files say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from datafree import condensation, synthesis
from datafree.tables import find_tables, load_table, read_results
from datafree.tables.results import current

ROOT = Path(__file__).resolve().parent.parent


def load_script(name: str = "keep_results") -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_the_result_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert load_script().rendered(readme) == readme


def test_the_readme_shows_each_length_and_every_baseline_that_was_run():
    script = load_script()
    shown = script.short_table()
    for name in script.SHOWN:
        table = load_table(name)
        found, _ = current(table, read_results(ROOT / "benchmarks" / "results" / name))
        run = [cell for cell in table.cells if any(result.done for result in found[cell.name])]
        compared = {cell.group for cell in run if cell.row not in script.BASELINES}
        for cell in run:
            if cell.group not in compared:  # baselines alone
                continue
            part = re.split(r"\n\| (?! \|)", shown.partition(f"\n| {table.groups[cell.group]} ")[2])[0]
            if cell.row in script.BASELINES:
                assert f" {cell.title}" in part.partition("\n")[0], cell.name
            else:
                assert f"| {script.length(cell)} | " in f"| {part}", cell.name


def test_the_pages_of_tables_show_the_result_files():
    pages = load_script().pages()
    assert {path.name for path in pages} == {"README.md", "not-run.md"}
    assert {path: path.read_text(encoding="utf-8") for path in pages} == pages
    for name in find_tables():  # each table stands on one of the two
        assert sum(f"\n## {load_table(name).title}\n" in text for text in pages.values()) == 1


METHOD_PAGES = load_script("method_pages")
PAGES = METHOD_PAGES.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_methods_pages_show_the_code_and_the_result_files(page):
    text = page.read_text(encoding="utf-8")
    assert METHOD_PAGES.rendered(page, PAGES[page], text) == text


def test_every_method_has_a_page_with_its_flags():
    assert {name for names in PAGES.values() for name in names} == {*synthesis.METHODS, *condensation.METHODS}
    flags = METHOD_PAGES.flags("blend")
    assert flags[2].startswith("| `--")
    assert any(line.startswith("| `--lr` | ") for line in flags)


DATA_FREE = sorted(page for page in PAGES if page.parent.name == "methods")


def sections(page: Path) -> dict[str, str]:
    """Heading -> what stands below it, in the page's order."""
    _, *parts = page.read_text(encoding="utf-8").split("\n## ")
    return {heading: text for heading, _, text in (part.partition("\n") for part in parts)}


@pytest.mark.parametrize("page", DATA_FREE, ids=lambda page: page.stem)
def test_a_page_begins_with_the_differences_and_says_terms_and_cost(page):
    found = sections(page)
    lists = [heading for heading, text in found.items() if re.search(r"^1\. ", text, re.MULTILINE)]
    assert list(found)[: len(lists)] == lists
    assert lists or page.stem == "blend"  # ours: there is nothing to differ from
    assert list(found)[-2:] == ["Flags", "Results"]
    assert "`student/" in found["Logged terms"]
    method = synthesis.load_method(page.stem)
    cost = " ".join(found["Cost"].split())
    assert f"{method.Config().student_steps} student steps" in cost
    steps = getattr(method.Config(), "pixel_steps", getattr(method.Config(), "generator_steps", 1))
    kind = "pixel" if hasattr(method.Config(), "pixel_steps") else "generator"
    assert page.stem == "noise" or f"{steps} {kind} step" in cost


@pytest.mark.parametrize("name", ["cudfkd", "mad", "ssd"])
def test_a_page_of_our_reading_claims_no_faithfulness(name):
    before, _, _ = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8").partition("\n## ")
    assert "no faithfulness to the paper is claimed" in " ".join(before.lower().split())


def test_a_pages_results_say_what_they_cost():
    page = ROOT / "docs" / "methods" / "dfq.md"
    head, _, *rows = (line.split(" | ") for line in METHOD_PAGES.results(page, ["dfq"]))
    at = [head.index(name) for name in ("images", "synthesis", "distillation")]
    assert at == list(range(at[0], at[0] + 3))
    run = [row for row in rows if "**" in row[head.index("accuracy")]]
    waiting = [row for row in rows if row[head.index("accuracy")] == "not run"]
    assert run
    assert waiting
    for row in run:
        path = (page.parent / re.findall(r"\]\((.*)\)", row[-1])[0]).resolve()
        result = json.loads(path.read_text(encoding="utf-8"))["result"]
        seconds = [f"{result[f'{name}_seconds']:.0f} s" for name in ("synthesis", "distillation")]
        assert [row[i] for i in at] == [f"{result['images']:,}", *seconds]
    assert {row[i] for row in waiting for i in at} == {""}


KILLED = {"status": "failed", "error": "killed"}


@pytest.mark.parametrize(
    ("changes", "kept"),  # the name's end, what is changed; the name's end, seconds
    [
        ([("", {}), ("", {}), ("", {"seconds": 9.0}), ("", KILLED)], [("-old1", None), ("", 9.0)]),
        ([("-old1", {"superseded": "spoilt"}), ("", {"seconds": 9.0}), ("", {})], [("-old1", None), ("", 9.0)]),
        ([("-old1", {}), ("-old1", {"seconds": 9.0}), ("-old2", {"seconds": 8.0})], [
            ("-old1", None), ("-old2", 9.0), ("-old3", 8.0),
        ]),
        ([("", KILLED), ("", {})], [("", None)]),
        ([("", KILLED), ("", {"error": "again", "status": "failed"})], [("-old1", None), ("", None)]),
    ],
)  # fmt: skip
def test_results_that_are_kept_replace_no_finished_one(changes, kept, tmp_path, monkeypatch):
    script, table, folder = load_script(), load_table("digits-smoke"), tmp_path / "results" / "digits-smoke"
    monkeypatch.setattr(script, "BENCHMARKS", tmp_path)
    source = ROOT / "benchmarks" / "results" / "digits-smoke"
    first = next(r for r in read_results(source) if r.done)
    content = json.loads(first.path.read_text(encoding="utf-8"))
    for number, (end, change) in enumerate(changes):
        new = tmp_path / str(number) / table.name / f"{first.path.stem}{end}.json"
        new.parent.mkdir(parents=True)
        new.write_text(json.dumps(content | change), encoding="utf-8")
        script.keep(tmp_path / str(number))
    found = {result.path.name: result.content["seconds"] for result in read_results(folder)}
    assert found == {f"{first.path.stem}{end}.json": seconds or content["seconds"] for end, seconds in kept}


def test_every_method_has_a_row():
    rows = {cell.row for cell in load_table("data-free-cpu").cells}
    assert rows >= set(synthesis.METHODS)
    tables = [load_table(name) for name in find_tables() if name.startswith("condensation")]
    used = {cell.options["method"] for table in tables for cell in table.cells}
    assert used >= set(condensation.METHODS) - {"k-means"}


@pytest.mark.parametrize("name", find_tables())
def test_result_files_keep_to_the_schema_and_name_no_folder(name):
    for result in read_results(ROOT / "benchmarks" / "results" / name):
        cell = result.content
        text = json.dumps([cell["run"], cell["result"], cell["scores"]])
        assert not re.search(r"(?<![\w.])/\w+/\w", text)
        assert '"/' not in text
