from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
import torch
import torchvision

import datafree.data.sources as sources
from datafree.data import Data, data_domain, get_split, load_data, validation_split
from datafree.domain import DOMAINS, IMAGENET_MEAN, make_domain

Array = npt.NDArray[Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is searched first, and nothing in the others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "DEBIAN", tmp_path / "debian")
    return Path(os.environ["DATAFREE_DATA"])


def pixels(*shape: int, seed: int = 0) -> Array:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def save(path: Path, **arrays: Array) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


# ---- digits


def test_digits_are_split_and_scaled() -> None:
    from sklearn.datasets import load_digits

    data = load_data("digits")
    (x_train, y_train), (x_test, y_test) = get_split(data, "train"), get_split(data, "test")
    assert x_train.shape == (1442, 1, 8, 8)
    assert x_test.shape == (355, 1, 8, 8)
    assert (x_train.dtype, y_train.dtype) == (torch.uint8, torch.int64)
    # A class of n images gives floor(n / 5) to the test split; scikit-learn has 174 to 183 images of each digit.
    source = load_digits()
    counts = np.bincount(source.target)
    assert torch.bincount(y_test).tolist() == (counts // 5).tolist()
    # Value 16 becomes 255, and 8 becomes 127.5, which rounds to the even 128.
    assert set(torch.cat([x_train, x_test]).flatten().tolist()) == {round(value * 255 / 16) for value in range(17)}
    # Zeros: the test images are the fifth, tenth, ... in scikit-learn's order.
    zeros = source.images[source.target == 0]
    expected = np.rint(zeros[4::5] * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(x_test[y_test == 0, 0].numpy(), expected)


def test_splits_that_are_not_asked_for_are_not_loaded() -> None:
    data = load_data("digits", splits=("test",))
    assert data.x_train is None
    with pytest.raises(ValueError, match="digits has no train split"):
        get_split(data, "train")
    with pytest.raises(ValueError, match="unknown splits val"):
        load_data("digits", splits=("val",))


def test_one_split_by_its_name() -> None:
    data = load_data("digits", splits="train")
    assert data.x_train is not None
    assert data.x_test is None
    for wrong, says in (
        ("val", "unknown splits val: ask"),
        ("", "--splits is empty"),
        ((), "unknown splits .none.: ask"),
    ):
        with pytest.raises(ValueError, match=says):
            load_data("digits", splits=wrong)


# ---- npz


def test_npz_of_colour_images(tmp_path: Path) -> None:
    x, y = pixels(6, 4, 5, 3), np.array([0, 1, 2, 2, 1, 0], dtype=np.uint8)
    name = save(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    data = load_data(name)
    assert data.domain == data_domain(name)
    assert (data.domain.name, data.domain.shape, data.domain.classes) == (name, (3, 4, 5), 3)
    assert data.domain.mean == IMAGENET_MEAN
    x_train, y_train = get_split(data, "train")
    assert x_train.is_contiguous()
    np.testing.assert_array_equal(x_train.numpy(), np.moveaxis(x, 3, 1))
    assert y_train.tolist() == y.tolist()
    assert y_train.dtype == torch.int64


def test_npz_of_grey_images_with_a_test_split_alone(tmp_path: Path) -> None:
    name = save(tmp_path / "own.npz", x_test=pixels(3, 4, 5), y_test=np.array([0, 3, 1]))
    data = load_data(name)
    assert data.domain.shape == (1, 4, 5)
    assert data.domain.classes == 4
    assert data.x_train is None
    assert get_split(data, "test")[0].shape == (3, 1, 4, 5)
    with pytest.raises(FileNotFoundError, match="no train split"):
        load_data(name, splits=("train",))


def test_the_number_of_classes_counts_both_splits(tmp_path: Path) -> None:
    x = pixels(2, 4, 4)
    name = save(tmp_path / "a.npz", x_train=x, y_train=np.array([0, 1]), x_test=x, y_test=np.array([0, 5]))
    assert load_data(name, splits=("train",)).domain.classes == 6


GOOD = {"x_train": pixels(4, 8, 8, 3), "y_train": np.array([0, 1, 0, 1])}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_train": GOOD["x_train"].astype(np.float32)}, "float32: save the images as uint8"),
        ({"x_train": np.moveaxis(GOOD["x_train"], 3, 1)}, "channels come last"),
        ({"x_train": GOOD["x_train"][0, 0]}, "save images as"),
        ({"x_train": GOOD["x_train"][:0]}, "at least one"),
        ({"x_train": GOOD["x_train"][:3]}, "3 images in x_train and 4 labels"),
        ({"y_train": np.array([0.0, 1.0, 0.0, 1.0])}, "one whole number an image"),
        ({"y_train": np.eye(4, dtype=np.int64)}, "one whole number an image"),
        ({"y_train": np.array([0, 1, -1, 1])}, "label -1: number the classes from 0"),
        ({"y_train": np.zeros(4, dtype=np.int64)}, "two classes or more"),
        (
            {"y_train": np.array([0, 1, 2**40, 1])},
            "largest label is 1099511627776, of 4 images: number the classes from 0",
        ),
        ({"y_train": np.array([0, 1, 4, 1])}, "largest label is 4, of 4 images: number the classes from 0"),
        ({"y_train": np.array([0, 2**63, 1, 1], dtype=np.uint64)}, "largest label is 9223372036854775808, of 4 images"),
        ({"x_test": pixels(1, 8, 8, 3), "y_test": np.array([2**40])}, "largest label is 1099511627776, of 1 images"),
        ({"y_train": np.array([0, 1, None, 1], dtype=object)}, "cannot be read as .npz"),
        ({"y_test": np.array([0])}, "has y_test but no x_test: save both"),
        ({"x_test": pixels(1, 8, 9, 3), "y_test": np.array([0])}, "3x8x9 images"),
    ],
)
def test_npz_that_does_not_hold_what_it_should(tmp_path: Path, changes: dict[str, Array], says: str) -> None:
    name = save(tmp_path / "bad.npz", **{**GOOD, **changes})
    with pytest.raises(ValueError, match=r".") as caught:
        load_data(name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", ["x_train", "y_train"])
@pytest.mark.parametrize("named", [True, False])
def test_npz_is_never_unpickled(folder: Path, tmp_path: Path, key: str, named: bool) -> None:
    bomb = np.full((4, 28, 28) if key == "x_train" else (4,), Bomb(tmp_path / "exploded"), dtype=object)
    good = {"x_train": pixels(4, 28, 28), "y_train": np.array([0, 1, 0, 1])}
    name = save(folder / "mnist.npz", **{**good, key: bomb})
    with pytest.raises(ValueError, match="cannot be read as"):
        load_data("mnist" if named else name)
    assert not (tmp_path / "exploded").exists()


def test_npz_with_other_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has train_images, .*: save uint8 images as x_train"):
        load_data(save(tmp_path / "other.npz", train_images=GOOD["x_train"], train_labels=GOOD["y_train"]))


@pytest.mark.parametrize("keep", [0, 10, 300, -40])
def test_torn_npz(tmp_path: Path, keep: int) -> None:
    name = save(tmp_path / "torn.npz", **GOOD)
    path = tmp_path / "torn.npz"
    path.write_bytes(path.read_bytes()[:keep])
    for read in (load_data, data_domain):
        with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
            read(name)


def test_flipped_bytes_in_npz_are_noticed(tmp_path: Path) -> None:
    name = save(tmp_path / "flip.npz", **GOOD)
    path = tmp_path / "flip.npz"
    content = bytearray(path.read_bytes())
    at = content.find(GOOD["x_train"].tobytes()[:16])
    content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        load_data(name)


def test_text_that_is_called_npz(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        load_data(f"npz:{tmp_path / 'text.npz'}")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.npz is not there"):
        load_data(f"npz:{tmp_path / 'gone.npz'}")
    with pytest.raises(FileNotFoundError, match="takes the path of a folder"):
        data_domain(f"imagefolder:{tmp_path / 'gone'}")


def test_a_path_is_a_name_if_it_says_its_kind(tmp_path: Path) -> None:
    name = save(tmp_path / "own.npz", **GOOD)
    data = load_data(Path(name))
    assert data.domain == data_domain(Path(name)) == data_domain(name)
    assert type(data.domain.name) is str
    for path in (tmp_path, tmp_path / "own.npz", Path("digits")):
        for read in (load_data, data_domain, sources.find_data):
            with pytest.raises(ValueError, match=r".") as caught:
                read(path)
            assert str(caught.value) == (
                f'{path} is a path: give "imagefolder:{path}" for a folder, "npz:{path}" for an .npz file'
            )


# ---- named sets


def test_a_named_npz(folder: Path) -> None:
    x, y = pixels(3, 28, 28), np.array([0, 9, 3], dtype=np.uint8)
    np.savez(folder / "fashion_mnist.npz", x_test=x, y_test=y)
    data = load_data("fashion-mnist")
    assert data.domain is DOMAINS["fashion-mnist"]
    np.testing.assert_array_equal(get_split(data, "test")[0][:, 0].numpy(), x)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (pixels(2, 28, 28), np.array([0, 10]), "label 10, mnist's go from 0 to 9"),
        (pixels(2, 32, 32), np.array([0, 1]), "1x32x32 images, mnist has 1x28x28"),
        (pixels(2, 28, 28, 3), np.array([0, 1]), "3x28x28 images, mnist has 1x28x28"),
    ],
)
def test_a_named_npz_of_something_else(folder: Path, x: Array, y: Array, says: str) -> None:
    np.savez(folder / "mnist.npz", x_train=x, y_train=y)
    with pytest.raises(ValueError, match=says):
        load_data("mnist")


def idx(array: Array) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, zipped: bool) -> dict[str, Array]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": pixels(4, 28, 28),
        "train-labels-idx1-ubyte": np.array([1, 2, 3, 4], dtype=np.uint8),
        "t10k-images-idx3-ubyte": pixels(2, 28, 28, seed=1),
        "t10k-labels-idx1-ubyte": np.array([5, 6], dtype=np.uint8),
    }
    for name, array in arrays.items():
        (folder / f"{name}{'.gz' if zipped else ''}").write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return arrays


