"""What every test gets: one thread, fixed seeds, and none of the user's data or settings."""

from __future__ import annotations

import os
import random
import signal
import site
from pathlib import Path

import numpy as np
import pytest
import torch

# Two OpenMP threads on busy cores can be many times slower than one. Child processes read the variable.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Started in the background of a script, Python is told to ignore Ctrl-C, and so would be what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each test has its own HOME. These two follow HOME by default and must not: matplotlib would search the fonts again
# in every child process, and a child would lose packages that were installed with `pip install --user`.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides data sets, downloaded weights and settings of the person who runs the tests."""
    home = tmp_path_factory.mktemp("home")
    data = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("DATAFREE_DATA", str(data))
    for name in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers whether a test runs alone or after others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
