from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datafree.data import data_domain, get_split, load_data
from datafree.data.folders import list_imagefolder, read_images
from datafree.domain import DOMAINS, usual_normalisation


def draw(path: Path, value: int, *, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> None:
    """One image of width x height `size`, all of its pixels `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if len(mode) == 1 or ";" in mode else (value,) * len(mode)
    Image.new(mode, size, colour).save(path)


def values(root: Path, split: str) -> tuple[list[int], list[int]]:
    """The first pixel of every image and the labels, as loaded."""
    x, y = get_split(load_data(f"imagefolder:{root}"), split)
    return x[:, 0, 0, 0].tolist(), y.tolist()


def test_train_and_test_folders(tmp_path: Path) -> None:
    for index, file in enumerate(["train/cat/b.png", "train/cat/a.png", "train/ape/deep/er/x.PNG", "test/cat/1.bmp"]):
        draw(tmp_path / file, 10 * index)
    name = f"imagefolder:{tmp_path}"
    domain = data_domain(name)
    assert (domain.name, domain.shape, domain.classes) == (name, (3, 4, 6), 2)
    assert domain.class_names == ("ape", "cat")
    assert (domain.mean, domain.std) == usual_normalisation(3)
    # Classes, then files, in alphabetical order.
    assert values(tmp_path, "train") == ([20, 10, 0], [0, 1, 1])
    assert values(tmp_path, "test") == ([30], [1])
    assert load_data(name).domain == domain


def test_val_stands_in_for_test(tmp_path: Path) -> None:
    draw(tmp_path / "train/a/1.png", 1)
    draw(tmp_path / "train/b/1.png", 2)
    draw(tmp_path / "val/b/1.png", 3)
    assert values(tmp_path, "test") == ([3], [1])
    # As ImageNet has it: test images without labels.
    draw(tmp_path / "test/unlabelled.png", 4)
    assert values(tmp_path, "test") == ([3], [1])
    draw(tmp_path / "test/a/1.png", 5)
    assert values(tmp_path, "test") == ([5], [0])


def test_a_test_folder_alone(tmp_path: Path) -> None:
    draw(tmp_path / "test/a/1.png", 1)
    draw(tmp_path / "test/b/1.png", 2)
    assert load_data(f"imagefolder:{tmp_path}").x_train is None
    assert values(tmp_path, "test") == ([1, 2], [0, 1])


def test_classes_alone_are_split_by_every_fifth(tmp_path: Path) -> None:
    for index in range(11):
        draw(tmp_path / "a" / f"{index:02d}.png", index)
    for index in range(4):
        draw(tmp_path / "b" / f"{index}.png", 100 + index)
    assert values(tmp_path, "test") == ([4, 9], [0, 0])
    assert values(tmp_path, "train") == ([0, 1, 2, 3, 5, 6, 7, 8, 10, 100, 101, 102, 103], [0] * 9 + [1] * 4)


@pytest.mark.parametrize("names", [("Train", "Test"), ("Training", "Testing"), ("TEST",)])
def test_splits_by_other_names_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        draw(tmp_path / name / "cats" / "a.png", 1)
    with pytest.raises(ValueError, match="which look like splits, as classes: rename them to train and test"):
        list_imagefolder(tmp_path)
    draw(tmp_path / "dogs" / "a.png", 2)
    assert len(list_imagefolder(tmp_path)["train"].class_names) == len(names) + 1, "beside a class they are classes"


def test_grey_folders_have_one_channel(tmp_path: Path) -> None:
    draw(tmp_path / "a/1.png", 7, mode="L")
    draw(tmp_path / "b/1.png", 1, mode="1")
    assert data_domain(f"imagefolder:{tmp_path}").shape == (1, 4, 6)
    assert values(tmp_path, "train") == ([7, 255], [0, 1])


def test_grey_images_among_colour_ones_become_colour(tmp_path: Path) -> None:
    draw(tmp_path / "a/1.png", 7, mode="L")
    draw(tmp_path / "b/1.png", 9, mode="RGBA")
    x, _ = get_split(load_data(f"imagefolder:{tmp_path}"), "train")
    assert x.shape == (2, 3, 4, 6)
    assert (x[0] == 7).all()


ALPHA = np.array([[0, 255, 0, 64], [255, 255, 0, 0]], dtype=np.uint8)


def drawn_in_alpha(kind: str) -> Image.Image:
    """A black picture of 4 x 2 pixels, of which `ALPHA` is all that can be seen."""
    if kind == "P":
        picture = Image.fromarray(np.where(ALPHA > 64, 2, ALPHA // 64).astype(np.uint8)).convert("P")
        picture.putpalette([0, 0, 0] * 3)
        picture.info["transparency"] = bytes([0, 64, 255])
        return picture
    if kind in ("L", "RGB"):  # the colour 9 is transparent
        picture = Image.fromarray(np.where(ALPHA < 255, 9, 0).astype(np.uint8)).convert(kind)
        picture.info["transparency"] = 9 if kind == "L" else (9, 9, 9)
        return picture
    picture = Image.new(kind, (4, 2))
    picture.putalpha(Image.fromarray(ALPHA))
    return picture


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_drawn_in_alpha_is_laid_on_white(tmp_path: Path, kind: str) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        drawn_in_alpha(kind).save(tmp_path / label / "1.png")
    with Image.open(tmp_path / "a" / "1.png") as image:
        assert image.mode == kind
    x, _ = get_split(load_data(f"imagefolder:{tmp_path}"), "train")
    assert x.shape == (2, 1 if kind in ("L", "LA") else 3, 2, 4)
    wanted = np.where(ALPHA < 255, 255, 0) if kind in ("L", "RGB") else 255 - ALPHA
    assert (x.numpy() == wanted).all()


@pytest.mark.parametrize("alpha", [0, 7, 255])
def test_alpha_of_one_value_is_dropped(tmp_path: Path, alpha: int) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("RGBA", (6, 4), (10, 20, 30, alpha)).save(tmp_path / label / "1.png")
    x, _ = get_split(load_data(f"imagefolder:{tmp_path}"), "train")
    assert x[0, :, 0, 0].tolist() == [10, 20, 30]


def test_decoded_as_numpy_would(tmp_path: Path) -> None:
    image = np.random.RandomState(0).randint(0, 256, (2, 4, 6, 3)).astype(np.uint8)
    for index, label in enumerate("ab"):
        (tmp_path / label).mkdir()
        Image.fromarray(image[index]).save(tmp_path / label / "1.png")
    x, _ = get_split(load_data(f"imagefolder:{tmp_path}"), "train")
    np.testing.assert_array_equal(x.numpy(), np.moveaxis(image, 3, 1))


def test_hidden_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    draw(tmp_path / "a/1.png", 1)
    draw(tmp_path / "b/1.png", 2)
    (tmp_path / "a/notes.txt").write_text("hello")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    draw(tmp_path / "a/._1.png", 9)
    assert values(tmp_path, "train") == ([1, 2], [0, 1])


@pytest.mark.parametrize("split", ["train", "test", "val"])
def test_a_class_called_like_a_split_is_not_taken_for_one_in_silence(tmp_path: Path, split: str) -> None:
    draw(tmp_path / split / "side/1.png", 1)
    draw(tmp_path / "bus/2.png", 2)
    with pytest.raises(ValueError, match=r".") as caught:
        load_data(f"imagefolder:{tmp_path}")
    assert str(caught.value) == (
        f"{tmp_path} has {split}, the name of a split, beside bus with images of its own: rename {split} if it is a "
        "class, move bus elsewhere if not"
    )


def test_folders_without_images_may_stand_beside_the_splits(tmp_path: Path) -> None:
    for file in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "test/unlabelled.png"):
        draw(tmp_path / file, 1)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("a/1.png")
    draw(tmp_path / ".thumbnails/1.png", 1)
    assert values(tmp_path, "test") == ([1], [0])


def test_linked_folders_are_read_and_loops_are_not(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere/deep/2.png", 2)
    draw(tmp_path / "set/a/1.png", 1)
    draw(tmp_path / "set/b/3.png", 3)
    (tmp_path / "set/a/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/a/again").symlink_to(tmp_path / "set/a")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere/deep/back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/folder.png").mkdir()
    assert values(tmp_path / "set", "train") == ([1, 2, 3], [0, 0, 1])


def test_an_image_that_pil_takes_for_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a/1.png", 1)
    draw(tmp_path / "b/1.png", 1)
    files = list_imagefolder(tmp_path)["train"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    for read in (lambda: data_domain(f"imagefolder:{tmp_path}"), lambda: read_images(files, (3, 4, 6))):
        with pytest.raises(ValueError, match=r"a/1\.png has more pixels than PIL reads: make it smaller or remove it$"):
            read()


@pytest.mark.parametrize("case", ["empty", "no class", "one class", "size", "broken", "wide", "stranger"])
def test_folders_that_do_not_hold_what_they_should(tmp_path: Path, case: str) -> None:
    draw(tmp_path / "train/a/1.png", 1)
    if case != "one class":
        draw(tmp_path / "train/b/1.png", 1)
    says = {
        "empty": "c has no images: remove the folder",
        "no class": "has no subfolders",
        "one class": "has the class a only",
        "size": "2.png is 5x4, not 6x4: make all images one size",
        "broken": "2.png cannot be read as an image",
        "wide": "2.png has more than 8 bits",
        "stranger": "c is a class that the training images do not have",
    }[case]
    root = tmp_path
    if case == "empty":
        (tmp_path / "train/c").mkdir()
    elif case == "no class":
        root = tmp_path / "train" / "a"
    elif case == "size":
        draw(tmp_path / "train/b/2.png", 1, size=(5, 4))
    elif case == "broken":
        (tmp_path / "train/b/2.png").write_bytes((tmp_path / "train/b/1.png").read_bytes()[:50])
    elif case == "wide":
        draw(tmp_path / "train/b/2.png", 1, mode="I;16")
    elif case == "stranger":
        draw(tmp_path / "test/c/1.png", 1)
    with pytest.raises(ValueError, match=r".") as caught:
        load_data(f"imagefolder:{root}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sorted_by_class", [True, False])
def test_tiny_imagenet(sorted_by_class: bool) -> None:
    root = Path(os.environ["DATAFREE_DATA"]) / "tiny-imagenet-200"
    draw(root / "train/n02/images/n02_0.png", 1, size=(64, 64))
    draw(root / "train/n01/images/n01_0.png", 2, mode="L", size=(64, 64))
    if sorted_by_class:
        draw(root / "val/n02/val_0.png", 3, size=(64, 64))
        draw(root / "val/n01/val_1.png", 4, size=(64, 64))
    else:
        draw(root / "val/images/val_0.png", 3, size=(64, 64))
        draw(root / "val/images/val_1.png", 4, size=(64, 64))
        (root / "val/val_annotations.txt").write_text("val_0.png\tn02\t0\t0\t9\t9\nval_1.png\tn01\t0\t0\t9\t9\n")
    data = load_data("tiny-imagenet")
    assert data.domain is DOMAINS["tiny-imagenet"]
    x, y = get_split(data, "train")
    assert x.shape == (2, 3, 64, 64)
    assert (x[:, 2, 0, 0].tolist(), y.tolist()) == ([2, 1], [0, 1])
    x, y = get_split(data, "test")
    assert dict(zip(x[:, 0, 0, 0].tolist(), y.tolist(), strict=True)) == {3: 1, 4: 0}


def test_tiny_imagenet_with_a_line_that_fits_no_class() -> None:
    root = Path(os.environ["DATAFREE_DATA"]) / "tiny-imagenet-200"
    draw(root / "train/n02/images/n02_0.png", 1, size=(64, 64))
    draw(root / "val/images/val_0.png", 3, size=(64, 64))
    (root / "val/val_annotations.txt").write_text("val_0.png\tn09\t0\t0\t9\t9\n")
    with pytest.raises(ValueError, match="a line that fits no class"):
        load_data("tiny-imagenet")


def test_a_third_split_by_any_of_its_names_is_none_of_the_classes(tmp_path: Path) -> None:
    for name in ("train", "test", "valid"):
        draw(tmp_path / name / "a/1.png", 1)
    assert set(list_imagefolder(tmp_path)) == {"train", "test"}