def check_mnist(data: Data, arrays: dict[str, Array]) -> None:
    np.testing.assert_array_equal(get_split(data, "train")[0][:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(get_split(data, "test")[0][:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert get_split(data, "train")[1].tolist() == [1, 2, 3, 4]
    assert get_split(data, "test")[1].tolist() == [5, 6]


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_in_torchvisions_layout(folder: Path, zipped: bool) -> None:
    arrays = write_mnist(folder / "MNIST" / "raw", zipped=zipped)
    check_mnist(load_data("mnist"), arrays)


def test_idx_as_debian_installs_it(folder: Path) -> None:
    arrays = write_mnist(sources.DEBIAN / "fashion-mnist", zipped=True)
    check_mnist(load_data("fashion-mnist"), arrays)


@pytest.mark.parametrize("damage", ["cut", "cut zip", "other type", "no labels"])
def test_damaged_idx(folder: Path, damage: str) -> None:
    raw = folder / "MNIST" / "raw"
    write_mnist(raw, zipped=damage == "cut zip")
    images = next(raw.glob("train-images*"))
    content = images.read_bytes()
    if damage == "no labels":
        (raw / "train-labels-idx1-ubyte").unlink()
    elif damage == "other type":
        images.write_bytes(b"\x00\x00\x0d" + content[3:])
    else:
        images.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="put all four files" if damage == "no labels" else "cannot be read as IDX"):
        load_data("mnist")


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Array:
    """Five batches of two images and a test batch in CIFAR-10's format, whose MD5 torchvision is told to expect."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    rows = pixels(12, 3072)

    def write(name: str, content: dict[str, object]) -> list[str]:
        (batches / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((batches / name).read_bytes()).hexdigest()]

    names = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]
    files = [
        write(name, {"data": rows[2 * index : 2 * index + 2], "labels": [index, index + 1]})
        for index, name in enumerate(names)
    ]
    meta = write("batches.meta", {"label_names": list(DOMAINS["cifar10"].class_names)})
    cifar10 = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar10, "train_list", files[:5])
    monkeypatch.setattr(cifar10, "test_list", files[5:])
    monkeypatch.setattr(cifar10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta[1]})
    return rows


def test_cifar10_in_torchvisions_layout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_cifar10(folder, monkeypatch)
    data = load_data("cifar10")
    # A row is 1,024 red, then green, then blue values, row-major: already (C, H, W).
    np.testing.assert_array_equal(get_split(data, "train")[0].numpy(), rows[:10].reshape(10, 3, 32, 32))
    np.testing.assert_array_equal(get_split(data, "test")[0].numpy(), rows[10:].reshape(2, 3, 32, 32))
    assert get_split(data, "train")[1].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_cifar10_that_is_not_the_published_file_is_never_unpickled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(folder, monkeypatch)
    with (folder / "cifar-10-batches-py" / "data_batch_2").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match="incomplete or damaged"):
        load_data("cifar10")


def test_svhn(folder: Path) -> None:
    images = pixels(3, 32, 32, 3)
    scipy.io.savemat(folder / "test_32x32.mat", {"X": np.moveaxis(images, 0, 3), "y": np.array([[10], [1], [9]])})
    data = load_data("svhn")
    assert data.x_train is None
    x, y = get_split(data, "test")
    np.testing.assert_array_equal(x.numpy(), np.moveaxis(images, 3, 1))
    assert y.tolist() == [0, 1, 9]


@pytest.mark.parametrize("content", [b"", b"no matlab file" * 50])
def test_damaged_svhn(folder: Path, content: bytes) -> None:
    (folder / "test_32x32.mat").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as SVHN"):
        load_data("svhn")


# ---- downloads


def test_nothing_is_downloaded_unless_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda **_: pytest.fail("downloaded"))
    with pytest.raises(FileNotFoundError, match="--download"):
        load_data("mnist")


def test_download_goes_to_the_cache_and_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: dict[str, Array] = {}

    def fetch(root: str, download: bool, train: bool) -> None:
        print("progress")
        written.update(write_mnist(Path(root) / "MNIST" / "raw", zipped=True))

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    check_mnist(load_data("mnist", download=True), written)
    assert (Path.home() / ".cache" / "datafree" / "MNIST").is_dir()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_what_is_not_asked_for_is_not_downloaded(
    split: str, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda **_: pytest.fail("downloaded"))
    raw = Path.home() / ".cache" / "datafree" / "MNIST" / "raw"
    arrays = write_mnist(raw, zipped=False)
    for file in raw.iterdir():
        if not file.name.startswith(prefix):
            file.unlink()
    x, _ = get_split(load_data("mnist", download=True, splits=split), split)
    np.testing.assert_array_equal(x[:, 0].numpy(), arrays[f"{prefix}-images-idx3-ubyte"])


@pytest.mark.parametrize("lacks", ["all but a torn file", "a split", "a file"])
def test_an_interrupted_download_goes_on(lacks: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Path.home() / ".cache" / "datafree" / "MNIST" / "raw"
    written: dict[str, Array] = {}
    raw.mkdir(parents=True)
    if lacks == "all but a torn file":
        (raw / "train-images-idx3-ubyte").touch()
    else:
        write_mnist(raw, zipped=False)
        for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")[lacks == "a file" :]:
            (raw / name).unlink()

    def fetch(root: str, download: bool, train: bool) -> None:
        written.update(write_mnist(Path(root) / "MNIST" / "raw", zipped=False))

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    check_mnist(load_data("mnist", download=True), written)


@pytest.mark.parametrize("place", ["mnist", "FOLDER"])
def test_what_lies_elsewhere_is_not_downloaded(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda **_: pytest.fail("downloaded"))
    cache = Path.home() / ".cache" / "datafree"
    written = write_mnist(folder / "MNIST" / "raw" if place == "FOLDER" else cache / place, zipped=True)
    check_mnist(load_data("mnist", download=True), written)


def test_a_download_that_fails_says_so_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(**_: object) -> None:
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr(torchvision.datasets, "SVHN", fetch)
    with pytest.raises(FileNotFoundError, match=r"^svhn could not be downloaded \(no network\): "):
        load_data("svhn", download=True)


def test_tiny_imagenet_has_no_downloader(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--download cannot fetch this one"):
        load_data("tiny-imagenet", download=True)


# ---- validation split


def test_validation_split_is_stratified_and_disjoint() -> None:
    data = load_data("digits")
    part = validation_split(data, fraction=0.2, seed=3)
    (x, y), (x_train, y_train), (x_held, y_held) = (
        get_split(data, "train"),
        get_split(part, "train"),
        get_split(part, "test"),
    )
    counts = torch.bincount(y)
    assert torch.bincount(y_held).tolist() == [round(0.2 * count) for count in counts.tolist()]
    assert torch.equal(torch.bincount(y_held) + torch.bincount(y_train), counts)
    rows = sorted(bytes(image.flatten().tolist()) for image in x)
    parts = sorted(bytes(image.flatten().tolist()) for image in torch.cat([x_train, x_held]))
    assert rows == parts
    again = get_split(validation_split(data, fraction=0.2, seed=3), "test")[0]
    other = get_split(validation_split(data, fraction=0.2, seed=4), "test")[0]
    assert torch.equal(again, x_held)
    assert not torch.equal(other, x_held)


def test_validation_split_of_tiny_classes() -> None:
    domain = make_domain(shape=(1, 2, 2), classes=3)
    y = torch.tensor([0, 1, 1, 2, 2, 2])
    x = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    part = validation_split(Data(domain=domain, x_train=x, y_train=y), fraction=0.01)
    # At least one image of a class is held out, but never the last one.
    assert get_split(part, "test")[1].tolist() == [1, 2]
    assert get_split(validation_split(Data(domain=domain, x_train=x, y_train=y), fraction=0.99), "test")[
        1
    ].tolist() == [
        1,
        2,
        2,
    ]
    with pytest.raises(ValueError, match="between 0 and 1"):
        validation_split(part, fraction=1)
    with pytest.raises(ValueError, match="no class with two training images"):
        validation_split(Data(domain=domain, x_train=x[:1], y_train=y[:1]))


def test_data_go_to_another_device_as_a_whole() -> None:
    data = load_data("digits", splits=("train",))
    there = data.to("meta")
    assert there.x_train is not None
    assert there.y_train is not None
    assert {there.x_train.device.type, there.y_train.device.type} == {"meta"}
    assert (there.x_test, there.domain) == (None, data.domain)
