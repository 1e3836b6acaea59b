"""`evaluate` on files of others, which say neither architecture nor normalisation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import datafree
from datafree.data import load_data
from datafree.data.condensed import CondensedSet
from datafree.domain import DOMAINS
from datafree.jobs.foreign import read_tensor
from datafree.jobs.judging import evaluate_set
from datafree.models import build_model


def test_the_normalisation_of_a_foreign_file_can_be_given(tmp_path):
    torch.manual_seed(0)
    network = build_model("lenet5", shape=(1, 8, 8), classes=10).eval()
    torch.save(network.state_dict(), tmp_path / "net.pt")
    data = load_data("digits")
    assert data.x_test is not None
    # By hand: what the network says of images shifted and scaled as told.
    with torch.no_grad():
        answers = [network((data.x_test / 255 - mean) / std).argmax(1) for mean, std in ((0.1, 0.4), (0.6, 0.2))]
    wanted = [(answer == data.y_test).float().mean().item() for answer in answers]
    assert wanted[0] != wanted[1]
    file = str(tmp_path / "net.pt")
    for (mean, std), accuracy in zip(((0.1, 0.4), (0.6, 0.2)), wanted, strict=True):
        scores = datafree.evaluate(file, "digits", arch="lenet5", mean=(mean,), std=(std,))
        assert abs(scores["accuracy"] - accuracy) < 1e-6
    both = datafree.evaluate(
        file, "digits", arch="lenet5", mean=(0.1,), std=(0.4,),
        teacher=file, teacher_arch="lenet5", teacher_mean=(0.6,), teacher_std=(0.2,),
    )  # fmt: skip
    assert abs(both["teacher_accuracy"] - wanted[1]) < 1e-6
    assert abs(both["agreement"] - (answers[0] == answers[1]).float().mean().item()) < 1e-6


@pytest.fixture
def silent(tmp_path: Path) -> str:
    """The file of a network that says nothing of itself."""
    torch.manual_seed(0)
    torch.save(build_model("resnet8", shape=(1, 8, 8), classes=10).eval().state_dict(), tmp_path / "silent.pt")
    return str(tmp_path / "silent.pt")


def answers(images: torch.Tensor) -> torch.Tensor:
    """What `silent` says of images in [0, 1], with the constants of the digits, by hand."""
    torch.manual_seed(0)
    network = build_model("resnet8", shape=(1, 8, 8), classes=10).eval()
    digits = DOMAINS["digits"]
    with torch.no_grad():
        logits: torch.Tensor = network((images - digits.mean[0]) / digits.std[0])
    return logits


def test_a_silent_teacher_is_normalised_as_the_students_data(silent: str, teacher: str) -> None:
    """The student knows its data, so nobody names them."""
    data = load_data("digits")
    assert data.x_test is not None
    assert data.y_test is not None
    wanted = (answers(data.x_test / 255).argmax(1) == data.y_test).float().mean().item()
    scores = datafree.evaluate(teacher, teacher=silent, teacher_arch="resnet8")
    assert scores["teacher_accuracy"] == pytest.approx(wanted, abs=1e-6)
    given = datafree.evaluate(
        teacher, teacher=silent, teacher_arch="resnet8", teacher_mean=(0.3052,), teacher_std=(0.3760,)
    )
    assert scores == given


def test_a_silent_teacher_is_normalised_as_the_sets_data(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever constants the networks on the set have."""
    import dataclasses

    seen: list[Any] = []

    def train_networks(make: Any, *_: Any, count: int, teacher: Any, **__: Any) -> list[Any]:
        seen.append(teacher)
        return [make().eval() for _ in range(count)]

    monkeypatch.setattr("datafree.evaluation.condensed.train_networks", train_networks)
    domain = dataclasses.replace(DOMAINS["digits"], mean=(0.5,), std=(0.25,))
    condensed = CondensedSet(
        images=torch.rand(10, 1, 8, 8), labels=torch.arange(10), domain=domain,
        info={"method": "dm", "data": "digits", "validation": False},
    )  # fmt: skip
    images = torch.rand(5, 1, 8, 8)
    for data in (None, "digits", load_data("digits")):
        evaluate_set(
            condensed, data, protocol="rded", networks=1, archs=["mlp"], teacher=silent, teacher_arch="resnet8"
        )
    assert len(seen) == 6
    for each in seen:
        assert torch.allclose(each(images), answers(images), atol=1e-5)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


def test_a_foreign_tensor_is_never_unpickled(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "gone off")
    torch.save([torch.ones(1, 1, 8, 8), bomb], tmp_path / "images.pt")
    np.save(tmp_path / "images.npy", np.array([bomb], dtype=object), allow_pickle=True)
    for name in ("images.pt", "images.npy"):
        with pytest.raises(ValueError, match="cannot be read as a tensor"):
            read_tensor(tmp_path / name)
    assert not bomb.path.exists()
