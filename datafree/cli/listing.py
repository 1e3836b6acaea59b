"""`datafree list`."""

from __future__ import annotations

import ast
from pathlib import Path

import click

from datafree import condensation
from datafree.cli.display import table
from datafree.config import source_of
from datafree.data import DATA, find_data
from datafree.models import model_names, smaller_of_family
from datafree.synthesis import METHODS


@click.command("list")
@click.argument("what", type=click.Choice(["methods", "condensers", "models", "data", "generators"]))
def listing(what: str) -> None:
    """List methods, condensers (condensation methods), models, data or generators."""
    if what == "methods":
        rows = [(name, _first_line(spec.partition(":")[0])) for name, spec in METHODS.items()]
    elif what == "condensers":
        rows = [(name, condensation.ABOUT.get(name, "")) for name in condensation.METHODS]
    elif what == "models":
        rows = [(name, _family(name)) for name in model_names()]
        rows += [
            ("torchvision:NAME", "any of torchvision's classifiers"),
            ("timm:NAME", "any of timm's (pip install 'datafree[timm]')"),
        ]
        rows += [
            ("file.py:function", "your own: a function without arguments that returns the module; the file is run")
        ]
    elif what == "data":
        rows = [(name, f"{text}; {_where(name)}") for name, text in DATA.items()]
        rows += [
            ("npz:PATH", "x_train, y_train, x_test, y_test as uint8 NHWC or NHW"),
            ("imagefolder:PATH", "PATH/train/CLASS/*.png and PATH/test/CLASS/, or PATH/CLASS/ alone"),
        ]
    else:
        source = source_of("datafree.generators")[0].with_name("convolutional.py")
        rows = _functions(source, ("small", "large", "dcgan"))
    click.echo(table(rows))


def _first_line(module: str) -> str:
    """A method's first docstring line, read without loading torch."""
    tree = ast.parse(source_of(module)[0].read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").splitlines()[0].partition(": ")[2]


def _functions(file: Path, names: tuple[str, ...]) -> list[tuple[str, str]]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return [(name, (ast.get_docstring(nodes[name]) or "").splitlines()[0]) for name in names]


def _family(name: str) -> str:
    smaller = smaller_of_family(name)
    return f"next smaller: {smaller}" if smaller else ""


def _where(name: str) -> str:
    path = find_data(name)
    if path is None:
        return "not here"
    return "here" if name == "digits" else f"found at {path}"
