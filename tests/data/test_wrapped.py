"""Any torch dataset as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from datafree.data.wrapped import from_dataset

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 5, 7, 3)).astype(np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]
WANTED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    "kind",
    [
        lambda i: Image.fromarray(PIXELS[i]),
        lambda i: PIXELS[i],
        lambda i: WANTED[i],
        lambda i: WANTED[i].float() / 255,
    ],
)
def test_images_of_every_kind_become_the_same_bytes(kind: Any) -> None:
    data = from_dataset(Items([(kind(i), label) for i, label in enumerate(LABELS)]), mean=(0.5,) * 3, std=(0.2,) * 3)
    assert data.x_train is not None
    assert data.y_train is not None
    assert torch.equal(data.x_train, WANTED)
    assert data.y_train.tolist() == LABELS
    assert (data.domain.shape, data.domain.classes, data.domain.mean) == ((3, 5, 7), 3, (0.5,) * 3)
    assert data.x_test is None


def test_grey_images_and_a_test_split() -> None:
    grey = TensorDataset(WANTED[:, 0:1].float() / 255, torch.tensor(LABELS))
    data = from_dataset(grey, grey, name="mine", classes=4)
    assert (data.domain.shape, data.domain.classes, data.domain.name) == ((1, 5, 7), 4, "mine")
    assert data.x_test is not None
    assert torch.equal(data.x_test, WANTED[:, 0:1])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "is empty"),
        ([(WANTED[0], 0), (WANTED[0][:, :4], 1)], "of one size"),
        ([(WANTED[0].float(), 0), (WANTED[0], 1)], "normalisation out"),
        ([(WANTED[0], -1), (WANTED[0], 1)], "from 0"),
        ([(WANTED[0], 0), (WANTED[0], 5)], "number the classes from 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(items: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_dataset(Items(items), classes=3)
    assert "\n" not in str(caught.value)
