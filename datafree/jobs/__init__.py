"""The public whole jobs: one call each, from a configuration to a written run. They print nothing."""

from datafree.jobs.condensing import Condensed, condense, dry_run_condense, resume_condense
from datafree.jobs.foreign import foreign_set
from datafree.jobs.judging import evaluate_set
from datafree.jobs.loading import load_student, load_teacher
from datafree.jobs.pretraining import pretrain, resume_pretrain
from datafree.jobs.recording import record_experts
from datafree.jobs.reproducing import Reproduced, reproduce
from datafree.jobs.scoring import evaluate, sample
from datafree.jobs.session import Interrupted
from datafree.jobs.training import Result, dry_run, resume, train

__all__ = [
    "Condensed",
    "Interrupted",
    "Reproduced",
    "Result",
    "condense",
    "dry_run",
    "dry_run_condense",
    "evaluate",
    "evaluate_set",
    "foreign_set",
    "load_student",
    "load_teacher",
    "pretrain",
    "record_experts",
    "reproduce",
    "resume",
    "resume_condense",
    "resume_pretrain",
    "sample",
    "train",
]
