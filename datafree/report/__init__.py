"""Pages that hold all they show: of one run (`single.py`), and of several side by side (`comparison.py`)."""

from datafree.report.single import render_report

__all__ = ["render_report"]
