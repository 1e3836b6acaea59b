"""The command line in this process: arguments in, exit status and both streams out."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.cli import main
from datafree.domain import DOMAINS
from datafree.models import build_model


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs `datafree` with the given arguments in an empty folder. A traceback is the test's own failure."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def call(*args: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["datafree", *map(str, args)])
        capsys.readouterr()
        status: Any = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return Answer(status=status, out=captured.out, err=captured.err)

    return call


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeNet-5 that knows the digits a little, as `datafree pretrain` writes it: a folder."""
    from datafree import jobs

    folder = tmp_path_factory.mktemp("teacher") / "lenet5"
    jobs.pretrain(data="digits", arch="lenet5", steps=120, seed=1, out=folder)
    return folder


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints from somewhere, good and bad ones, and files of architectures."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    torch.save(build_model("resnet20", shape=(3, 32, 32), classes=10).state_dict(), folder / "resnet20.pt")
    torch.save(build_model("wrn10_1", shape=(3, 24, 40), classes=7).state_dict(), folder / "wrn10_1.pt")
    torch.save(build_model("resnet20", shape=DOMAINS["digits"].shape, classes=10).state_dict(), folder / "grey.pt")
    torch.save(build_model("resnet8", shape=(3, 32, 32), classes=10), folder / "pickled.pt")
    torch.save({"epoch": 3}, folder / "nothing.pt")
    (folder / "text.pt").write_text("hello")
    (folder / "empty.pt").write_text("")
    (folder / "text.safetensors").write_text("hello, this is no such file")
    (folder / "nets.py").write_text(
        "from torch import nn\n"
        "def square(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))\n"
        "def raises(): raise RuntimeError('first line\\nsecond line')\n"
        "def no_module(): return 5\n"
        "def wants(a): return nn.Linear(a, 10)\n"
    )
    (folder / "broken.py").write_text("def x(:\n")
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).state_dict(), folder / "square.pt")
    return folder


# A run of a second or two on the digits.
SHORT = ("--batch-size", 32, "--bank", 64, "--steps", 20, "--warmup", 0)


@pytest.fixture
def short() -> tuple[object, ...]:
    return SHORT
