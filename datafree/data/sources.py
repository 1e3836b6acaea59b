"""Where the data sets lie on disk. Imports the standard library only, so that looking is cheap."""

from __future__ import annotations

import difflib
import importlib.util
import os
from pathlib import Path

from datafree.data import DATA

# Debian's package dataset-fashion-mnist puts its files into /usr/share/datasets/fashion-mnist.
DEBIAN = Path("/usr/share/datasets")

# What a folder must hold (any one of the patterns) for a set to be there unpacked, as torchvision or Debian leaves it.
# The parent of the match is the folder that the readers take.
_LAYOUTS: dict[str, tuple[str, ...]] = {
    "mnist": ("MNIST/raw/*-images-idx3-ubyte*", "*-images-idx3-ubyte*"),
    "fashion-mnist": ("FashionMNIST/raw/*-images-idx3-ubyte*", "*-images-idx3-ubyte*"),
    "cifar10": ("cifar-10-batches-py/data_batch_1",),
    "cifar100": ("cifar-100-python/train",),
    "svhn": ("test_32x32.mat", "train_32x32.mat"),
    "tiny-imagenet": ("tiny-imagenet-200/train", "tiny-imagenet-200/val"),
}


def cache_folder() -> Path:
    """Where downloads go: ~/.cache/datafree."""
    return Path.home() / ".cache" / "datafree"


def search_folders() -> list[Path]:
    """The folders in which named data sets are looked for, in this order.

    $DATAFREE_DATA (if set), ~/.cache/datafree, ./data, and the folder of Debian's data packages.
    """
    given = os.environ.get("DATAFREE_DATA")
    return [*([Path(os.path.expanduser(given))] if given else []), cache_folder(), Path("data"), DEBIAN]


def data_name(name: str | os.PathLike[str]) -> str:
    """The name of a data set as text; Path("npz:a.npz") is one too.

    Raises ValueError for another path: whether it is a file or a folder has to be said.
    """
    text = os.fspath(name)
    if not isinstance(name, str) and not text.startswith(("npz:", "imagefolder:")):
        raise ValueError(f'{text} is a path: give "imagefolder:{text}" for a folder, "npz:{text}" for an .npz file')
    return text


def split_name(name: str | os.PathLike[str]) -> tuple[str, Path | None]:
    """A data name as (kind, path): ("mnist", None), ("npz", Path("a.npz")) or ("imagefolder", Path("photos")).

    Raises ValueError with the nearest names where the name is none of these.
    """
    name = data_name(name)
    kind, colon, path = name.partition(":")
    if colon and kind in ("npz", "imagefolder"):
        if not path:
            raise ValueError(f"--data {name}: write the path after the colon, such as {kind}:PATH")
        return kind, Path(os.path.expanduser(path))
    if name in DATA:
        return name, None
    if os.path.isfile(os.path.join(os.path.expanduser(name), "condensed.safetensors")):
        raise ValueError(f"{name} is a condensed set: datafree train --source condensed:{name} learns from it")
    near = [*_own_names(name), *difflib.get_close_matches(name.lower().replace("_", "-"), DATA, n=3)]
    if near:
        raise ValueError(f"unknown data {name!r}: did you mean {' or '.join(near)}?")
    raise ValueError(f"unknown data {name!r}: the names are {', '.join(DATA)}, npz:PATH and imagefolder:PATH")


def _own_names(path: str) -> list[str]:
    """The name of what lies at `path`, a folder or an .npz file; none of anything else."""
    # os.path takes any text; Path raises for an unknown user's home and for names that are too long.
    place = os.path.expanduser(path)
    if os.path.isdir(place):
        return [f"imagefolder:{path}"]
    return [f"npz:{path}"] if path.endswith(".npz") and os.path.isfile(place) else []


def find_data(name: str | os.PathLike[str]) -> Path | None:
    """The file or folder that holds a data set, or None where it is not there. Opens no file.

    `name`: a key of `DATA`, `npz:PATH` or `imagefolder:PATH`. In each of `search_folders()`, a file NAME.npz (with "-"
    or "_" in the name) comes first, then torchvision's layout, in the folder itself or in a subfolder called NAME. The
    digits are found wherever scikit-learn is installed. Raises ValueError for an unknown name.
    """
    kind, path = split_name(name)
    if path is not None:
        return path if (path.is_file() if kind == "npz" else path.is_dir()) else None
    if kind == "digits":
        spec = importlib.util.find_spec("sklearn")
        return Path(spec.origin).parent if spec and spec.origin else None
    spellings = dict.fromkeys((kind, kind.replace("-", "_")))
    for folder in search_folders():
        for spelling in spellings:
            if (folder / f"{spelling}.npz").is_file():
                return folder / f"{spelling}.npz"
        # IDX files carry no name, so a bare "train-images-idx3-ubyte" counts only in a folder called like the set.
        for place, named in ((folder, False), *((folder / spelling, True) for spelling in spellings)):
            for pattern in _LAYOUTS[kind]:
                if not named and pattern.startswith("*"):
                    continue
                match = next(iter(place.glob(pattern)), None)
                if match is not None:
                    return match.parent
    return None


def missing_message(name: str) -> str:
    """One line for a data set that `find_data` does not find: where it was looked for, or what is there; what to do."""
    kind, path = split_name(name)
    if path is not None and kind == "npz" and path.is_dir():
        return f"{path} is a folder, and npz: takes a file: give npz:FILE, or imagefolder:{path}"
    if path is not None and kind == "imagefolder" and path.is_file():
        instead = f"npz:{path}" if path.suffix == ".npz" else "imagefolder:FOLDER"
        return f"{path} is a file, and imagefolder: takes a folder: give {instead}"
    if path is not None:
        return f"{path} is not there: {kind}: takes the path of {'a file' if kind == 'npz' else 'a folder'}"
    if kind == "digits":
        return "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
    folders = ", ".join(str(folder) for folder in search_folders())
    if kind == "tiny-imagenet":
        return (
            f"tiny-imagenet was not found in {folders}: unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip into "
            f"{cache_folder()} (--download cannot fetch this one)"
        )
    return f"{kind} was not found in {folders}: add --download, or set DATAFREE_DATA to the folder that holds it"
