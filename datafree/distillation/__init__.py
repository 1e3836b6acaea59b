"""The student's side: what it learns, from which images, in turn with a synthesis method."""

from datafree.distillation.alternation import Alternation, distill

__all__ = ["Alternation", "distill"]
