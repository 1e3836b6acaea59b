"""Reading checkpoint files: the containers, the prefixes, and every file that must be refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from datafree.models.checkpoint import (
    architecture_beside,
    file_sha256,
    find_checkpoint,
    largest_part,
    normalisation_beside,
    plain_names,
    read_checkpoint,
)

STATE = {"conv.weight": torch.ones(2, 3, 1, 1), "conv.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE},
        {"model_state_dict": STATE, "optimizer": {"state": {}}},
        {"net": STATE, "acc": 91.7},
        {"model": {"state_dict": STATE}},
        {f"module.{key}": value for key, value in STATE.items()},
        {"net": {f"module._orig_mod.{key}": value for key, value in STATE.items()}},
        {f"_orig_mod.module.{key}": value for key, value in STATE.items()},
        {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in STATE.items()}},
        {**STATE, "best_accuracy": 0.9},
        {"ema": STATE, "epoch": 3},
        {"state_dict_ema": {f"module.{key}": value for key, value in STATE.items()}},
        {"model_ema": STATE, "ema": {"decay": 0.999}},
        {"ema": {"conv.weight": torch.zeros(2, 3, 1, 1)}, "model": STATE},
        {**STATE, "ema": {"conv.weight": torch.zeros(2, 3, 1, 1)}},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_containers_and_prefixes(tmp_path: Path, content: dict[str, Any], legacy: bool) -> None:
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    state = read_checkpoint(tmp_path / "x.pt").state
    assert set(state) == set(STATE)
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


def test_a_real_name_module_is_kept_where_not_all_have_it() -> None:
    state = {"module.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert set(plain_names(state)) == set(state)
    assert set(plain_names({"a._orig_mod.b": torch.ones(1), "c": torch.ones(1)})) == {"a.b", "c"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("model.a.w", "model.b.w", "loss.w"), ("model.a.w", "model.b.w")),
        (("all.model.a", "all.model.b", "all.loss"), ("all.model.a", "all.model.b")),
        (("model.a", "ema.a"), ()),  # which of the two nobody knows
        (("model.a", "ema.a", "loss.w"), ()),
        (("a", "b"), ()),
        (("model.a", "model.b"), ()),  # nothing else
        ((), ()),
    ],
)
def test_the_part_with_more_than_half_of_the_tensors(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert tuple(largest_part({name: torch.ones(1) for name in names})) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({key: value.to(dtype) for key, value in STATE.items()}, tmp_path / "x.pth")
    assert {value.dtype for value in read_checkpoint(tmp_path / "x.pth").state.values()} == {torch.float32}


def test_safetensors_with_and_without_our_metadata(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    assert read_checkpoint(tmp_path / "foreign.safetensors").metadata == {}
    facts = {"arch": "resnet8", "shape": [3, 32, 32], "classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3, "data": None}
    save_file(STATE, tmp_path / "ours.safetensors", metadata={"datafree": json.dumps(facts)})
    checkpoint = read_checkpoint(tmp_path / "ours.safetensors")
    assert checkpoint.metadata == facts
    assert checkpoint.shape == (3, 32, 32)
    assert checkpoint.sha256 == file_sha256(tmp_path / "ours.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.SAFETENSORS", "x.pt", "x"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name, metadata={"datafree": '{"arch": "resnet8"}'})
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.metadata == {"arch": "resnet8"}
    assert all(torch.equal(checkpoint.state[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"architecture": "resnet18"}', "resnet18"),
        ('{"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5]}}', "timm:resnet18"),
        ('{"architecture": "x/nets.py:make", "pretrained_cfg": {}}', ""),
        ('{"architecture": ["resnet18"]}', ""),
        ('{"architectures": ["ResNetForImageClassification"]}', ""),
        ('["resnet18"]', ""),
        ("{", ""),
        ("[" * 100_000, ""),
        ("\udcff", ""),
        (None, ""),
    ],
)
def test_the_architecture_in_the_config_beside_a_file(tmp_path: Path, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert architecture_beside(tmp_path / "model.safetensors") == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"shape": [3, 32]}',
        '{"shape": [3, 32, 0]}',
        '{"arch": 3}',
        '{"classes": "ten"}',
        '{"std": [0.0]}',
        '{"mean": "0.5"}',
    ],
)
def test_bad_metadata(tmp_path: Path, text: str) -> None:
    save_file(STATE, tmp_path / "x.safetensors", metadata={"datafree": text})
    with pytest.raises(ValueError, match="metadata") as caught:
        read_checkpoint(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_is_of_the_whole_file(tmp_path: Path) -> None:
    # A million times the letter a (FIPS 180-2, appendix B.3), and as much again: more than one block of reading.
    million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    for times, wanted in ((1, million), (2, hashlib.sha256(b"a" * 2_000_000).hexdigest())):
        (tmp_path / "a").write_bytes(b"a" * 1_000_000 * times)
        assert file_sha256(tmp_path / "a") == wanted


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


BESIDE: dict[str, Any] = {
    "args": argparse.Namespace(lr=0.1, name="x", folder=Path("runs"), nested=argparse.Namespace(a=[1])),
    "best_prec1": np.float64(93.1),
    "epoch": np.int64(3),
    "curve": np.arange(3.0),
}


@pytest.mark.skipif(torch.__version__ < "2.6", reason="torch cannot be told both of NumPy's module names")
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("what", BESIDE)
def test_what_scripts_save_beside_the_weights_is_read_over(what: str, new: bool, tmp_path: Path) -> None:
    content = {"state_dict": STATE, what: BESIDE[what]}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    assert set(read_checkpoint(tmp_path / "a.pt").state) == set(STATE)
    # As NumPy 1 named its module.
    written = (tmp_path / "a.pt").read_bytes()
    if not new and b"numpy._core" in written:
        (tmp_path / "b.pt").write_bytes(written.replace(b"numpy._core", b"numpy.core"))
        assert set(read_checkpoint(tmp_path / "b.pt").state) == set(STATE)


def test_a_bomb_among_the_arguments_is_refused_and_never_run(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "run")
    for number, value in enumerate((argparse.Namespace(a=bomb), np.array([bomb], dtype=object))):
        file = tmp_path / f"{number}.pt"
        torch.save({"state_dict": STATE, "args": value}, file)
        with pytest.raises(ValueError, match="would run code when loaded"):
            read_checkpoint(file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_refused_and_never_run(tmp_path: Path, legacy: bool) -> None:
    zipped = not legacy
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    torch.save(
        {"state_dict": STATE, "b": Bomb(tmp_path / "run")}, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped
    )
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "run")))
    for name in ("net", "bomb", "plain"):
        with pytest.raises(ValueError, match="holds a pickled object, which would run code when loaded") as caught:
            read_checkpoint(tmp_path / f"{name}.pt")
        assert f"torch.save(model.state_dict(), '{name}_weights.pt')" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    names = ("net/constants.pkl", "net/data.pkl", "net/code/__torch__.py")  # what an archive of torch.jit.save holds
    import zipfile

    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    with pytest.raises(ValueError, match="holds a TorchScript program, which would run code"):
        read_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_no_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    whole = tmp_path / f"whole{suffix}"
    torch.save(STATE, whole) if suffix == ".pt" else save_file(STATE, whole)
    content = whole.read_bytes()
    for bad in (b"hello, this is text\n" * 20, b"\x89PNG\r\n\x1a\n" * 9, content[: len(content) // 2], content[:-60]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            read_checkpoint(path)
        assert "cut short" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_legacy_file_cut_short(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "whole.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "whole.pt").read_bytes()
    for length in (20, 200, len(content) - 100):
        (tmp_path / "x.pt").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut short"):
            read_checkpoint(tmp_path / "x.pt")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.pt").touch()
    with pytest.raises(ValueError, match="is empty"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, not a state dict"),
        (torch.ones(3), "holds Tensor, not a state dict"),
        ({"epoch": 3, "weights": {"a": torch.ones(1)}}, r"no state dict \(its keys: epoch, weights\)"),
        ({}, r"no state dict \(its keys: none\)"),
        ({"step": torch.tensor(3)}, "no state dict"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "x.pt")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    torch.save(STATE, tmp_path / "x.pt")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"x.pt cannot be read: Permission denied"):
        read_checkpoint(tmp_path / "x.pt")


def test_finding_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent.pt: give a checkpoint"):
        find_checkpoint(str(tmp_path / "absent.pt"))
    with pytest.raises(FileNotFoundError, match=r"folder without student.safetensors or model.safetensors"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"^the run in .* is not finished: go on with it \(--resume --out .*\)$"
    ):
        find_checkpoint(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be read: File name too long"):
        find_checkpoint("x" * 5000)
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert find_checkpoint(str(tmp_path)).name == "pytorch_model.bin"
    save_file(STATE, tmp_path / "model.safetensors")
    assert find_checkpoint(str(tmp_path)).name == "model.safetensors"
    save_file(STATE, tmp_path / "student.safetensors")
    assert find_checkpoint(str(tmp_path)).name == "student.safetensors"


GREY = ([0.13], [0.31])


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("config.json", {"pretrained_cfg": {"mean": [0.13], "std": [0.31]}}, GREY),
        ("preprocessor_config.json", {"image_mean": [0.13], "image_std": [0.31]}, GREY),
        ("preprocessor_config.json", {"image_mean": [0.13], "image_std": [0.31], "do_normalize": False}, None),
        ("config.json", {"pretrained_cfg": {"mean": [0.13], "std": [0.0]}}, None),
        ("config.json", {"pretrained_cfg": {"mean": [0.13], "std": [0.1, 0.2]}}, None),
        ("config.json", {"pretrained_cfg": {"mean": [True], "std": [0.31]}}, None),
        ("config.json", {"pretrained_cfg": {"mean": [float("nan")], "std": [0.31]}}, None),
        ("config.json", {"pretrained_cfg": {"mean": "0.13", "std": "0.31"}}, None),
        ("config.json", {"pretrained_cfg": ["mean"]}, None),
        ("config.json", {"mean": [0.13], "std": [0.31]}, None),
        ("config.json", [], None),
    ],
)
def test_the_normalisation_beside_a_file(tmp_path: Path, file: str, text: Any, expected: Any) -> None:
    (tmp_path / file).write_text(json.dumps(text))
    assert normalisation_beside(tmp_path / "model.safetensors") == expected
    assert normalisation_beside(tmp_path / "pytorch_model.bin") == expected
    assert normalisation_beside(tmp_path / "resnet8.safetensors") is None
