"""The condensed set as files: an image lies in the class it was made for, and the card says what was done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import ImageFolder

from datafree.data.condensed import CondensedSet
from datafree.data.loading import Data
from datafree.domain import DOMAINS, make_domain
from datafree.jobs.condensing import condense
from datafree.jobs.writing import card, write_set

TINY: dict[str, Any] = {"data": "digits", "ipc": 1, "threads": 1}
INFO = {"method": "sre2l", "arch": "mlp", "options": {"teacher": "resnet8"}, "images_per_class": [1] * 10}


def zeros(*, factor: int = 1, **info: Any) -> CondensedSet:
    """An image of each digit, all of which the labels take for zeros."""
    logits = torch.zeros(10 * factor**2, 10)
    logits[:, 0] = 5
    images = torch.rand(10, 1, 8, 8)
    return CondensedSet(
        images=images, labels=logits, domain=DOMAINS["digits"], factor=factor, info={**INFO, **info}
    )  # fmt: skip


def row(text: str, name: str) -> str:
    """What a row of the card's table says."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return line.removeprefix(f"| {name} | ").removesuffix(" |")


@pytest.mark.parametrize("factor", [1, 2])
def test_soft_labels_leave_images_in_the_classes_they_were_made_for(factor: int, tmp_path: Path) -> None:
    condensed = zeros(factor=factor)
    write_set(tmp_path, condensed, {})
    folder = ImageFolder(str(tmp_path / "images"))
    assert folder.classes == [str(i) for i in range(10)]
    wanted = list(range(10)) * factor**2  # patch by patch over all stored images
    assert [label for _, label in folder.samples] == sorted(wanted)
    for path, label in folder.samples:
        assert wanted[int(Path(path).stem)] == label


def test_sre2ls_classes_have_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.condensation.trained.train", lambda *_: None)  # a teacher that knows nothing
    result = condense(method="sre2l", steps=2, out=tmp_path / "run", **TINY)
    assert len(set(result.set.classes().tolist())) < 10
    assert len(ImageFolder(str(tmp_path / "run" / "images")).classes) == 10
    said = row((tmp_path / "run" / "card.md").read_text(), "looked through")
    assert said == f"{result.set.info['options']['teacher']} (the teacher)"


def test_hard_labels_of_rded_are_the_classes_of_its_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datafree.condensation.trained.train", lambda *_: None)
    result = condense(method="rded", labels="hard", out=tmp_path / "run", **TINY)
    assert result.set.labels.tolist() == list(range(10))


def test_the_card_of_images_that_are_no_png(tmp_path: Path) -> None:
    def made(channels: int) -> tuple[str, set[str]]:
        x, y = torch.randint(256, (12, channels, 8, 8), dtype=torch.uint8), torch.arange(12) % 3
        data = Data(domain=make_domain(shape=(channels, 8, 8), classes=3), x_train=x, y_train=y)
        folder = tmp_path / str(channels)
        condense(data=data, method="random", ipc=2, out=folder, threads=1)
        return (folder / "card.md").read_text(), {path.name for path in (folder / "images").iterdir()}

    text, held = made(4)
    assert held == {"grid.png"}
    assert "Images of 4 channels cannot be written as PNG: `images/` holds grids alone." in text
    assert "ImageFolder" not in text
    text, held = made(3)
    assert held == {"grid.png", "0", "1", "2"}
    assert "for `torchvision.datasets.ImageFolder`" in text


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({}, "resnet8 (the teacher)"),
        ({"teacher_file": {"file": "/a/b.pt", "arch": "vgg11", "sha256": "0"}}, "vgg11 (the teacher)"),
        ({"method": "frepo", "options": {}}, "mlp"),
        ({"method": "random", "options": {}}, "no network; labels are those of mlp"),
        ({"method": "foreign", "options": None, "arch": None}, "?"),
    ],
)
def test_the_card_says_which_network_was_asked(info: dict[str, Any], said: str) -> None:
    assert row(card(zeros(**info), {}), "looked through") == said


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"method": "herding"}, "who has the set has these records"),
        ({"method": "rded"}, "who has the set has these records"),
        ({"method": "dm", "init": "mosaic"}, "The images began as real ones"),
        ({"method": "dm", "init": "noise"}, "an image may resemble the records it was made from.\n"),
    ],
)
def test_the_card_says_what_of_the_data_the_images_may_show(info: dict[str, Any], said: str) -> None:
    text = card(zeros(**info), {})
    assert said in text
    assert ("real images" in text.splitlines()[2]) == ("these records" in said)
    assert text.endswith(said) == (info.get("init") == "noise")


def test_a_draw_of_real_images_asks_none() -> None:
    condensed = dataclasses.replace(zeros(method="random", options={}), labels=torch.arange(10))
    assert row(card(condensed, {}), "looked through") == "no network"
