"""Data-free methods: inputs that excite a teacher, made from the teacher alone. One file a method."""

from __future__ import annotations

from importlib import import_module
from typing import Any

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


def method_spec(name: str) -> str:
    """The import string of a method.

    Raises:
        ValueError: unknown name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: take one of {', '.join(METHODS)}")
    return METHODS[name]


def load_method(name: str) -> Any:
    """The method's class: `Config`, `STUDENT`, `update`, `sample`, `state_dict`, `load_state_dict`."""
    module, _, cls = method_spec(name).partition(":")
    return getattr(import_module(module), cls)
