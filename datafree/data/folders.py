"""Folders of image files, one subfolder a class, and Tiny-ImageNet's own layout. The only place that uses PIL."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datafree.data.formats import Labels, Split, held_out

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

# PIL modes of 8-bit grey images. All others are read as RGB, but for the wide ones, which would lose their range.
# PIL has none of wide colour: it opens such files as RGB, by the upper 8 bits of each channel.
_GREY = ("1", "L", "LA", "La")
_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Modes with an alpha channel. The others may name a colour that is transparent.
_ALPHA = ("LA", "PA", "RGBA", "RGBa")


def eight_bit_mode(mode: str) -> str | None:
    """The PIL mode that an image of `mode` is read as: "L", "RGB", or None for one of more than 8 bits a channel."""
    return None if mode in _WIDE else "L" if mode in _GREY else "RGB"


def eight_bit(image: Any, mode: str) -> Any:
    """A PIL image as `mode`, "L" or "RGB". One whose alpha varies is laid on white first: alpha may be the drawing."""
    from PIL import Image

    if image.mode in _ALPHA or "transparency" in image.info:
        colours = image.convert("RGBA")
        low, high = colours.getchannel("A").getextrema()
        if low < high:
            image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image.convert(mode)


def folder_name(class_name: str) -> str:
    """A class's name as folders can have it: letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", class_name).strip("_")


class Files(NamedTuple):
    """The image files of one split in a fixed order, the class number of each, and the names of the classes."""

    paths: list[Path]
    labels: Labels
    class_names: tuple[str, ...]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _images(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if path.suffix.lower() in SUFFIXES]


def _files(folder: Path) -> list[Path]:
    """All files below a folder, also in linked subfolders; a link back to where it comes from is passed over."""
    found: list[Path] = []
    top = folder.resolve()
    seen = {top, *top.parents}
    for root, folders, files in os.walk(folder, followlinks=True):
        below = []
        # The folders themselves come before links to them.
        for path in sorted((Path(root, name) for name in folders), key=lambda path: (path.is_symlink(), path)):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                below.append(path.name)
        folders[:] = below
        found += [Path(root, name) for name in files if name[0] != "."]
    return sorted(found)


def list_classes(folder: Path, class_names: tuple[str, ...] = ()) -> Files:
    """The images below FOLDER/CLASS/, classes and files in alphabetical order.

    With `class_names`, the classes are numbered by it, some may be absent, and a folder of another name is an error.
    Raises ValueError for a folder without subfolders and for a subfolder without images.
    """
    folders = _subfolders(folder)
    if not folders:
        raise ValueError(f"{folder} has no subfolders: put the images of each class into a folder of their own")
    names = class_names or tuple(path.name for path in folders)
    paths: list[Path] = []
    labels: list[int] = []
    for path in folders:
        if path.name not in names:
            raise ValueError(f"{path} is a class that the training images do not have: remove or rename the folder")
        images = _images(path)
        if not images:
            raise ValueError(f"{path} has no images: remove the folder or fill it ({', '.join(SUFFIXES)})")
        paths += images
        labels += [names.index(path.name)] * len(images)
    return Files(paths, np.asarray(labels, dtype=np.int64), names)


def list_imagefolder(folder: Path) -> dict[str, Files]:
    """The splits of an image folder: "train", "test", or both.

    FOLDER/train/CLASS/ and FOLDER/test/CLASS/ where these are there; FOLDER/val/CLASS/ (or valid, validation) is the
    test split where test/ is missing or has no class folders. With FOLDER/CLASS/ alone, every fifth image of each
    class, in alphabetical order of the files, is the test split (none of a class with fewer than five images).

    Raises ValueError where a folder called like a split stands beside other folders of images: it may be a class.
    """
    train, *tests = (folder / name for name in ("train", "test", "val", "valid", "validation"))
    test = next((path for path in tests if path.is_dir() and _subfolders(path)), None)
    splits: dict[str, Files] = {}
    if not train.is_dir() and test is None:
        _check_split_names(folder)
        everything = list_classes(folder)
        mask = held_out(everything.labels)
        for split, keep in (("train", ~mask), ("test", mask)):
            if keep.any():
                paths = [everything.paths[index] for index in np.flatnonzero(keep)]
                splits[split] = Files(paths, everything.labels[keep], everything.class_names)
        return splits
    others = [path.name for path in _subfolders(folder) if path not in (train, *tests) and _images(path)]
    if others:
        split, other = (train if train.is_dir() or test is None else test).name, others[0]
        raise ValueError(
            f"{folder} has {split}, the name of a split, beside {other} with images of its own: rename {split} if it "
            f"is a class, move {other} elsewhere if not"
        )
    if train.is_dir():
        splits["train"] = list_classes(train)
    if test is not None:
        splits["test"] = list_classes(test, splits["train"].class_names if splits else ())
    return splits


