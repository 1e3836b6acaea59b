"""DD-Ranking's scores: on the fraction scale, against the definitions' numbers, and from images to scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import datafree
from datafree.data import load_data, to_float
from datafree.data.loading import Data
from datafree.domain import DOMAINS, make_domain
from datafree.evaluation import ranking
from datafree.evaluation.protocols import Protocol
from datafree.evaluation.ranking import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    rank,
    scores,
)

# Derived from the definitions of DD-Ranking (NUS-HPC-AI-Lab/DD-Ranking, commit b8b0966) in float64, not run: the
# package's own numbers are on the scale of percentages.
FULL_HARD = [0.8137348328110564, 0.7656466493084921, 0.9256427432439784]
SYN_HARD = [0.2797832583616658, 0.22008657626327963, 0.16043185663122383]
SYN_OWN = [0.37276909500062816, 0.3322542914616222, 0.4911094983091255]
RANDOM_OWN = [0.30348512671310207, 0.48079116502769836, 0.6217396962094535]
SYN_NOAUG = [0.5980066638864373, 0.317730301435147, 0.27418699766259624]
RANDOM_NOAUG = [0.43707945876097964, 0.34319405751857257, 0.4118663675558296]
HLR = [0.5339515744493906, 0.5455600730452125, 0.7652108866127546]
IOR = [0.06928396828752609, -0.14853687356607614, -0.13063019790032798]
LRS = [0.1807358777142803, 0.1441845143448175, 0.11533174586105834]
ARS = [0.3208439804411443, 0.23349081367400965, 0.2155270366426063]


@pytest.mark.parametrize("i", range(3))
def test_scores_equal_the_definitions(i: int) -> None:
    hlr = hard_label_recovery(FULL_HARD[i], SYN_HARD[i])
    ior = improvement_over_random(SYN_OWN[i], RANDOM_OWN[i])
    assert hlr == pytest.approx(HLR[i], rel=1e-9)
    assert ior == pytest.approx(IOR[i], rel=1e-9)
    assert label_robust_score(hlr, ior) == pytest.approx(LRS[i], rel=1e-9)
    ars = augmentation_robust_score(SYN_OWN[i], RANDOM_OWN[i], SYN_NOAUG[i], RANDOM_NOAUG[i])
    assert ars == pytest.approx(ARS[i], rel=1e-9)


def test_bounds_and_weights() -> None:
    assert label_robust_score(1, -1) == 0
    assert label_robust_score(-1, 1) == pytest.approx(1)
    # IOR 20 points, HLR 40: a = -0.1, (e^-0.1 - e^-1) / (e - e^-1).
    assert label_robust_score(0.4, 0.2) == pytest.approx((math.exp(-0.1) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert label_robust_score(0.4, 0.2, weight=1) == label_robust_score(-0.2, 0.2)
    assert augmentation_robust_score(0.5, 0.2, 0.4, 0.4, weight=0) == label_robust_score(0, 0)
    with pytest.raises(ValueError, match="not percentages"):
        hard_label_recovery(85.0, 60.0)


def test_means_over_runs() -> None:
    names = ("full_hard", "synthetic_hard", "synthetic", "random", "synthetic_unaugmented", "random_unaugmented")
    columns = (FULL_HARD, SYN_HARD, SYN_OWN, RANDOM_OWN, SYN_NOAUG, RANDOM_NOAUG)
    result = scores(dict(zip(names, columns, strict=True)))
    wanted = {
        "hard_label_recovery": HLR,
        "improvement_over_random": IOR,
        "label_robust_score": LRS,
        "augmentation_robust_score": ARS,
    }
    assert list(result) == [f"{name}_mean" for name in wanted] + [f"{name}_std" for name in wanted]
    for name, values in wanted.items():
        assert result[f"{name}_mean"] == pytest.approx(np.mean(values))
        assert result[f"{name}_std"] == pytest.approx(np.std(values))


SHORT = Protocol(steps=8, batch_size=64, networks=2, arch="mlp", augmentation="crop", lr=0.05)
FULL = [0.95, 0.96]


def test_from_images_to_scores(tmp_path: Path) -> None:
    data = load_data("digits")
    assert data.x_train is not None
    assert data.y_train is not None
    rows = torch.cat([(data.y_train == label).nonzero().flatten()[:2] for label in range(10)])
    images = to_float(data.x_train[rows])
    settings: dict[str, Any] = {"protocol": SHORT, "full_accuracies": FULL, "syn_lr": 0.05}
    result = rank(data, image_tensor=images, **settings)
    found = result["accuracies"]
    assert {len(values) for values in found.values()} == {2}
    assert result["hard_label_recovery_mean"] == pytest.approx(np.mean(FULL) - np.mean(found["synthetic_hard"]))
    assert 0 < result["label_robust_score_mean"] < 1
    # Files, a folder a class: the same images and class numbers, hence the same numbers.
    for i, row in enumerate(rows.tolist()):
        folder = tmp_path / str(int(data.y_train[row]))
        folder.mkdir(exist_ok=True)
        Image.fromarray(data.x_train[row, 0].numpy()).save(folder / f"{i:03}.png")
    assert rank(data, image_path=tmp_path, **settings) == result


def test_soft_labels_are_compared_with_a_teachers() -> None:
    data = load_data("digits")
    asked: list[int] = []

    def teacher(images: Tensor) -> Tensor:
        asked.append(len(images))
        return torch.zeros(len(images), 10)

    soft = 0.9 * torch.eye(10) + 0.01
    settings: dict[str, Any] = {"protocol": SHORT, "full_accuracies": FULL[:1], "networks": 1}
    run: Callable[..., dict[str, Any]] = rank
    result = run(data, image_tensor=torch.rand(10, 1, 8, 8), soft_labels=soft, teacher=teacher, **settings)
    assert asked == [10]
    # A teacher that knows nothing teaches nothing.
    assert result["accuracies"]["random"][0] < 0.3
    with pytest.raises(ValueError, match="give a teacher"):
        run(data, image_tensor=torch.rand(10, 1, 8, 8), soft_labels=soft, **settings)


def test_what_cannot_be_ranked() -> None:
    data = load_data("digits")
    with pytest.raises(ValueError, match="one of the two"):
        rank(data)
    with pytest.raises(ValueError, match="give hard_labels"):
        rank(data, image_tensor=torch.rand(11, 1, 8, 8))
    with pytest.raises(ValueError, match="give as many"):
        rank(data, image_tensor=torch.rand(10, 1, 8, 8), protocol=SHORT, full_accuracies=[0.9], syn_lr=0.05)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_told_before_anything_is_trained(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.evaluation.condensed.train_networks", lambda *_, **__: pytest.fail("trained"))
    change: dict[str, Any] = {f"x_{split}": None}
    data = replace(load_data("digits"), **change)
    with pytest.raises(ValueError, match=f"digits has no {split} split: add it"):
        rank(data, image_tensor=torch.rand(10, 1, 8, 8), protocol=SHORT)


GOOD: dict[str, Any] = {
    "image_tensor": torch.full((10, 1, 8, 8), 0.5), "protocol": SHORT, "full_accuracies": FULL, "syn_lr": 0.05,
}  # fmt: skip
EVEN = torch.full((10, 10), 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_tensor": torch.full((10, 1, 8, 8), 1.5)}, r"the images go from 1.5 to 1.5: give pixels in \[0, 1\]"),
        ({"image_tensor": torch.full((10, 1, 8, 8), math.nan)}, r"the images go from nan"),
        ({"image_tensor": torch.rand(10, 3, 8, 8)}, "of 1x8x8 images"),
        ({"image_tensor": torch.zeros(10, 1, 8, 8, dtype=torch.uint8)}, "give floats"),
        ({"hard_labels": torch.arange(1, 11)}, "hard_labels from 1 to 10: the classes go from 0 to 9"),
        ({"hard_labels": torch.arange(-1, 9)}, "hard_labels from -1 to 8"),
        ({"hard_labels": torch.arange(9)}, r"hard_labels of the shape \(9,\), torch.int64: give int64 \(10,\)"),
        ({"hard_labels": torch.arange(10.0)}, "torch.float32: give int64"),
        ({"soft_labels": EVEN[:, :9]}, r"soft_labels of the shape \(10, 9\), .*: give probabilities"),
        ({"soft_labels": EVEN.long()}, "torch.int64: give probabilities, floats"),
        ({"soft_labels": 3 * torch.eye(10)}, r"no probabilities: give soft_labels.softmax\(1\)"),
        ({"soft_labels": EVEN.log()}, "no probabilities"),
        ({"soft_labels": torch.full((10, 10), math.nan)}, "no probabilities"),
        ({"soft_labels": EVEN, "hard_labels": torch.full((10,), 10)}, "hard_labels from 10 to 10"),
        ({"full_accuracies": [95.0, 96.0]}, "not percentages"),
        ({"full_accuracies": [0.9]}, "1 accuracies of the whole data for 2 networks: give as many"),
        ({"networks": 0}, "0 networks: give 1 or more"),
        ({"syn_lr": 0.0}, "syn_lr is 0.0: give a number above 0"),
        ({"weight": 1.5}, "weight is 1.5: give a number from 0 to 1"),
        ({"protocol": replace(SHORT, labels="teacher"), "teacher": None}, "this protocol trains on a teacher's labels"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "accuracies", lambda *_, **__: pytest.fail("a network is trained"))
    with pytest.raises(ValueError, match=message) as caught:
        rank(load_data("digits"), **{**GOOD, "teacher": lambda x: torch.zeros(len(x), 10), **changes})
    assert "\n" not in str(caught.value)


def test_a_folder_has_to_be_there_with_a_subfolder_for_each_class(tmp_path: Path) -> None:
    files = {name: value for name, value in GOOD.items() if name != "image_tensor"}
    with pytest.raises(FileNotFoundError, match="image_path nowhere is no folder: give one with a subfolder"):
        rank(load_data("digits"), image_path="nowhere", **files)
    pictures(tmp_path, "three", "seven")
    with pytest.raises(ValueError, match=r"^the class folders seven, three, \.\.\. are not .* or give hard_labels$"):
        rank(load_data("digits"), image_path=tmp_path, **files)
    assert datafree.rank is rank
    found = rank(load_data("digits"), image_path=tmp_path, hard_labels=torch.tensor([7, 3]), **files)
    assert len(found["accuracies"]["synthetic"]) == 2


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir()
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(folder / name / "0.png")


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (("Ankle boot", "Bag", "T-shirt_top", "Trouser"), [9, 8, 0, 1]),
        (("0", "10", "2"), [0, 10, 2]),
        (("02-Pullover", "10"), [2, 10]),
        (("3", "03"), None),  # one class in two folders
        (("1", "11"), None),  # counted from 1
        (("3", "Bag"), None),
    ],
)
def test_folders_are_numbered_by_what_they_are_called(
    folders: tuple[str, ...], labels: list[int] | None, tmp_path: Path
) -> None:
    names = (*DOMAINS["fashion-mnist"].class_names, "Sock")
    domain = replace(DOMAINS["digits"], classes=11, class_names=names)
    pictures(tmp_path, *folders)
    if labels is None:
        with pytest.raises(ValueError, match="rename them to class numbers, from 0 on"):
            ranking._images(None, tmp_path, domain, numbered=True)
    else:
        found = ranking._images(None, tmp_path, domain, numbered=True)[1]
        assert found is not None
        assert found.tolist() == labels


def test_random_sets_are_as_large_as_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A multi-formation decodes to more images than it stores."""
    sizes: list[int] = []

    def train(_: Data, __: str, images: Tensor, *___: Any, **how: Any) -> list[float]:
        sizes.append(len(images))
        assert how["make"] is make
        return [0.5] * how["count"]

    def make(arch: str) -> Any:
        raise AssertionError(arch)

    monkeypatch.setattr(ranking, "accuracies", train)
    rank(load_data("digits"), **{**GOOD, "image_tensor": torch.rand(40, 1, 8, 8)}, stored=[1] * 10, make=make)
    assert set(sizes) == {40, 10}


