"""Any torch dataset as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from datafree.data import get_split, load_data
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


def test_palettes_become_their_colours_and_two_values_black_and_white() -> None:
    """Not the numbers of the palette's entries, and not 0 and 1."""
    palette = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) % 3).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    x = from_dataset(Items([(palette, 0), (palette, 1)])).x_train
    assert x is not None
    assert x.shape == (2, 3, 5, 7)
    assert torch.equal(x[0], torch.from_numpy(np.array(palette.convert("RGB"))).permute(2, 0, 1))
    bits = Image.fromarray(PIXELS[0, :, :, 0] > 100)
    assert bits.mode == "1"
    x = from_dataset(Items([(bits, 0), (bits, 1)])).x_train
    assert x is not None
    assert torch.equal(x[0, 0] > 0, torch.from_numpy(PIXELS[0, :, :, 0] > 100))
    assert x.max() == 255


@pytest.mark.parametrize(
    ("mode", "read_as"),
    [("1", "L"), ("L", "L"), ("LA", "L"), ("P", "RGB"), ("PA", "RGB"), ("RGBA", "RGB"), ("RGBX", "RGB"),
     ("CMYK", "RGB"), ("YCbCr", "RGB"), ("HSV", "RGB")],
)  # fmt: skip
def test_pil_images_are_grey_or_rgb_as_those_of_a_folder(mode: str, read_as: str) -> None:
    image = Image.fromarray(PIXELS[0]).convert("L" if mode == "LA" else "RGB").convert(mode)
    x = from_dataset(Items([(image, 0), (image, 1)])).x_train
    assert x is not None
    wanted = np.array(image.convert(read_as)).reshape(5, 7, -1)
    assert torch.equal(x[0], torch.from_numpy(wanted).permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB"])
def test_pil_images_drawn_in_alpha_are_those_of_a_folder(tmp_path: Path, kind: str) -> None:
    alpha = PIXELS[0, :, :, 0] % 2 * 255
    if kind in ("RGBA", "LA"):
        image = Image.new(kind, (7, 5))
        image.putalpha(Image.fromarray(alpha))
    else:  # one colour, or one entry of the palette, is transparent
        image = Image.fromarray(alpha // 255).convert(kind)
        image.info["transparency"] = (0, 0, 0) if kind == "RGB" else 0
        if kind == "P":
            image.putpalette([0, 0, 0] * 2)
    x = from_dataset(Items([(image, 0), (image, 1)])).x_train
    assert x is not None
    assert torch.equal(x[0, 0] > 127, torch.from_numpy(alpha == 0))
    for label in "ab":
        (tmp_path / label).mkdir()
        image.save(tmp_path / label / "1.png")
    assert torch.equal(x, get_split(load_data(f"imagefolder:{tmp_path}"), "train")[0])


@pytest.mark.parametrize(
    "label", [np.int64(1), np.array(1), torch.tensor(1), torch.tensor([1]), True, 1.0, np.float32(1), "1"]
)
def test_class_numbers_of_every_kind(label: Any) -> None:
    y = from_dataset(Items([(WANTED[0], 0), (WANTED[1], label)])).y_train
    assert y is not None
    assert y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "is empty"),
        ([(WANTED[0], 0), (WANTED[0][:, :4], 1)], "of one size"),
        ([(WANTED[0].float(), 0), (WANTED[0], 1)], "normalisation out"),
        ([(WANTED[0], -1), (WANTED[0], 1)], "from 0"),
        ([(WANTED[0], 0), (WANTED[0], 5)], "number the classes from 0"),
        ([(Image.fromarray(np.full((5, 7), 1000, dtype=np.uint16)), 0)], "type uint16: give uint8, 0 to 255"),
        ([(Image.fromarray(np.full((5, 7), 1000, dtype=np.int32)), 0)], "type int32: give uint8, 0 to 255"),
        ([(WANTED[0].long() * 4, 0)], "type torch.int64: give uint8, 0 to 255, or floats in"),
        ([(PIXELS[0].astype(np.int64), 0)], "type int64: give uint8, 0 to 255, or floats in"),
        ([(WANTED[0] > 9, 0)], "type torch.bool: give uint8"),
        ([("image.png", 0)], "type <U9: give uint8"),
        ([(np.zeros(5, dtype=np.uint8), 0)], r"shape \(5,\): give \(H, W\) or \(H, W, C\)"),
        ([{"image": WANTED[0], "label": 0}], "items of the train set are dict: give .image, class number."),
        ([(WANTED[0], torch.eye(3)[1])], "3 values: give the class number, such as label.argmax"),
        ([(WANTED[0], [0, 1, 0])], "3 values: give the class number"),
        ([(WANTED[0], "cat")], "the label 'cat': give a class number, such as CLASSES.index"),
        ([(WANTED[0], 0.5)], "the label 0.5: give a class number"),
        ([(WANTED[0], float("inf"))], "the label inf: give a class number"),
        ([(WANTED[0], None)], "the label None: give a class number"),
        ([(WANTED[0], np.float32(1.5))], "1.5.*: give a class number"),
        ([(WANTED[0], 2**64)], "the label 18446744073709551616: give a class number"),
        ([(PIXELS[0].transpose(2, 0, 1), 0)], r"shape \(3, 5, 7\): channels come last in an array, give \(H, W, C\)"),
        ([(PIXELS[0, ..., 0][None], 0)], r"shape \(1, 5, 7\): channels come last"),
        (
            [(torch.from_numpy(PIXELS[0]), 0)],
            r"\(5, 7, 3\): channels come first in a tensor, give \(C, H, W\) by image",
        ),
        ([(torch.rand(5, 7, 3), 0)], r"\(5, 7, 3\): channels come first in a tensor, .* by image.permute\(2, 0, 1\)$"),
        ([(torch.rand(8, 8, 1), 0)], r"\(8, 8, 1\): channels come first in a tensor"),
        ([(torch.rand(8, 8, 4), 0)], r"\(8, 8, 4\): channels come first in a tensor"),
        ([(WANTED[0][:, :0], 0)], r"shape \(3, 0, 7\) has no pixels"),
        ([(WANTED[0].float()[:, :0], 0)], r"shape \(3, 0, 7\) has no pixels"),
        ([(PIXELS[0][:0], 0)], r"shape \(0, 7, 3\) has no pixels"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(items: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_dataset(Items(items), classes=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        (torch.rand(3, 7, 3), (3, 7, 3)),
        (torch.rand(4, 9, 4), (4, 9, 4)),
        (torch.rand(6, 7, 5), (6, 7, 5)),
        (np.zeros((7, 3, 6), dtype=np.uint8), (6, 7, 3)),
        (np.zeros((7, 1), dtype=np.uint8), (1, 7, 1)),
    ],
)
def test_narrow_images_and_many_channels_are_no_mistake(image: Any, shape: tuple[int, ...]) -> None:
    assert from_dataset(Items([(image, 0), (image, 1)])).domain.shape == shape


def test_a_set_without_a_length_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"the train set has no length: give a set with len, such as list\(dataset\)"):
        from_dataset(iter([(WANTED[0], 0)]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Path("photos"), 'photos is a path: give "imagefolder:photos" for a folder, "npz:photos" for an .npz file'),
        (Path("npz:a.npz"), "the train set is the name 'npz:a.npz': give load_data('npz:a.npz')"),
        ("digits", "the train set is the name 'digits': give load_data('digits')"),
        (
            DataLoader(TensorDataset(WANTED, torch.tensor(LABELS))),
            "the train set is a DataLoader, which gives batches: give loader.dataset",
        ),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        from_dataset(given)
    assert str(caught.value) == says


def test_more_classes_than_images_are_the_labels_fault_unless_their_number_is_given() -> None:
    items = Items([(WANTED[0], 0), (WANTED[1], 2**40)])
    with pytest.raises(ValueError, match="the largest label is 1099511627776, of 2 images: number the classes from 0"):
        from_dataset(items)
    assert from_dataset(Items([(WANTED[0], 0), (WANTED[1], 9)]), classes=10).domain.classes == 10
