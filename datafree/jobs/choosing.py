"""Which cells of a table are asked for: by pattern, cost, length and shard."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from datafree.fields import parse_duration
from datafree.tables import Cell, Table
from datafree.tables.specs import COSTS, with_budget


def choose(table: Table, patterns: Sequence[str], budget: str | None, costs: Sequence[str]) -> list[Cell]:
    """The cells that are asked for, in the table's order; a cell that is named is run whatever it costs.

    Cells that are one spec at the budget are one cell.
    """
    chosen = _chosen(table, patterns, costs)
    if budget is None:
        return chosen
    parse_duration(budget)
    of = at_length(table, budget)
    return list({of[cell.name].name: of[cell.name] for cell in chosen}.values())


def spelt(table: Table, budget: str | None) -> str | None:
    """A length as the table's cells spell it, else in minutes or seconds: 600s is their 10m, one spec and one result.

    Raises:
        ValueError: it is no length.
    """
    if budget is None:
        return None
    seconds = parse_duration(budget)
    own = (str(cell.options["budget"]) for cell in table.cells if cell.options.get("budget") is not None)
    usual = f"{seconds / 60:.0f}m" if seconds % 60 == 0 else f"{seconds:g}s"
    return next((each for each in (*own, usual) if parse_duration(each) == seconds), budget.strip().lower())


def at_length(table: Table, budget: str) -> dict[str, Cell]:
    """Name in the table -> its cell at the budget; of those that are one spec then, the first for all of them."""
    first: dict[str, Cell] = {}
    cells = {cell.name: with_budget(cell, budget) for cell in table.cells}
    return {name: first.setdefault(cell.digest(0), cell) for name, cell in cells.items()}


def twins(table: Table, patterns: Sequence[str], budget: str | None, costs: Sequence[str] | None) -> dict[str, str]:
    """Name at the budget of each cell that is asked for -> that of the cell that is run in its place."""
    if budget is None:
        return {}
    of = at_length(table, budget)
    names = {with_budget(c, budget).name: of[c.name].name for c in _chosen(table, patterns, allowed_costs(costs))}
    return {name: other for name, other in names.items() if name != other}


def _chosen(table: Table, patterns: Sequence[str], costs: Sequence[str]) -> list[Cell]:
    for pattern in patterns:
        if not any(_matches(cell, pattern) for cell in table.cells):
            names = ", ".join(cell.name for cell in table.cells[:8])
            more = ", ..." if len(table.cells) > 8 else ""
            raise ValueError(f"{table.name} has no cell {pattern!r}: take GROUP/ROW of {names}{more}")
    if patterns:
        return [cell for cell in table.cells if any(_matches(cell, pattern) for pattern in patterns)]
    return [cell for cell in table.cells if cell.cost in costs]


def _matches(cell: Cell, pattern: str) -> bool:
    return fnmatchcase(cell.name, pattern) or fnmatchcase(f"{cell.group}/{cell.row}", pattern)


def allowed_costs(costs: Sequence[str] | None) -> Sequence[str]:
    """The classes given; without any, what this machine can be asked to do."""
    if costs:
        for cost in costs:
            if cost not in COSTS:
                raise ValueError(f"--cost {cost}: take {', '.join(COSTS)}")
        return costs
    import torch

    return COSTS if torch.cuda.is_available() else COSTS[:2]


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        ValueError: not of that form, or i is not below n.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found and int(found[1]) < int(found[2]):
        return int(found[1]), int(found[2])
    raise ValueError(f"--shard {text}: give i/n with i from 0 to n - 1, such as 0/8")
