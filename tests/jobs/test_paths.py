"""Paths that a run reads, and the folder that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from datafree.condensation.trained import is_checkpoint
from datafree.data.condensed import load_condensed
from datafree.jobs.beginnings import absolute_source
from datafree.jobs.paths import absolute, check_apart, data_path
from datafree.models import build_model
from datafree.models.checkpoint import find_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, which is home too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_a_tilde_is_home_where_no_shell_has_replaced_it(tmp_path: Path) -> None:
    (tmp_path / "net.pt").touch()
    assert absolute("~/net.py:make") == f"{tmp_path}/net.py:make"
    assert absolute("~/net.pt", is_path=True) == f"{tmp_path}/net.pt"


def test_a_home_of_nobody_is_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert absolute("~nobody_/net.pt", is_path=True) == "~nobody_/net.pt"
    assert absolute("~nobody_/net.py:make") == f"{tmp_path}/~nobody_/net.py:make"
    check_apart("net", {"--teacher": "~nobody_/net.pt"})
    with pytest.raises(FileNotFoundError, match=r"no file ~nobody_/net\.pt"):
        find_checkpoint("~nobody_/net.pt")
    with pytest.raises(FileNotFoundError, match=r"no file ~nobody_/net\.py: give path/file\.py:function$"):
        build_model("~nobody_/net.py:make", shape=(1, 8, 8), classes=2)
    with pytest.raises(ValueError, match="no condensed set in ~nobody_/set"):
        load_condensed("~nobody_/set")
    assert is_checkpoint("~nobody_/net.pt")
    assert absolute_source("condensed:~nobody_/set") == f"condensed:{tmp_path}/~nobody_/set"


def test_names_stay(tmp_path: Path) -> None:
    (tmp_path / "resnet8").touch()
    assert absolute("resnet8") == "resnet8"
    assert absolute("torchvision:resnet18", is_path=True) == "torchvision:resnet18"


@pytest.mark.parametrize("file", ["net/model.pt", "~/net/model.pt", "net"])
def test_what_is_read_lies_outside_of_what_is_overwritten(file: str, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "model.pt").touch()
    with pytest.raises(ValueError, match=f"^--teacher {file} lies in --out net, which is overwritten"):
        check_apart("net", {"--data": None, "--teacher": file})
    check_apart("other", {"--teacher": file})
    check_apart(None, {"--teacher": file})


def test_a_run_lies_outside_of_the_images_it_learns_from(tmp_path: Path) -> None:
    """Else its pictures are data from then on."""
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^--out photos/set lies in --data photos, .*: give an --out elsewhere"):
        check_apart("photos/set", {"--data": data_path("imagefolder:photos")})
    with pytest.raises(ValueError, match=r"^runs, where runs are written, lies in --data \.,"):
        check_apart(None, {"--data": data_path("imagefolder:.")})
    check_apart("photos2", {"--data": data_path("imagefolder:photos")})
    check_apart(None, {"--data": data_path("imagefolder:photos")})


def test_a_name_that_is_no_file_lies_nowhere() -> None:
    """Here all paths lie in --out."""
    check_apart(".", {"--teacher": "torchvision:resnet18", "--data": data_path("mnist")})


def test_paths_of_data() -> None:
    assert data_path("npz:a/b.npz") == "a/b.npz"
    assert data_path("imagefolder:c:d") == "c:d"
    assert data_path("digits") is None
    assert data_path(None) is None
