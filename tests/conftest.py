"""What every test gets: one thread, fixed seeds, and none of the user's data or settings."""

from __future__ import annotations

import os
import random
import signal
import site
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# What `auto` takes must not depend on the machine. Read when torch is first asked for a GPU. tests/devices alone may be
# run on a real one, with this variable set.
if "DATAFREE_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Two OpenMP threads on busy cores can be many times slower than one. Child processes read the variable.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Started in the background of a script, Python is told to ignore Ctrl-C, and so would be what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each test has its own HOME. These two follow HOME by default and must not: matplotlib would search the fonts again
# in every child process, and a child would lose packages that were installed with `pip install --user`.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, those of whole tables before all: at the end no process waits for another's long test."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, "test_whole_tables" not in item.nodeid))


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def isolated(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides data sets, downloaded weights and settings of the person who runs the tests."""
    home, data = (tempfile.mkdtemp(prefix=prefix, dir=homes) for prefix in ("home", "data"))  # mktemp reads all names
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("USERPROFILE", home)
    monkeypatch.setenv("DATAFREE_DATA", data)
    for name in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers whether a test runs alone or after others."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats three stacks, for GPUs to come


@pytest.fixture
def double() -> Iterator[None]:
    """float64 is what tensors are made in."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class PowerCutError(Exception):
    """Stands for what ends a process at once."""


@pytest.fixture
def power_cut() -> Callable[[int], AbstractContextManager[Callable[[Mapping[str, Any]], None]]]:
    """Of a step: a block that has to end there, in which a run is given the value as its `show`."""

    @contextmanager
    def cut(step: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        def show(row: Mapping[str, Any]) -> None:
            if row["step"] >= step:
                raise PowerCutError

        with pytest.raises(PowerCutError):
            yield show

    return cut


class Group:
    """`size` threads in the place of processes. Outside of them it looks like rank 0 of the group."""

    def __init__(self, size: int) -> None:
        self.size, self.local = size, threading.local()
        self.barrier = threading.Barrier(size, timeout=60)
        self.slots: list[Tensor] = [torch.empty(0)] * size

    def rank(self) -> int:
        return int(getattr(self.local, "rank", 0))

    def exchange(self, x: Tensor) -> list[Tensor]:
        self.slots[self.rank()] = x.detach().clone()
        self.barrier.wait()
        held = list(self.slots)
        # A real group sends memory as it lies: rows of one process beside columns of another would be added up.
        assert len({part.stride() for part in held}) == 1, "the processes' memory formats differ"
        self.barrier.wait()
        return held

    def all_reduce(self, x: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        stacked = torch.stack(self.exchange(x))
        x.detach().copy_(stacked.amax(0) if op == dist.ReduceOp.MAX else stacked.sum(0))

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        for part, other in zip(parts, self.exchange(x), strict=True):
            part.copy_(other)

    def run(self, work: Callable[[int], T]) -> list[T]:
        """What `work(rank)` returns in each thread."""
        results: dict[int, T] = {}
        errors: list[BaseException] = []

        def target(rank: int) -> None:
            self.local.rank = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=target, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [results[rank] for rank in range(self.size)]


@pytest.fixture(scope="session")
def make_group() -> Callable[[int, pytest.MonkeyPatch], Group]:
    """Of a number, and a patch to do it with: threads in the place of so many processes."""

    def make(size: int, patch: pytest.MonkeyPatch) -> Group:
        held = Group(size)
        patch.setattr(dist, "is_initialized", lambda: True)
        patch.setattr(dist, "get_world_size", lambda: held.size)
        patch.setattr(dist, "get_rank", held.rank)
        patch.setattr(dist, "get_backend", lambda: "gloo")
        patch.setattr(dist, "all_reduce", held.all_reduce)
        patch.setattr(dist, "all_gather", held.all_gather)
        return held

    return make
