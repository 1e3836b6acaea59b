"""Files by their absolute paths, so that a run goes on from any folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from datafree.data.sources import split_name


def absolute(name: str | None, *, is_path: bool = False) -> str | None:
    """A file, or file.py:function, by its absolute path, so that the run goes on from any folder; other names stay."""
    if name is None:
        return None
    path, colon, function = name.rpartition(".py:")
    if colon:
        return f"{Path(os.path.expanduser(path)).resolve()}{colon}{function}"
    file = Path(os.path.expanduser(name))
    return str(file.resolve()) if is_path and file.exists() else name


def base_name(text: str) -> str:
    """A path, file.py:function, npz:PATH or imagefolder:PATH without the folders; any other name as it is."""
    kind = text.partition(":")[0]
    if kind in ("npz", "imagefolder"):
        return f"{kind}:{Path(text.removeprefix(f'{kind}:')).name}"
    return Path(text).name if text.startswith("/") else text


def check_there(name: str, what: str) -> None:
    """Raises ValueError where the data that `what` (a set, a student) itself names are no file or folder here."""
    path = split_name(name)[1]
    if path is not None and not (path.is_absolute() and path.exists()):
        raise ValueError(f"{what} is of {name}, and where that lies here is not known: give data= (--data)")


def check_folder(out: Path) -> None:
    """Raises ValueError where a file stands in the place of the folder that is to be written."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder as --out")


def check_apart(out: str | Path | None, inputs: Mapping[str, str | Path | None]) -> None:
    """Raises ValueError where a file or folder of `inputs` (flag: path) lies in the folder that a run overwrites.

    Nor may the run lie in the folder of "--data": its pictures would be taken for data. A name that is no path on this
    machine lies nowhere.
    """
    data = Path(os.path.expanduser(inputs.get("--data") or os.devnull))
    if data.is_dir() and Path("runs" if out is None else str(out)).resolve().is_relative_to(data.resolve()):
        where = "runs, where runs are written," if out is None else f"--out {out}"
        raise ValueError(f"{where} lies in --data {data}, whose images it would be among: give an --out elsewhere")
    for flag, given in inputs.items():
        path = None if given is None or out is None else Path(os.path.expanduser(given))
        if path is not None and path.exists() and path.resolve().is_relative_to(Path(str(out)).resolve()):
            raise ValueError(f"{flag} {given} lies in --out {out}, which is overwritten: give another --out")


def data_path(name: str | None) -> str | None:
    """PATH of npz:PATH and imagefolder:PATH; None of any other name."""
    kind, _, path = (name or "").partition(":")
    return path if path and kind in ("npz", "imagefolder") else None


def absolute_data(name: str | None) -> str | None:
    """npz:PATH and imagefolder:PATH by the absolute path, for the same reason."""
    if name is None:
        return None
    kind, path = split_name(name)
    return name if path is None else f"{kind}:{path.resolve()}"
