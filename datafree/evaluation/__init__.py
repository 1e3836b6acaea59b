"""Scores of a network on labelled images, and what the network costs."""

from __future__ import annotations

from datafree.evaluation.accuracy import Scores, evaluate
from datafree.evaluation.cost import activation_bytes, multiply_adds, parameters

__all__ = ["Scores", "activation_bytes", "evaluate", "multiply_adds", "parameters"]
