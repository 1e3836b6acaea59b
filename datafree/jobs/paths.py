"""Files by their absolute paths, so that a run goes on from any folder."""

from __future__ import annotations

from pathlib import Path

from datafree.data.sources import split_name


def absolute(name: str | None, *, is_path: bool = False) -> str | None:
    """A file, or file.py:function, by its absolute path, so that the run goes on from any folder; other names stay."""
    if name is None:
        return None
    path, colon, function = name.rpartition(".py:")
    if colon:
        return f"{Path(path).resolve()}{colon}{function}"
    return str(Path(name).resolve()) if is_path and Path(name).exists() else name


def absolute_data(name: str | None) -> str | None:
    """npz:PATH and imagefolder:PATH by the absolute path, for the same reason."""
    if name is None:
        return None
    kind, path = split_name(name)
    return name if path is None else f"{kind}:{path.resolve()}"
