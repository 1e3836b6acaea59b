"""What a session says before its first step: how the teacher does on test images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datafree import parallel
from datafree.config import TrainConfig
from datafree.evaluation.accuracy import Scores, evaluate
from datafree.jobs.machine import random_states
from datafree.jobs.planning import make_plan
from datafree.jobs.session import Session, finish
from datafree.runs import Run


def test_what_the_first_process_found_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "from_first", lambda own: '{"student_accuracy": 0.5}' if own == "{}" else own)
    other: Any = SimpleNamespace(main=False)
    assert finish(other, print) == {"student_accuracy": 0.5}


def begun(teacher: str, **options: Any) -> Session:
    config = TrainConfig(teacher=teacher, student="resnet8", steps=2, batch_size=8, method="noise", **options)
    plan = make_plan(config, {}, torch.device("cpu"))
    return Session(plan, Run(Path()), lambda _: None, lambda: False)


def test_the_teacher_is_tried_on_test_images_of_all_classes(teacher: str, monkeypatch: Any) -> None:
    session, said = begun(teacher), list[str]()
    session.try_teacher(said.append)
    (line,) = said
    assert line.startswith("teacher: ")
    assert line.endswith("% of 355 test images are right")
    assert session.plan.warnings == []
    # Of images that lie class by class, as a folder's do, all classes are among those that are taken.
    data = session.plan.test
    assert data is not None
    assert data.x_test is not None
    assert data.y_test is not None
    order = data.y_test.argsort()
    session.plan.test = dataclasses.replace(data, x_test=data.x_test[order], y_test=data.y_test[order])
    seen: list[list[int]] = []

    def score(network: Any, images: torch.Tensor, labels: torch.Tensor) -> Scores:
        seen.append(labels.tolist())
        return evaluate(network, images, labels)

    monkeypatch.setattr("datafree.jobs.session.score", score)
    monkeypatch.setattr("datafree.jobs.session.LOOK_IMAGES", 100)
    session.try_teacher(said.append)
    assert len(seen[0]) == 89  # every fourth of 355
    assert len(set(seen[0])) == 10


def test_a_wrong_normalisation_is_warned_of_before_the_first_step(teacher: str) -> None:
    session, said = begun(teacher, mean=(2.0,), std=(0.01,)), list[str]()
    before = random_states(session.rng)
    session.try_teacher(said.append)
    assert said[1].startswith("warning: the teacher is near chance on 355 test images (")
    assert said[1].endswith("wrong normalisation (--mean, --std) or class order?")
    assert session.plan.warnings == [said[1].removeprefix("warning: ")]
    after = random_states(session.rng)
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["run"], after["run"])
    assert session.clock.elapsed == 0


def test_without_test_data_nothing_is_said(teacher: str) -> None:
    session, said = begun(teacher), list[str]()
    session.plan.test = None
    session.try_teacher(said.append)
    assert said == []
