"""Tables of results as data: what a cell is (TOML), what it gave (JSON), how both are shown (Markdown).

    cells   = load_table(path).cells          loading.py: TOML to specs.py, checked with file and line
    results = read_results(folder)            results.py: one JSON a cell and seed, against its schema
    page    = render(table, results)          rendering.py

Running a cell is `datafree.jobs.reproduce`.
"""

from datafree.tables.loading import load_table
from datafree.tables.rendering import render
from datafree.tables.results import TableResult, read_results
from datafree.tables.specs import Cell, Table, find_tables

__all__ = ["Cell", "Table", "TableResult", "find_tables", "load_table", "read_results", "render"]
