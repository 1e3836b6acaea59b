"""The condensed set: items, budget, and the file, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from datafree.data.condensed import FILE, CondensedSet, load_condensed, to_bytes
from datafree.data.whitening import Whitening
from datafree.domain import DOMAINS, make_domain

DOMAIN = make_domain(shape=(3, 6, 4), classes=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images(n: int = 4) -> Tensor:
    return torch.rand((n, *DOMAIN.shape), generator=rng())


def built(**changes: Any) -> CondensedSet:
    values: dict[str, Any] = {
        "images": images(),
        "labels": torch.tensor([0, 0, 1, 2]),
        "domain": DOMAIN,
        "info": {"method": "dm", "images_per_class": [2, 1, 1]},
    }
    return CondensedSet(**{**values, **changes})


def written(condensed: CondensedSet, folder: Path) -> Path:
    (folder / FILE).write_bytes(to_bytes(condensed))
    return folder


def whitening() -> Whitening:
    return Whitening.fit(torch.rand((200, *DOMAIN.shape), generator=rng()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 2, "learning_rate": 0.0123456789},
        {"factor": 2, "labels": torch.randn((16, 3), generator=rng())},
        {"whitening": whitening(), "domain": DOMAINS["cifar10"], "images": torch.rand((4, 3, 32, 32))},
    ],
)
def test_what_is_read_is_what_was_written_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    condensed = built(**changes)
    for path in (written(condensed, tmp_path), tmp_path / FILE):
        again = load_condensed(path)
        assert torch.equal(again.images, condensed.images)
        assert torch.equal(again.labels, condensed.labels)
        assert again.labels.dtype == condensed.labels.dtype
        assert (again.domain, again.factor, again.learning_rate, again.info) == (
            condensed.domain,
            condensed.factor,
            condensed.learning_rate,
            condensed.info,
        )
        for mine, theirs in zip(again.whitening or (), condensed.whitening or (), strict=True):
            assert torch.equal(mine, theirs)
        assert to_bytes(again) == to_bytes(condensed)


def test_the_file_is_what_others_are_told_it_is(tmp_path: Path) -> None:
    file = written(built(images=images().to(memory_format=torch.channels_last)), tmp_path) / FILE
    with safe_open(file, framework="np") as archive:
        held, labels = archive.get_tensor("images"), archive.get_tensor("labels")
        about = json.loads(archive.metadata()["datafree"])
    assert (held.dtype, held.shape) == ("float32", (4, 3, 6, 4))
    torch.testing.assert_close(torch.from_numpy(held), images(), rtol=0, atol=0)
    assert labels.tolist() == [0, 0, 1, 2]
    assert about["factor"] == 1


def test_items_are_decoded_images_and_their_labels() -> None:
    condensed = built(factor=2)
    assert len(condensed) == 16
    stacked, labels = condensed.decoded()
    for index in (0, 3, 4, 15, -1):
        image, label = condensed[index]
        # One image at a time is interpolated by other code than a batch: equal but for rounding.
        torch.testing.assert_close(image, stacked[index], rtol=0, atol=1e-6)
        assert label == labels[index]
    # The fifth decoded image is the first stored one's second patch: its upper right quarter, enlarged.
    quarter = condensed.images[0:1, :, :3, 2:]
    wanted = torch.nn.functional.interpolate(quarter, size=(6, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(condensed[4][0], wanted[0], rtol=0, atol=1e-6)
    with pytest.raises(IndexError):
        condensed[16]


def test_decoded_images_stay_in_their_range() -> None:
    # The weights of the interpolation from 10 to 28 pixels may add up to a hair more than 1.
    domain = make_domain(shape=(1, 28, 28), classes=2)
    white = CondensedSet(images=torch.ones(2, 1, 28, 28), labels=torch.tensor([0, 1]), domain=domain, factor=3)
    assert float(white.decoded()[0].max()) == 1
    assert max(float(white[index][0].max()) for index in range(18)) == 1


def test_it_goes_through_a_loader() -> None:
    soft = built(labels=torch.zeros(4, 3))
    for x, y in DataLoader(soft, batch_size=3):
        assert x.shape[1:] == (3, 6, 4)
        torch.testing.assert_close(y, torch.full((len(x), 3), 1 / 3))


def test_soft_labels_are_logits_in_the_file_and_probabilities_as_items() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], [1.0, 5.0, 0.0]])
    soft = built(labels=logits)
    torch.testing.assert_close(soft[3][1], logits[3].exp() / logits[3].exp().sum())
    assert soft.classes().tolist() == [0, 1, 2, 1]
    assert soft.soft


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ([2, 1, 1], [0, 0, 1, 2]),
        ([0, 4, 0], [1, 1, 1, 1]),
        (None, [0, 1, 2, 1]),  # a set of others does not say: the most likely ones
        ([2, 1], [0, 1, 2, 1]),
        ([2, 1, 2], [0, 1, 2, 1]),
        ([5, -2, 1], [0, 1, 2, 1]),
        ("211", [0, 1, 2, 1]),
    ],
)
def test_classes_that_images_were_made_for(counts: Any, wanted: list[int], tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], [1.0, 5.0, 0.0]])
    info = {} if counts is None else {"images_per_class": counts}
    soft = built(labels=logits, info=info)
    assert soft.made_for().tolist() == wanted
    assert load_condensed(written(soft, tmp_path)).made_for().tolist() == wanted
    assert built(labels=logits.repeat(4, 1), factor=2, info=info).made_for().tolist() == wanted * 4
    assert built(info=info, factor=2).made_for().tolist() == [0, 0, 1, 2] * 4  # hard labels say it


def test_the_budget_is_stated() -> None:
    assert built(factor=2).budget() == {
        "stored_floats": 4 * 72,
        "stored_images": 4,
        "decoded_images": 16,
        "label_bytes": 32,
    }
    assert built(factor=2, labels=torch.zeros(16, 3)).budget()["label_bytes"] == 16 * 3 * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": images() * 2}, "pixels in"),
        ({"images": images() - 0.5}, "pixels in"),
        ({"images": torch.full((4, 3, 6, 4), torch.nan)}, "pixels in"),
        ({"images": images()[:, :2]}, "3x6x4 images"),
        ({"images": images()[:0], "labels": torch.zeros(0, dtype=torch.int64)}, "3x6x4 images"),
        ({"images": (images() * 255).to(torch.uint8)}, "give floats"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "the classes go from 0 to 2"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, "the classes go from 0 to 2"),
        ({"labels": torch.tensor([0, 1, 2])}, r"give int64 \(4,\)"),
        ({"labels": torch.zeros(4, 2)}, "give finite logits"),
        ({"labels": torch.full((4, 3), torch.inf)}, "give finite logits"),
        ({"labels": torch.zeros(4, 3), "factor": 2}, r"give finite logits \(16, 3\)"),
        ({"factor": "2"}, "factor '2': give a whole number"),
        ({"factor": 0}, "factor 0 for images of"),
        ({"factor": 7}, "factor 7 for images of 6 x 4: give 1 to the shorter side"),
        ({"learning_rate": "x"}, "the learning rate is 'x': give a number above 0, or None"),
        ({"learning_rate": -1.0}, "the learning rate is -1.0: give a number above 0, or None"),
        ({"learning_rate": float("nan")}, "the learning rate is nan"),
        ({"info": [1]}, "info is list: give a mapping"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        built(**changes)
    assert "\n" not in str(caught.value)


def test_what_is_no_condensed_set_is_refused_in_one_line(tmp_path: Path) -> None:
    torn, foreign = tmp_path / "torn.safetensors", tmp_path / "foreign.safetensors"
    torn.write_bytes(to_bytes(built())[:100])
    save_file({"images": images()}, foreign)
    for path in (tmp_path, tmp_path / "nowhere", torn, foreign):
        with pytest.raises(ValueError, match="no condensed set") as caught:
            load_condensed(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^the run in .* is not finished: go on with it \(--resume --out .*\)$"):
        load_condensed(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "the format is 2, this version reads 1: update datafree"),
        ({"factor": "x"}, "factor 'x'"),
        ({"factor": 1.5}, "factor 1.5"),
        ({"learning_rate": "x"}, "learning rate is 'x'"),
        ({"learning_rate": -1}, "learning rate is -1"),
        ({"info": [1, 2]}, "info is list"),
        ({"domain": {**dataclasses.asdict(DOMAIN), "classes": 2}}, "the classes go from 0 to 1"),
        ({"domain": {**dataclasses.asdict(DOMAIN), "std": [0, 1, 1]}}, "greater than 0"),
    ],
)
def test_a_file_with_a_wrong_value_is_named_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = written(built(), tmp_path) / FILE
    with safe_open(file, framework="pt") as archive:
        about = json.loads(archive.metadata()["datafree"])
    save_file(load_file(file), file, metadata={"datafree": json.dumps({**about, **changes})})
    with pytest.raises(ValueError, match=message) as caught:
        load_condensed(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
