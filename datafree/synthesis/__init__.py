"""Data-free methods: inputs that excite a teacher, made from the teacher alone. One file a method."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from datafree.arguments import checked
from datafree.config import TrainConfig
from datafree.fields import fields_of, method_config, nearest

METHODS = {
    "noise": "datafree.synthesis.noise:Noise",
    "dafl": "datafree.synthesis.dafl:DAFL",
    "dfad": "datafree.synthesis.dfad:DFAD",
    "dfq": "datafree.synthesis.dfq:DFQ",
    "blend": "datafree.synthesis.blend:Blend",
    "cmi": "datafree.synthesis.cmi:CMI",
    "fast": "datafree.synthesis.fast:Fast",
    "spaceshipnet": "datafree.synthesis.spaceshipnet:SpaceshipNet",
    "deepinversion": "datafree.synthesis.deepinversion:DeepInversion",
    "zeroq": "datafree.synthesis.zeroq:ZeroQ",
    "nayer": "datafree.synthesis.nayer:NAYER",
    "pre": "datafree.synthesis.pre:PRE",
    "blackbox": "datafree.synthesis.blackbox:BlackBox",
    "zskt": "datafree.synthesis.zskt:ZSKT",
    "mad": "datafree.synthesis.mad:MAD",
    "cudfkd": "datafree.synthesis.cudfkd:CuDFKD",
    "ssd": "datafree.synthesis.ssd:SSD",
}

# What a method's `STUDENT` must say of the student's training, and what it may say.
STUDENT_NEEDS = ("criterion", "temperature", "optimizer", "lr", "weight_decay")
STUDENT_KNOWS = (
    *STUDENT_NEEDS,
    "augment",
    "attention",
    "gradient_clip",
    "inherit",
    "schedule",
    "milestones",
    "batch_size",
)
# What every method has once it is built.
PARTS = ("config", "made", "update", "sample", "state_dict", "load_state_dict")


def method_spec(name: str) -> str:
    """The import string of a method.

    Raises:
        ValueError: unknown name; names the nearest.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, list(METHODS))}")
    return METHODS[name]


@checked()
def load_method(name: str) -> Any:
    """The method's class: `Config`, `STUDENT`, `update`, `sample`, `state_dict`, `load_state_dict`.

    Raises:
        ValueError: unknown name, or a class that lacks what every method has.
    """
    module, _, cls = method_spec(name).partition(":")
    method = getattr(import_module(module), cls)
    check_method(method)
    return method


def check_method(method: type[Any]) -> None:
    """Raises ValueError, one line that names the class, where the job could not run a method as it is declared."""
    name, config = method.__name__, method_config(method, TrainConfig)
    if "student_steps" not in {field.name for field in fields_of(config)}:
        raise ValueError(f"{config.__name__} has no student_steps: add student_steps: StudentSteps = 1")
    student = getattr(method, "STUDENT", None)
    if not isinstance(student, Mapping):
        raise ValueError(f"{name} has no STUDENT: give a dict of {', '.join(STUDENT_NEEDS)}")
    for key in student:
        if key not in STUDENT_KNOWS:
            raise ValueError(f"{name}.STUDENT: unknown {key!r}{nearest(key, list(STUDENT_KNOWS))}")
    if lacking := [key for key in STUDENT_NEEDS if student.get(key) is None]:
        raise ValueError(f"{name}.STUDENT lacks {', '.join(lacking)}: add what the student learns with by default")


def check_parts(method: Any) -> None:
    """Raises ValueError, one line that names the class, where a method that is built lacks one of `PARTS`."""
    if lacking := [part for part in PARTS if not hasattr(method, part)]:
        raise ValueError(
            f"{type(method).__name__} has no {', '.join(lacking)}: give it what docs/add-a-method.md says of each"
        )


def check_values(method: Any, values: Any) -> None:
    """Raises ValueError, one line, where a method's `update` returned anything but floats by name.

    Only their types are looked at, so that no device is waited for.
    """
    if isinstance(values, Mapping):
        odd = [f"{key!r} as {type(v).__name__}" for key, v in values.items() if not isinstance(v, int | float)]
    else:
        odd = [type(values).__name__]
    if odd:
        raise ValueError(
            f"{type(method).__name__}.update() returned {odd[0]}: return floats by name, such as "
            "{'adv': float(term.detach())}, or {}"
        )
