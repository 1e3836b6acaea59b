from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import datafree.data.sources as sources
from datafree.data import DATA, data_domain, find_data, search_folders
from datafree.domain import DOMAINS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set in the working folder, nor in Debian's."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr(sources, "DEBIAN", tmp_path / "debian")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_neither_importing_nor_searching_loads_torch_or_numpy() -> None:
    code = (
        "import sys; from datafree.data import DATA, find_data; [find_data(name) for name in DATA]; "
        "print(sorted({'torch', 'numpy', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_folders_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Path(os.environ["DATAFREE_DATA"])
    rest = [Path.home() / ".cache" / "datafree", Path("data"), sources.DEBIAN]
    assert search_folders() == [given, *rest]
    monkeypatch.delenv("DATAFREE_DATA")
    assert search_folders() == rest


def test_earlier_folders_win() -> None:
    for folder in reversed(search_folders()):
        file = touch(folder / "cifar10.npz")
        assert find_data("cifar10") == file


@pytest.mark.parametrize("file", ["fashion-mnist.npz", "fashion_mnist.npz"])
def test_both_spellings_of_the_file_name(file: str) -> None:
    path = touch(search_folders()[0] / file)
    assert find_data("fashion-mnist") == path
    assert find_data("mnist") is None


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "mnist/t10k-images-idx3-ubyte.gz"),
        ("fashion-mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "fashion-mnist/train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "fashion_mnist/FashionMNIST/raw/train-images-idx3-ubyte.gz"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("cifar100", "cifar100/cifar-100-python/train"),
        ("svhn", "test_32x32.mat"),
        ("tiny-imagenet", "tiny-imagenet-200/train"),
    ],
)
def test_layouts_that_are_found(name: str, file: str) -> None:
    assert find_data(name) is None
    path = touch(search_folders()[1] / file)
    assert find_data(name) == path.parent


def test_nameless_idx_files_are_not_taken_for_a_set() -> None:
    touch(search_folders()[0] / "train-images-idx3-ubyte.gz")
    assert find_data("mnist") is None
    assert find_data("fashion-mnist") is None


def test_the_digits_are_always_there() -> None:
    assert find_data("digits") is not None


def test_own_files(tmp_path: Path) -> None:
    file = touch(tmp_path / "own.npz")
    assert find_data(f"npz:{file}") == file
    assert find_data(f"npz:{tmp_path}") is None
    assert find_data(f"imagefolder:{tmp_path}") == tmp_path
    assert find_data(f"imagefolder:{file}") is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar-10", "did you mean cifar10"),
        ("qqqq", "npz:PATH and imagefolder:PATH"),
        ("npz:", "npz:PATH"),
        ("png:here", "unknown data"),
    ],
)
def test_unknown_names(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find_data(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("l1.npz", "unknown data 'l1.npz': did you mean npz:l1.npz?"),
        ("photos", "unknown data 'photos': did you mean imagefolder:photos?"),
        ("~/photos", "unknown data '~/photos': did you mean imagefolder:~/photos?"),
        ("cifar_10", "unknown data 'cifar_10': did you mean imagefolder:cifar_10 or cifar10 or cifar100?"),
        ("set", "set is a condensed set: datafree train --source condensed:set learns from it"),
    ],
)
def test_files_and_folders_without_their_kind(monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    touch(Path("l1.npz"))
    touch(Path("photos/a.png"))
    touch(Path("cifar_10/a.png"))
    touch(Path("set/condensed.safetensors"))
    with pytest.raises(ValueError, match=r".") as caught:
        find_data(name)
    assert str(caught.value) == says


@pytest.mark.parametrize("name", ["", "gone.npz", "notes.txt", "~nobody/photos", "a" * 5000, "nul\0"])
def test_names_of_nothing_get_the_list(name: str) -> None:
    touch(Path("notes.txt"))
    with pytest.raises(ValueError, match=r"the names are digits, .*, npz:PATH and imagefolder:PATH$"):
        find_data(name)


def test_a_home_of_nobody_is_a_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_data("npz:~nobody_/a.npz") is None
    assert sources.missing_message("npz:~nobody_/a.npz") == "~nobody_/a.npz is not there: npz: takes the path of a file"
    monkeypatch.setenv("DATAFREE_DATA", "~nobody_/data")
    assert find_data("cifar10") is None


@pytest.mark.parametrize("name", sorted(DATA))
def test_named_domains_need_no_data(name: str) -> None:
    assert data_domain(name) is DOMAINS[name]


@pytest.mark.parametrize("name", sorted(set(DATA) - {"digits"}))
def test_the_message_for_missing_data_names_the_folders_and_the_way_out(name: str) -> None:
    message = sources.missing_message(name)
    assert all(str(folder) in message for folder in search_folders())
    assert "--download" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("imagefolder:l1.npz", "l1.npz is a file, and imagefolder: takes a folder: give npz:l1.npz"),
        ("imagefolder:a.zip", "a.zip is a file, and imagefolder: takes a folder: give imagefolder:FOLDER"),
        ("npz:photos", "photos is a folder, and npz: takes a file: give npz:FILE, or imagefolder:photos"),
        ("npz:gone.npz", "gone.npz is not there: npz: takes the path of a file"),
        ("imagefolder:gone", "gone is not there: imagefolder: takes the path of a folder"),
    ],
)
def test_the_message_for_own_data_of_the_other_kind_says_what_is_there(name: str, says: str) -> None:
    for file in ("l1.npz", "a.zip", "photos/a.png"):
        touch(Path(file))
    assert sources.missing_message(name) == says
    with pytest.raises(FileNotFoundError, match=r".") as caught:
        data_domain(name)
    assert str(caught.value) == says
