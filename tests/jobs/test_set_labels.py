"""`evaluate_set`: whose labels networks are trained on, DD-Ranking's scores, and data sets of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from datafree.data.condensed import CondensedSet
from datafree.domain import DOMAINS
from datafree.evaluation import condensed as scoring
from datafree.evaluation import ranking
from datafree.evaluation.protocols import Protocol
from datafree.jobs.condensing import condense
from datafree.jobs.judging import evaluate_set, stored_counts
from datafree.models import build_model

QUICK = Protocol(steps=1, networks=1, arch="mlp", lr=0.02)
INFO = {"method": "sre2l", "data": "digits", "images_per_class": [1] * 10}


class Trained(NamedTuple):
    images: Tensor
    labels: Tensor
    lr: float | None


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Trained]:
    """What networks were to be trained on; they stay as they are made."""
    seen: list[Trained] = []

    def train_networks(make: Any, images: Tensor, labels: Tensor, *_: Any, **options: Any) -> Any:
        seen.append(Trained(images, labels, options["lr"]))
        return [make().eval() for _ in range(options["count"])]

    monkeypatch.setattr(scoring, "train_networks", train_networks)
    return seen


@pytest.fixture
def teacher(tmp_path: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    """A file, and its probabilities of images in [0, 1]."""
    torch.manual_seed(1)
    domain = DOMAINS["digits"]
    network = build_model("mlp", shape=domain.shape, classes=10).eval()
    torch.save(network.state_dict(), tmp_path / "mlp.pt")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (domain.mean, domain.std))

    @torch.no_grad()
    def answers(images: Tensor) -> Tensor:
        probabilities: Tensor = network((images - mean) / std).softmax(1)
        return probabilities

    return str(tmp_path / "mlp.pt"), answers


def a_set(labels: Tensor | None = None, **changes: Any) -> CondensedSet:
    """One image of each digit; soft labels take all for zeros unless others are given."""
    logits = torch.zeros(10, 10)
    logits[:, 0] = 5
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    values: dict[str, Any] = {"info": INFO, "domain": DOMAINS["digits"], **changes}
    return CondensedSet(images=images, labels=logits if labels is None else labels, **values)


def test_a_soft_set_with_hard_labels_has_the_classes_of_its_images(trained: list[Trained]) -> None:
    assert evaluate_set(a_set(), protocol=QUICK, set_labels="hard")["set_labels"] == "hard"
    on_set, on_real = trained
    assert on_set.labels.tolist() == list(range(10))
    assert sorted(on_real.labels.tolist()) == list(range(10))
    # The random images' figures are those of the set's own labels: found in the cache.
    assert evaluate_set(a_set(), protocol=QUICK)["set_labels"] == "own"
    assert len(trained) == 3
    torch.testing.assert_close(trained[2].labels, a_set().decoded()[1])


def test_a_teachers_labels_are_those_of_random_images_too(
    trained: list[Trained], teacher: tuple[str, Callable[[Tensor], Tensor]]
) -> None:
    file, answers = teacher
    for condensed in (a_set(), a_set(torch.arange(10))):
        evaluate_set(condensed, protocol=QUICK, set_labels="teacher", teacher=file, teacher_arch="mlp")
        on_set, on_real = trained[-2:]
        torch.testing.assert_close(on_set.labels, answers(condensed.images))
        torch.testing.assert_close(on_real.labels, answers(on_real.images / 255))
    assert len(trained) == 4  # nothing that depends on a file is kept
    evaluate_set(a_set(), protocol=QUICK)
    assert trained[-1].labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set_labels": "soft"}, "--set-labels soft: give own, hard, teacher"),
        ({"set_labels": "teacher"}, "--set-labels teacher: give the teacher, --teacher FILE"),
        ({"set_labels": "hard", "teacher": "x.pt"}, "leave --teacher out, or give --set-labels teacher"),
        ({"set_labels": "hard", "protocol": "rded"}, "protocol rded trains on a teacher's labels of augmented images"),
        ({"rank": True, "protocol": "vico"}, "protocol vico is not DD-Ranking's: give --protocol ddranking"),
        ({"rank": True, "protocol": "ddranking"}, "--rank compares soft labels with a teacher's"),
        (
            {"rank": True, "protocol": "ddranking", "set_labels": "hard", "teacher": "x.pt"},
            "leave --teacher out, or give --set-labels teacher",
        ),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str, trained: list[Trained]) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_set(a_set(), **{"protocol": QUICK, **options})
    assert "\n" not in str(caught.value)
    assert not trained


@pytest.mark.parametrize(("labels", "taught"), [("own", True), ("hard", False), ("teacher", True)])
def test_dd_ranking_gets_the_set_as_it_is_scored(
    labels: str,
    taught: bool,
    trained: list[Trained],
    teacher: tuple[str, Callable[[Tensor], Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    def rank(data: Any, **options: Any) -> dict[str, Any]:
        given.update(options)
        return {"label_robust_score_mean": 0.25, "accuracies": {"synthetic": [0.5, 0.5]}}

    monkeypatch.setattr(ranking, "rank", rank)
    file, answers = teacher
    options: dict[str, Any] = {"teacher": file, "teacher_arch": "mlp"} if taught else {}
    condensed = a_set(learning_rate=0.3)
    said: list[str] = []
    result = evaluate_set(
        condensed, protocol="ddranking", archs=["mlp"], networks=2, rank=True, set_labels=labels, say=said.append,
        **options,
    )  # fmt: skip
    assert result["label_robust_score_mean"] == 0.25
    assert result["ranking_accuracies"] == {"synthetic": [0.5, 0.5]}
    assert given["hard_labels"].tolist() == list(range(10))
    assert given["full_accuracies"] == [result["whole_accuracy"]] * 2
    assert (given["stored"], given["syn_lr"], given["networks"]) == ([1] * 10, 0.3, 2)
    soft = {"own": condensed.decoded()[1], "hard": None, "teacher": answers(condensed.images)}[labels]
    assert (given["soft_labels"] is None) == (soft is None)
    if soft is not None:
        torch.testing.assert_close(given["soft_labels"], soft)
    assert (given["teacher"] is not None) == taught
    assert "training 30 networks of mlp more for DD-Ranking's scores" in said


def test_data_sets_of_ones_own(tmp_path: Path, trained: list[Trained]) -> None:
    """What `condense` takes is what `evaluate_set` takes, with a test set beside it."""
    x, y = torch.rand(30, 3, 9, 14), torch.arange(30) % 3
    train, test = TensorDataset(x, y), TensorDataset(x[:7], y[:7])
    condense(data=train, method="random", ipc=2, out=tmp_path / "run", threads=1)
    result = evaluate_set(tmp_path / "run", (train, test), protocol=QUICK, archs=["mlp"])
    assert result["data"] == "dataset"
    assert [len(each.images) for each in trained] == [6, 6]
    assert result["accuracies"][0] * 7 == pytest.approx(round(result["accuracies"][0] * 7))
    with pytest.raises(ValueError, match=r"data is a TensorDataset: give a name, a datafree.Data, or \(train, test\)"):
        evaluate_set(tmp_path / "run", cast(Any, test), protocol=QUICK)
    wrong = TensorDataset(x[:7], y[:7] + 1)
    with pytest.raises(ValueError, match="the test images or labels do not fit"):
        evaluate_set(tmp_path / "run", (train, wrong), protocol=QUICK)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, [1] * 10),
        ({"info": {"images_per_class": [2, 0] + [1] * 8}}, [2, 0] + [1] * 8),
        ({"info": {}}, [10] + [0] * 9),
        ({"labels": torch.arange(10) // 2, "factor": 2}, [2] * 5 + [0] * 5),
    ],
)
def test_as_many_random_images_as_are_stored(changes: dict[str, Any], counts: list[int]) -> None:
    assert stored_counts(a_set(**changes)) == counts
