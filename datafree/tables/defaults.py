"""The defaults behind a cell: what its run would take where neither the table nor a person says anything.

A table's hash holds what the table says. Results also keep these, so that one made with other defaults is told from
what the same command would give now.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datafree import condensation, synthesis
from datafree.config import CondenseConfig, PretrainConfig, TrainConfig, light_config
from datafree.tables.specs import Cell

JOBS: dict[str, Any] = {"train": TrainConfig, "condense": CondenseConfig, "pretrain": PretrainConfig}
SPECS: dict[str, Any] = {"train": synthesis.method_spec, "condense": condensation.method_spec}
# What is said of options elsewhere: by a method's class, and by the file that settles what is left open.
CLASS_DEFAULTS = ("LOOP", "FEW_IMAGES", "STUDENT", "WITHOUT_STATISTICS")
JOBS_FOLDER = Path(__file__).parent.parent / "jobs"
PROTOCOLS_FILE = JOBS_FOLDER.parent / "evaluation" / "protocols.py"
JOB_DEFAULTS = {
    "train": ("filling.py", ("WITHOUT_NORM", "RATE_BATCH", "RATES")),
    "condense": ("condense_defaults.py", ("DEFAULTS", "FEW")),
    "pretrain": ("pretraining.py", ("DEFAULTS",)),
}
# They change how a run is written down or shown, and nothing that it finds.
WITHOUT_EFFECT = ("download", "checkpoint_every", "evaluations", "method")


def defaults_of(job: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> default, of the job's and the method's options that are not given; and of what fills them in, as text.

    Args:
        job: "train", "condense" or "pretrain".
        options: what is given; for a job with methods, among them "method".
    """
    configs = [JOBS[job]]
    file, names = JOB_DEFAULTS[job]
    constants = _constants(_tree(JOBS_FOLDER / file).body, names)
    if job in SPECS:
        spec = SPECS[job](str(options["method"]))
        configs.append(light_config(spec))
        constants |= _constants(_class(spec), CLASS_DEFAULTS)
    fields = (field for config in configs for field in dataclasses.fields(config))
    plain = {f.name: f.default for f in fields if f.name not in (*options, *WITHOUT_EFFECT)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()} | constants


def cell_defaults(cell: Cell) -> dict[str, Any]:
    """`defaults_of` a cell; with what its preset and its protocol stand for, and how its teacher would be trained."""
    held = defaults_of(cell.job, cell.options)
    if "preset" in cell.options:
        held["PRESET"] = presets_of(cell.job, str(cell.options["method"])).get(str(cell.options["preset"]))
    if cell.evaluation is not None:
        held["PROTOCOL"] = protocols().get(str(cell.evaluation["protocol"]))
    recipe = (cell.teacher or {}).get("pretrain")
    taught = {} if recipe is None else defaults_of("pretrain", recipe)
    return held | {f"teacher's {name}": value for name, value in taught.items()}


@functools.cache
def presets_of(job: str, method: str) -> dict[str, str]:
    """The method's published settings, as text by their names."""
    return {name: ast.unparse(value) for name, value in _entries(_class(SPECS[job](method)), "PRESETS").items()}


@functools.cache
def protocols() -> dict[str, str]:
    """The ways to judge a condensed set: what they set, as text by their names."""
    calls = _entries(_tree(PROTOCOLS_FILE).body, "PROTOCOLS")
    return {name: ", ".join(sorted(_keywords(call))) for name, call in calls.items()}


def _keywords(call: ast.expr) -> list[str]:
    """Of a call, as text; its `note` is nothing that is set."""
    assert isinstance(call, ast.Call)
    return [ast.unparse(each) for each in call.keywords if each.arg != "note"]


def _class(spec: str) -> list[ast.stmt]:
    """What stands in the class of "module:Class"."""
    module, _, name = spec.partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    body = _tree(Path(found.origin)).body
    return next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == name)


def _entries(body: Iterable[ast.stmt], name: str) -> dict[str, ast.expr]:
    """Of the literal dict with this name; none where there is no such."""
    text = _constants(body, (name,)).get(name, "{}")
    held = ast.parse(text, mode="eval").body
    assert isinstance(held, ast.Dict)
    pairs = zip(held.keys, held.values, strict=True)
    return {key.value: value for key, value in pairs if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def _constants(body: Iterable[ast.stmt], names: Iterable[str]) -> dict[str, str]:
    """The text of assignments to the names."""
    found: dict[str, str] = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        found |= {t.id: ast.unparse(value) for t in targets if isinstance(t, ast.Name) and t.id in names and value}
    return found


@functools.cache
def _tree(path: Path) -> ast.Module:
    """Read, not run: importing the file would load torch."""
    return ast.parse(path.read_text(encoding="utf-8"))


def changed(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (then, now) of each default that differs; one that only either knows is no change. None: not known."""
    return {name: (held, now[name]) for name, held in (then or {}).items() if name in now and held != now[name]}
