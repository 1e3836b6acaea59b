"""The defaults behind a cell: what its run would take where neither the table nor a person says anything.

A table's hash holds what the table says. Results also keep these, so that one made with other defaults is told from
what the same command would give now.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from datafree import condensation, synthesis
from datafree.config import CondenseConfig, PretrainConfig, TrainConfig, light_config, source_of
from datafree.tables.specs import Cell

JOBS: dict[str, Any] = {"train": TrainConfig, "condense": CondenseConfig, "pretrain": PretrainConfig}
ROOMS: dict[str, ModuleType] = {"train": synthesis, "condense": condensation}  # of the jobs that have methods
# What is said of options elsewhere: by a method's class, and by the files that settle what is left open.
CLASS_DEFAULTS = ("LOOP", "FEW_IMAGES", "STUDENT", "WITHOUT_STATISTICS")
JOBS_FOLDER = Path(__file__).parent.parent / "jobs"
PROTOCOLS_FILE = JOBS_FOLDER.parent / "evaluation" / "protocols.py"
JOB_DEFAULTS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {"filling.py": ("WITHOUT_NORM", "RATE_BATCH", "RATES")},
    "condense": {"condense_defaults.py": ("DEFAULTS", "FEW")},
    "pretrain": {"pretraining.py": ("DEFAULTS",), "filling.py": ("RATES",)},
}
# They change how a run is written down or shown, and nothing that it finds.
WITHOUT_EFFECT = ("download", "checkpoint_every", "evaluations", "method")


def defaults_of(job: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> default, of the job's and the method's options that are not given; and of what fills them in, as text.

    Where such a text takes others by name (`MTT.LOOP`), it stands there a second time, "NAME in full".

    Args:
        job: "train", "condense" or "pretrain".
        options: what is given; for a job with methods, among them "method".
    """
    configs = [JOBS[job]]
    constants = dict[str, str]()
    for file, names in JOB_DEFAULTS[job].items():
        constants |= _constants(JOBS_FOLDER / file, None, names)
    if job in ROOMS:
        spec = ROOMS[job].method_spec(str(options["method"]))
        configs.append(light_config(spec))
        constants |= _constants(*source_of(spec), CLASS_DEFAULTS)
    fields = (field for config in configs for field in dataclasses.fields(config))
    plain = {f.name: f.default for f in fields if f.name not in (*options, *WITHOUT_EFFECT)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()} | constants


def cell_defaults(cell: Cell) -> dict[str, Any]:
    """`defaults_of` a cell; with what its preset and its protocol stand for, and how its teacher would be trained."""
    held = defaults_of(cell.job, cell.options)
    if "preset" in cell.options:
        held["PRESET"] = presets_of(cell.job, str(cell.options["method"])).get(str(cell.options["preset"]))
    if cell.evaluation is not None:
        name = str(cell.evaluation["protocol"])
        held["PROTOCOL"] = protocols()[name]
        left = {field: value for field, value in protocol_defaults(name).items() if cell.evaluation.get(field) is None}
        held |= {f"protocol's {field}": value for field, value in left.items()}
    recipe = (cell.teacher or {}).get("pretrain")
    taught = {} if recipe is None else defaults_of("pretrain", recipe)
    return held | {f"teacher's {name}": value for name, value in taught.items()}


@functools.cache
def usual_pretraining() -> dict[str, Any]:
    """What `pretrain` takes where nothing is said, by name."""
    plain = {field.name: field.default for field in dataclasses.fields(PretrainConfig)}
    filled = _entries(JOBS_FOLDER / "pretraining.py", None, "DEFAULTS")
    return plain | {name: ast.literal_eval(value) for name, value in filled.items()}


@functools.cache
def presets_of(job: str, method: str) -> dict[str, str]:
    """The method's published settings, as text by their names."""
    place = source_of(ROOMS[job].method_spec(method))
    return {name: ast.unparse(value) for name, value in _entries(*place, "PRESETS").items()}


@functools.cache
def protocols() -> dict[str, str]:
    """The ways to judge a condensed set: what they set, as text by their names."""
    calls = _entries(PROTOCOLS_FILE, None, "PROTOCOLS")
    return {name: ", ".join(sorted(_keywords(call).values())) for name, call in calls.items()}


def _keywords(call: ast.expr) -> dict[str | None, str]:
    """Of a call, as text; its `note` is nothing that is set."""
    assert isinstance(call, ast.Call)
    return {each.arg: ast.unparse(each) for each in call.keywords if each.arg != "note"}


@functools.cache
def protocol_defaults(name: str) -> dict[str, str]:
    """What a way to judge a condensed set leaves as all of them have it, as text by name."""
    given = {"note", *_keywords(_entries(PROTOCOLS_FILE, None, "PROTOCOLS")[name])}
    fields = _assigned(PROTOCOLS_FILE, "Protocol")
    return {field: ast.unparse(value) for field, value in fields.items() if field not in given}


# Reading sources ---------------------------------------------------------------------------------------------------


@functools.cache
def _tree(path: Path) -> ast.Module:
    """Read, not run: importing the file would load torch."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _assigned(path: Path, owner: str | None) -> dict[str, ast.expr]:
    """What is assigned to names in a file, or in the class `owner` there."""
    body = _tree(path).body
    if owner is not None:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == owner), [])
    found: dict[str, ast.expr] = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        found |= {target.id: value for target in targets if isinstance(target, ast.Name) and value is not None}
    return found


def _constants(path: Path, owner: str | None, names: Iterable[str]) -> dict[str, str]:
    """The text of what is assigned to the names."""
    found = {name: value for name, value in _assigned(path, owner).items() if name in names}
    texts = {name: ast.unparse(value) for name, value in found.items()}
    full = {f"{name} in full": ast.unparse(_in_full(path, value)) for name, value in found.items()}
    return texts | {name: text for name, text in full.items() if text not in texts.values()}


def _entries(path: Path, owner: str | None, name: str) -> dict[str, ast.expr]:
    """Of the literal dict with this name, in full; none where there is no such."""
    return dict(_pairs(_in_full(path, _assigned(path, owner).get(name, ast.Dict(keys=[], values=[])))))


def _pairs(held: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Of a literal dict, and of those that it takes in by **."""
    assert isinstance(held, ast.Dict)
    for key, value in zip(held.keys, held.values, strict=True):
        yield from _pairs(value) if key is None else [(str(ast.literal_eval(key)), value)]


def _in_full(path: Path, value: ast.expr) -> ast.expr:
    """The expression with what the file's own and imported names stand for in their place."""

    class InFull(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return _known(path, node.id, None, node.id) or node

        def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            return _known(path, owner, owner, node.attr) or node

    changed: ast.expr = InFull().visit(copy.deepcopy(value))
    return changed


def _known(path: Path, name: str, owner: str | None, assigned: str) -> ast.expr | None:
    """What a name of the file, or of the class `owner` that the file knows, stands for, in full."""
    home = _home(path, name)
    value = None if home is None else _assigned(home, owner).get(assigned)
    return None if home is None or value is None else _in_full(home, value)


def _home(path: Path, name: str) -> Path | None:
    """The file that a name of this file is of: its own, or one of the package that it imports it from."""
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return source_of(f"{node.module}:")[0] if str(node.module).startswith("datafree.") else None
    return path


def changed(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (then, now) of each default that differs; one that only either knows is no change. None: not known."""
    return {name: (held, now[name]) for name, held in (then or {}).items() if name in now and held != now[name]}
