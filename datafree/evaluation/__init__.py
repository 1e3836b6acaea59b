"""Scores of a network on labelled images, and what the network costs."""

from __future__ import annotations

from datafree.evaluation.accuracy import Scores, evaluate
from datafree.evaluation.cost import activation_bytes, latency_ms, multiply_adds, parameters

__all__ = ["Scores", "activation_bytes", "evaluate", "latency_ms", "multiply_adds", "parameters"]
