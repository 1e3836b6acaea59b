"""The public whole jobs: one call each, from a configuration to a written run. They print nothing."""

from datafree.jobs.loading import load_student, load_teacher
from datafree.jobs.pretraining import pretrain
from datafree.jobs.scoring import evaluate, sample
from datafree.jobs.training import Interrupted, Result, dry_run, resume, train

__all__ = [
    "Interrupted",
    "Result",
    "dry_run",
    "evaluate",
    "load_student",
    "load_teacher",
    "pretrain",
    "resume",
    "sample",
    "train",
]
