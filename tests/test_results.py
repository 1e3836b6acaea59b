"""The README's table is what the result files say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from datafree.synthesis import METHODS

ROOT = Path(__file__).resolve().parent.parent


def load_script(name: str = "keep_result") -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_the_result_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert load_script().rendered(readme) == readme


def test_the_page_of_tables_shows_the_result_files():
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert load_script("condensation_table").render() == page


def test_every_data_free_method_has_a_row():
    assert set(load_script("data_free_table").spec()["methods"]) >= set(METHODS)


def test_result_files_name_no_folder_of_the_machine_that_made_them():
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    for file in files:
        kept = json.loads(file.read_text(encoding="utf-8"))
        assert not kept["run"]["config"]["teacher"].startswith("/")


def test_files_are_named_without_their_folders():
    named = load_script().named
    assert named({"a": ["/home/me/nets/x.py:make", "--data npz:/d/mnist.npz", "plain", 3]}) == {
        "a": ["x.py:make", "--data npz:mnist.npz", "plain", 3]
    }
    assert named("datafree train --teacher ../t/net.pt --out runs/a") == "datafree train --teacher net.pt --out a"