def test_rates_are_chosen_on_training_images_and_each_score_has_its_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training images are 0 to 99, test images 200 and more: each says whose it is."""
    x_train, y_train = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(100) % 2
    test = torch.arange(200, 240, dtype=torch.uint8).view(-1, 1, 1, 1)
    domain = make_domain(shape=(1, 1, 1), classes=2)
    data = Data(domain=domain, x_train=x_train, y_train=y_train, x_test=test, y_test=torch.arange(40) % 2)
    calls: list[tuple[bool, Tensor, Tensor, Protocol, int, float]] = []

    def train(on: Data, name: str, images: Tensor, labels: Tensor, protocol: Protocol, *_: Any, **how: Any) -> Any:
        chosen = on.x_test is not test
        assert on.x_test is not None
        if chosen:
            held.update(on.x_test.flatten().tolist())
        calls.append((chosen, images, labels, protocol, how["count"], how["lr"]))
        # On held-out training images 0.05 is the best of the rates, on the test images 0.001.
        return [0.9 - abs(how["lr"] - (0.05 if chosen else 0.001))] * how["count"]

    held: set[int] = set()
    monkeypatch.setattr(ranking, "accuracies", train)
    protocol = Protocol(epochs=1, arch="mlp", augmentation="crop", cutmix=0.5)
    made, soft = torch.full((4, 1, 1, 1), 0.999), torch.tensor([[0.9, 0.1], [0.2, 0.8]]).repeat(2, 1)
    rank(
        data, image_tensor=made, soft_labels=soft, hard_labels=torch.tensor([1, 0, 1, 0]), protocol=protocol,
        networks=2, full_accuracies=[1.0, 1.0], teacher=lambda x: torch.zeros(len(x), 2),
    )  # fmt: skip
    assert len(held) == 10  # a tenth
    assert max(held) < 100
    assert {call[4] for call in calls if call[0]} == {1}
    final = [call for call in calls if not call[0]]
    assert {rate for *_, rate in final} == {0.05}
    own = [(labels.tolist(), p.labels, p.augmentation) for _, x, labels, p, *_ in final if torch.equal(x, made)]
    given = soft.tolist()
    assert own == [([1, 0, 1, 0], "hard", "none"), (given, "own", "crop"), (given, "own", "none")]
    random = [(x, labels, p) for _, x, labels, p, *_ in final if not torch.equal(x, made)]
    assert [p.augmentation for *_, p in random] == ["crop", "crop", "none", "none"]
    for x, labels, _ in random:
        assert not set((255 * x).round().int().flatten().tolist()) & held  # no image on which a rate was chosen
        assert torch.equal(labels, torch.full((4, 2), 0.5))
