"""Readers of the files that data sets come in. Each gives numpy arrays; nothing here unpickles unchecked bytes.

A split is (images, labels): uint8 (N, H, W) or (N, H, W, C), channels last, and int64 (N,).
"""

from __future__ import annotations

import gzip
import importlib.util
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Split = tuple[Images, Labels]

# RuntimeError: an encrypted archive; NotImplementedError, one of its kinds: an unknown compression.
_BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a torn or foreign file makes its reader raise into one line that names the file."""
    try:
        yield
    except _BROKEN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as {what} ({reason}): replace the file") from error


def held_out(labels: Labels, every: int = 5) -> npt.NDArray[np.bool_]:
    """A mask of the images held out as test set: every fifth of each class, in the order in which they lie.

    It depends on nothing but the labels' order, so the split is the same on every machine and for ever.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[every - 1 :: every]] = True
    return mask


def read_digits(split: str) -> Split:
    """scikit-learn's digits; their values 0..16 are scaled to 0..255 and rounded. Test is every fifth of each class."""
    images, labels = _digits()
    keep = held_out(labels) == (split == "test")
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return pixels[keep], labels[keep]


def _digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Pixels 0 to 16 (1797, 64) and labels. Read from scikit-learn's file: importing it all takes a second."""
    spec = importlib.util.find_spec("sklearn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz" if spec and spec.origin else None
    if file is not None and file.is_file():
        rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images, labels.astype(np.int64)


def read_npz(path: Path, split: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """x_SPLIT and y_SPLIT of an .npz file, as they are; None where the file has neither. Nothing is unpickled."""
    with reading(path, ".npz"):
        keys = set(npz_keys(path))
    x, y = f"x_{split}", f"y_{split}"
    if x not in keys and y not in keys:
        return None
    for have, lack in ((x, y), (y, x)):
        if lack not in keys:
            raise ValueError(f"{path} has {have} but no {lack}: save both")
    with reading(path, ".npz"), np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays[x]), np.asarray(arrays[y])


def npz_keys(path: Path) -> list[str]:
    """The names of the arrays in an .npz file."""
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def npz_shape(path: Path, key: str) -> tuple[int, ...]:
    """The shape of one array of an .npz file, read from its header alone."""
    with reading(path, ".npz"), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            return tuple(np.lib.format.read_array_header_1_0(member)[0])
        return tuple(np.lib.format.read_array_header_2_0(member)[0])


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An array of bytes in IDX format (MNIST's), gzipped or not.

    The header is two zero bytes, 0x08 for unsigned bytes, the number of dimensions, and each dimension as a big-endian
    uint32 (http://yann.lecun.com/exdb/mnist).
    """
    with reading(path, "IDX"):
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        if content[:3] != b"\x00\x00\x08" or len(content) < 4:
            raise ValueError("no IDX header of unsigned bytes")
        dimensions = content[3]
        shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape([int(n) for n in shape])


def read_mnist(folder: Path, split: str) -> Split | None:
    """MNIST or Fashion-MNIST from their IDX files, gzipped or not; None where the folder has no file of that split."""
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays: list[npt.NDArray[np.uint8]] = []
    for stem in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        path = next((folder / name for name in (stem, f"{stem}.gz") if (folder / name).is_file()), None)
        if path is None and not arrays:
            return None
        if path is None:
            raise ValueError(f"{folder} has no {stem} (nor .gz): put all four files there")
        arrays.append(read_idx(path))
    return arrays[0], arrays[1].astype(np.int64)


def read_cifar(folder: Path, split: str, *, classes: int) -> Split:
    """CIFAR-10 or CIFAR-100 in torchvision's layout. These files are pickles: torchvision checks their MD5 first."""
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = CIFAR10 if classes == 10 else CIFAR100
    try:
        loaded = dataset(root=str(folder.parent), train=split == "train", download=False)
    except RuntimeError as error:
        raise ValueError(f"{folder} is incomplete or damaged: delete it and fetch it anew with --download") from error
    return loaded.data, np.asarray(loaded.targets, dtype=np.int64)


def read_svhn(folder: Path, split: str) -> Split | None:
    """SVHN's cropped digits from {train,test}_32x32.mat; None where the file is not there.

    The file numbers the digit 0 as class 10; here it is class 0, as in torchvision.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = folder / f"{split}_32x32.mat"
    if not path.is_file():
        return None
    with reading(path, "SVHN's .mat file"):
        try:
            content = loadmat(str(path), variable_names=["X", "y"])
        except MatReadError as error:
            raise ValueError(str(error)) from error
        # X is (32, 32, 3, N).
        images = np.ascontiguousarray(np.transpose(content["X"], (3, 0, 1, 2)))
        labels = content["y"].astype(np.int64).reshape(-1)
    return images, np.where(labels == 10, 0, labels)
