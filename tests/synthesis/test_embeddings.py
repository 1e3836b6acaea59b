"""What a class is to a generator: rows of the right length and direction, and files that cannot be used."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datafree.synthesis.embeddings import class_embeddings
from datafree.synthesis.setting import Setting
from datafree.teacher import Teacher

Toy = Callable[..., Setting]


@pytest.mark.parametrize("kind", ["teacher", "onehot", "orthogonal", "file"])
def test_entries_have_the_size_of_normal_draws(toy: Toy, tmp_path: Path, kind: str) -> None:
    torch.save(torch.rand(4, 9) * 100, tmp_path / "rows.pt")
    rows = class_embeddings(str(tmp_path / "rows.pt") if kind == "file" else kind, toy())
    assert rows.dtype == torch.float32
    assert len(rows) == 4
    assert not rows.requires_grad
    torch.testing.assert_close(rows.square().mean(1), torch.ones(4))


def test_the_teachers_rows_are_those_of_its_last_layer(toy: Toy) -> None:
    last = nn.Linear(4, 4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), last)
    at = toy(teacher=Teacher(network, (0.5,) * 3, (0.25,) * 3))
    rows = class_embeddings("teacher", at)
    assert rows.shape == last.weight.shape
    torch.testing.assert_close(F.cosine_similarity(rows, last.weight), torch.ones(4))


def test_a_convolution_of_one_pixel_has_rows_too(toy: Toy) -> None:
    last = nn.Conv2d(8, 4, 1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    rows = class_embeddings("teacher", toy(teacher=Teacher(network, (0.5,) * 3, (0.25,) * 3)))
    assert rows.shape == (4, 8)
    torch.testing.assert_close(F.cosine_similarity(rows, last.weight.flatten(1)), torch.ones(4))


class HeadFirst(nn.Module):
    """Its head is registered before its trunk, which has a layer of as many outputs; it may be asked or read."""

    def __init__(self, asked: bool) -> None:
        super().__init__()
        self.head, self.trunk, self.asked = nn.Linear(4, 4), nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), asked

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.trunk(images)
        logits: torch.Tensor = self.head(maps) if self.asked else F.linear(maps, self.head.weight, self.head.bias)
        return logits


def test_rows_are_taken_of_the_layer_that_ran_last(toy: Toy) -> None:
    network = HeadFirst(True)
    teacher = Teacher(network, (0.5,) * 3, (0.25,) * 3)
    rows = class_embeddings("teacher", toy(teacher=teacher))
    torch.testing.assert_close(F.cosine_similarity(rows, network.head.weight), torch.ones(4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_rows_of_layers_that_nobody_calls_are_those_registered_last(toy: Toy) -> None:
    head = nn.Linear(192, 4)
    network = nn.Module()
    network.head = head
    network.forward = lambda images: F.linear(images.flatten(1), head.weight, head.bias)
    rows = class_embeddings("teacher", toy(teacher=Teacher(network, (0.5,) * 3, (0.25,) * 3)))
    torch.testing.assert_close(F.cosine_similarity(rows, head.weight), torch.ones(4))


def test_unit_vectors_and_right_angles(toy: Toy) -> None:
    torch.testing.assert_close(class_embeddings("onehot", toy()), 2 * torch.eye(4))  # length sqrt(4)
    rows = class_embeddings("orthogonal", toy())
    torch.testing.assert_close(rows @ rows.T, rows.shape[1] * torch.eye(4), atol=1e-3, rtol=0)
    assert torch.equal(rows, class_embeddings("orthogonal", toy())), "the run's seed fixes them"
    at = toy()
    torch.randn(1, generator=at.rng)
    assert not torch.equal(rows, class_embeddings("orthogonal", at))


def test_many_classes_are_still_at_right_angles(toy: Toy) -> None:
    rows = class_embeddings("orthogonal", toy(domain=dataclasses.replace(toy().domain, classes=100)))
    torch.testing.assert_close(rows @ rows.T / rows.shape[1], torch.eye(100), atol=1e-4, rtol=0)


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_rows_from_a_file_keep_their_direction(toy: Toy, tmp_path: Path, suffix: str) -> None:
    given = np.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    path = tmp_path / f"rows{suffix}"
    if suffix == ".npy":
        np.save(path, given)
    else:
        torch.save(torch.from_numpy(given), path)
    wanted = given / np.linalg.norm(given, axis=1, keepdims=True) * math.sqrt(2)
    torch.testing.assert_close(class_embeddings(str(path), toy()), torch.from_numpy(wanted).float())


def test_what_cannot_be_used_is_one_line(toy: Toy, tmp_path: Path) -> None:
    cases = {
        "missing.npy": (None, "take teacher, onehot, orthogonal, or a file that exists"),
        "rows.npy": (np.ones((3, 5)), "has 3 rows, the teacher 4 classes: give one a class"),
        "flat.npy": (np.ones(4), "give one finite array"),
        "holes.npy": (np.full((4, 2), np.nan), "give one finite array"),
        "empty.npy": (np.ones((4, 0)), "give one finite array"),
        "complex.npy": (np.ones((4, 2), dtype=np.complex64), "give one finite array"),
        "zeros.npy": (np.eye(4, 5) * (np.arange(4) > 0)[:, None], "no row of zeros"),
        "huge.npy": (np.full((4, 2), 1e200), "give one finite array"),
        "objects.npy": (np.array([{}, {}], dtype=object), "not a .npy or .pt file with one array"),
    }
    for name, (content, text) in cases.items():
        if content is not None:
            np.save(tmp_path / name, content, allow_pickle=True)
        with pytest.raises(ValueError, match=text) as caught:
            class_embeddings(str(tmp_path / name), toy())
        assert "\n" not in str(caught.value)
    (tmp_path / "text.pt").write_text("no tensor")
    torch.save({"rows": torch.ones(4, 2)}, tmp_path / "many.pt")
    for name in ("text.pt", "many.pt"):
        with pytest.raises(ValueError, match=f"--embedding .*{name}: "):
            class_embeddings(str(tmp_path / name), toy())


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


def test_a_file_of_rows_is_never_unpickled(toy: Toy, tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "gone off")
    torch.save({"rows": torch.ones(4, 2), "bomb": bomb}, tmp_path / "rows.pt")
    np.save(tmp_path / "rows.npy", np.array([bomb] * 4, dtype=object), allow_pickle=True)
    for name in ("rows.pt", "rows.npy"):
        with pytest.raises(ValueError, match=r"not a \.npy or \.pt file"):
            class_embeddings(str(tmp_path / name), toy())
    assert not bomb.path.exists()


def test_a_teacher_without_such_a_layer_is_refused(toy: Toy) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    with pytest.raises(ValueError, match=r"no linear layer or 1x1 convolution .* has 4 outputs; take onehot or orth"):
        class_embeddings("teacher", toy(teacher=Teacher(network, (0.5,) * 3, (0.25,) * 3)))
