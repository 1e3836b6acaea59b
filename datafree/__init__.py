"""Data-free distillation and data-set condensation.

The public names below are loaded when first used, so that `import datafree` and the command line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from datafree.data import Data as Data
    from datafree.data import load_data as load_data
    from datafree.data.condensed import CondensedSet as CondensedSet
    from datafree.data.condensed import load_condensed as load_condensed
    from datafree.distillation import distill as distill
    from datafree.domain import DOMAINS as DOMAINS
    from datafree.domain import Domain as Domain
    from datafree.evaluation.ranking import rank as rank
    from datafree.jobs import Result as Result
    from datafree.jobs import condense as condense
    from datafree.jobs import evaluate as evaluate
    from datafree.jobs import evaluate_set as evaluate_set
    from datafree.jobs import load_student as load_student
    from datafree.jobs import load_teacher as load_teacher
    from datafree.jobs import pretrain as pretrain
    from datafree.jobs import reproduce as reproduce
    from datafree.jobs import resume as resume
    from datafree.jobs import sample as sample
    from datafree.jobs import train as train
    from datafree.models import build_model as build_model
    from datafree.synthesis import METHODS as METHODS
    from datafree.synthesis import load_method as load_method
    from datafree.teacher import Teacher as Teacher

# Rooms whose functions and classes can be used alone.
_ROOMS = ("condensation", "distillation", "evaluation", "generators", "losses", "models", "synthesis")
_PUBLIC = {
    "CondensedSet": "datafree.data.condensed",
    "DOMAINS": "datafree.domain",
    "Data": "datafree.data",
    "Domain": "datafree.domain",
    "METHODS": "datafree.synthesis",
    "Result": "datafree.jobs",
    "Teacher": "datafree.teacher",
    "build_model": "datafree.models",
    "condense": "datafree.jobs",
    "distill": "datafree.distillation",
    "evaluate": "datafree.jobs",
    "evaluate_set": "datafree.jobs",
    "load_condensed": "datafree.data.condensed",
    "load_data": "datafree.data",
    "load_method": "datafree.synthesis",
    "load_student": "datafree.jobs",
    "load_teacher": "datafree.jobs",
    "pretrain": "datafree.jobs",
    "rank": "datafree.evaluation.ranking",
    "reproduce": "datafree.jobs",
    "resume": "datafree.jobs",
    "sample": "datafree.jobs",
    "train": "datafree.jobs",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"datafree.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'datafree' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_ROOMS})