def _check_split_names(folder: Path) -> None:
    """Raises ValueError where all class folders are splits by other names, such as Train and Test."""
    names = ("train", "training", "test", "testing", "val", "valid", "validation")
    found = _subfolders(folder)
    if found and all(path.name.lower() in names for path in found) and any(map(_subfolders, found)):
        called = " and ".join(path.name for path in found)
        raise ValueError(f"{folder} has {called}, which look like splits, as classes: rename them to train and test")


def left_out(folder: Path, splits: Mapping[str, Files]) -> list[str]:
    """The files below an image folder that are no image of its splits; without hidden ones."""
    read = {path for files in splits.values() for path in files.paths}
    below = [path.relative_to(folder) for path in _files(folder) if path not in read]
    return [path.as_posix() for path in below if not any(part.startswith((".", "__")) for part in path.parts)]


def list_tiny_imagenet(folder: Path) -> dict[str, Files]:
    """Tiny-ImageNet as unpacked: train/WNID/images/, and val/ as test split (its own test images have no labels).

    val/ is either as it comes (val/images/ and val_annotations.txt) or sorted into val/WNID/ as many scripts leave it.
    The classes are numbered in alphabetical order of their WordNet ids.
    """
    splits: dict[str, Files] = {}
    if (folder / "train").is_dir():
        splits["train"] = list_classes(folder / "train")
    annotations = folder / "val" / "val_annotations.txt"
    if annotations.is_file() and (folder / "val" / "images").is_dir():
        rows = [line.split("\t")[:2] for line in annotations.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = splits["train"].class_names if splits else tuple(sorted({row[-1] for row in rows}))
        wrong = next((row for row in rows if len(row) < 2 or row[1] not in names), None)
        if wrong is not None:
            raise ValueError(
                f"{annotations} has a line that fits no class ({' '.join(wrong)}): unpack the archive anew"
            )
        paths = [folder / "val" / "images" / row[0] for row in rows]
        splits["test"] = Files(paths, np.asarray([names.index(row[1]) for row in rows], dtype=np.int64), names)
    elif (folder / "val").is_dir():
        splits["test"] = list_classes(folder / "val", splits["train"].class_names if splits else ())
    return splits


def image_shape(paths: list[Path]) -> tuple[int, int, int]:
    """(C, H, W): the size of the first image; three channels unless every image is grey. Reads headers alone."""
    width, height = _header(paths[0])[1]
    grey = all(_header(path)[0] in _GREY for path in paths)
    return (1 if grey else 3), height, width


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image: replace or remove it") from error


def _too_large(path: Path) -> ValueError:
    return ValueError(f"{path} has more pixels than PIL reads: make it smaller or remove it")


def read_images(files: Files, shape: tuple[int, int, int]) -> Split:
    """Decode all images to uint8 (N, H, W, C). Grey ones among colour ones become colour, for alpha see `eight_bit`.

    Raises ValueError for an image of another size than `shape`'s, for one of more than 8 bits, for a broken one.
    """
    from PIL import Image

    channels, height, width = shape
    images = np.empty((len(files.paths), height, width, channels), dtype=np.uint8)
    for index, path in enumerate(files.paths):
        try:
            with Image.open(path) as image:
                mode, size = image.mode, image.size
                pixels = None if mode in _WIDE else np.asarray(eight_bit(image, "L" if channels == 1 else "RGB"))
        except Image.DecompressionBombError as error:
            raise _too_large(path) from error
        except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for some broken PNG files
            raise ValueError(f"{path} cannot be read as an image: replace or remove it") from error
        if pixels is None:
            raise ValueError(f"{path} has more than 8 bits a channel: convert it to 8 bits")
        if size != (width, height):
            raise ValueError(f"{path} is {size[0]}x{size[1]}, not {width}x{height}: make all images one size")
        images[index] = pixels.reshape(height, width, channels)
    return images, files.labels
