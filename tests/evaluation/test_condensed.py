"""The score of a set, beside real images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datafree.data import Data, load_data, to_float
from datafree.evaluation import condensed
from datafree.evaluation.condensed import (
    class_counts,
    random_part,
    random_rows,
    score_set,
    summary,
    without_augmentation,
)
from datafree.evaluation.protocols import DSA, PROTOCOLS, Protocol, for_tiles

QUICK = Protocol(steps=10, batch_size=64, lr=0.05, schedule="cosine", networks=2, arch="mlp")


def digits() -> tuple[Data, Tensor, Tensor]:
    data = load_data("digits")
    assert data.x_train is not None
    assert data.y_train is not None
    return data, data.x_train, data.y_train


def test_interval_is_students() -> None:
    # Values 1..5: mean 3, sample deviation sqrt(5/2); Student's t for 4 degrees of freedom, 97.5 %: 2.7764 (tables).
    result = summary([0.1, 0.2, 0.3, 0.4, 0.5])
    assert result["accuracy_mean"] == pytest.approx(0.3)
    assert result["accuracy_std"] == pytest.approx(math.sqrt(2.5) / 10)
    half = 2.7764 * math.sqrt(2.5) / 10 / math.sqrt(5)
    assert result["interval_95"] == pytest.approx([0.3 - half, 0.3 + half], abs=1e-5)
    assert summary([0.4]) == {"accuracies": [0.4], "accuracy_mean": 0.4, "accuracy_std": 0.0, "interval_95": None}


def test_random_rows_are_as_many_a_class_and_none_twice() -> None:
    labels = torch.tensor([2, 0, 0, 2, 1, 0])
    rows = random_rows(labels, [2, 5, 1], torch.Generator().manual_seed(0))
    assert labels[rows].tolist() == [0, 0, 1, 2]
    assert len(set(rows.tolist())) == 4
    assert class_counts(labels, 4) == [3, 1, 2, 0]
    assert class_counts(torch.eye(3)[[0, 2, 2]], 3) == [1, 0, 2]


def test_more_images_score_better_beside_random_ones() -> None:
    data, x, y = digits()
    many = torch.cat([(y == label).nonzero().flatten()[:30] for label in range(10)])
    longer = replace(QUICK, steps=60)
    result, random = (
        score_set(to_float(x[many]), y[many], data, longer),
        random_part(data, longer, "mlp", counts=[1] * 10),
    )
    assert result["accuracy_mean"] > random["random_accuracy_mean"] + 0.1
    assert random["random_accuracy_mean"] > 0.3
    assert result["protocol"] == "custom"
    assert (result["networks"], result["images"], len(result["accuracies"])) == (2, 300, 2)
    assert random["random_accuracies"][0] != random["random_accuracies"][1]
    assert result["accuracy_std"] == pytest.approx(np.std(result["accuracies"], ddof=1))


def test_a_seed_gives_the_same_figures_again() -> None:
    data, x, y = digits()

    def scored(seed: int) -> tuple[list[float], list[float]]:
        result = score_set(x[:20], y[:20], data, QUICK, seed=seed)
        return result["accuracies"], random_part(data, QUICK, "mlp", counts=[1] * 10, seed=seed)["random_accuracies"]

    first, again, other = scored(0), scored(0), scored(1)
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_several_networks() -> None:
    data, x, y = digits()
    result = score_set(x[:20], y[:20], data, QUICK, archs=("mlp", "lenet5"), networks=1)
    assert list(result["archs"]) == ["mlp", "lenet5"]
    assert result["arch"] == "mlp"
    assert result["accuracy_mean"] == result["archs"]["mlp"]["accuracy_mean"]
    built: list[str] = []

    def make(arch: str) -> nn.Module:
        built.append(arch)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    result = score_set(x[:20], y[:20], data, replace(QUICK, arch="auto"), make=make)
    assert built == ["convnet3"] * 2
    assert result["arch"] == "convnet3"


def test_a_sets_tiles_and_rate_are_for_the_set_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random real images are whole: nothing of them is shuffled or enlarged. Their rate is the protocol's."""
    data, x, y = digits()
    seen: list[tuple[int, float, float | None]] = []

    def train(*given: object, lr: float | None = None, **_: object) -> list[nn.Module]:
        protocol = given[3]
        assert isinstance(protocol, Protocol)
        seen.append((protocol.patches, protocol.smallest_crop, lr))
        return [nn.Sequential(nn.Flatten(), nn.Linear(64, 10))]

    monkeypatch.setattr(condensed, "train_networks", train)
    score_set(x[:20], y[:20], data, "rded", networks=1, tiles=2, lr=0.3)
    score_set(x[:20], y[:20], data, "rded", networks=1)
    random_part(data, "rded", "mlp", counts=[1] * 10, networks=1)
    assert seen == [(2, 0.5, 0.3), (1, 1.0, None), (1, 1.0, None)]


def test_soft_labels() -> None:
    data, x, y = digits()
    rows = torch.cat([(y == label).nonzero().flatten()[:5] for label in range(10)])
    soft = 0.9 * torch.eye(10)[y[rows]] + 0.01
    result = score_set(to_float(x[rows]), soft, data, replace(QUICK, steps=40))
    assert result["accuracy_mean"] > 0.5


def test_without_augmentation() -> None:
    plain = without_augmentation(PROTOCOLS["idc"])
    assert (plain.augmentation, plain.cutmix) == ("none", 0.0)
    assert replace(plain, augmentation="color_crop_flip_scale_rotate", cutmix=0.5) == PROTOCOLS["idc"]
    assert PROTOCOLS["vico"].augmentation == DSA
    mosaics = without_augmentation(for_tiles(PROTOCOLS["rded"], 2))
    assert (mosaics.patches, mosaics.smallest_crop) == (1, 1.0)
    assert for_tiles(mosaics, 2) == mosaics


def test_what_cannot_be_scored() -> None:
    data, x, y = digits()
    with pytest.raises(ValueError, match="give data that fit"):
        score_set(torch.rand(2, 3, 8, 8), y[:2], data, QUICK)
    with pytest.raises(ValueError, match="the classes go from 0 to 9"):
        score_set(to_float(x[:2]), torch.tensor([0, 10]), data, QUICK)
    with pytest.raises(ValueError, match="give 1 or more"):
        score_set(to_float(x[:2]), y[:2], data, QUICK, networks=0)
    with pytest.raises(ValueError, match="no test split"):
        score_set(to_float(x[:2]), y[:2], replace(data, x_test=None), QUICK)
    with pytest.raises(ValueError, match="there is no image"):
        score_set(to_float(x[:0]), y[:0], data, QUICK)
    for labels in (y[:2].int(), y[:2, None], y[:3]):
        with pytest.raises(ValueError, match=r"give int64 \(2,\)"):
            score_set(to_float(x[:2]), labels, data, QUICK)
    with pytest.raises(ValueError, match=r"labels are no probabilities: give labels.softmax\(1\)"):
        score_set(to_float(x[:2]), torch.randn(2, 10), data, QUICK)
