"""A tiny teacher and student for the tests of single methods."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from datafree.domain import Domain
from datafree.synthesis.setting import Pace, Setting
from datafree.teacher import Normalised, Teacher

T = TypeVar("T")

DOMAIN = Domain(name="toy", shape=(3, 8, 8), classes=4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=True)


def network(width: int, norm: bool = True) -> nn.Module:
    middle = nn.BatchNorm2d(width) if norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, stride=2), middle, nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 4)
    )


def make(norm: bool = True, batch_size: int = 8, **values: Any) -> Setting:
    torch.manual_seed(7)
    teacher = network(6, norm)
    with torch.no_grad():
        for _ in range(5):
            teacher(torch.randn(32, *DOMAIN.shape))
    held: dict[str, Any] = {
        "teacher": Teacher(teacher, DOMAIN.mean, DOMAIN.std),
        "student": Normalised(network(4), DOMAIN.mean, DOMAIN.std),
        "domain": DOMAIN,
        "batch_size": batch_size,
        "rng": torch.Generator().manual_seed(11),
        "device": torch.device("cpu"),
        "pace": Pace(steps=100),
    }
    return Setting(**{**held, **values})


class Pair:
    """Two threads in the place of processes."""

    def __init__(self) -> None:
        self.local, self.barrier, self.slots = threading.local(), threading.Barrier(2, timeout=60), [torch.empty(0)] * 2

    def rank(self) -> int:
        return int(getattr(self.local, "rank", 0))

    def exchange(self, x: Tensor) -> list[Tensor]:
        self.slots[self.rank()] = x.detach().clone()
        self.barrier.wait()
        held = list(self.slots)
        self.barrier.wait()
        return held

    def all_reduce(self, x: Tensor, op: Any = None) -> None:
        one, two = self.exchange(x)
        x.detach().copy_(one + two)

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        for part, other in zip(parts, self.exchange(x), strict=True):
            part.copy_(other)

    def run(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns in each thread."""
        results: dict[int, T] = {}
        errors: list[BaseException] = []

        def target(rank: int) -> None:
            self.local.rank = rank
            try:
                results[rank] = work()
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=target, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [results[rank] for rank in range(2)]


@pytest.fixture
def in_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], T]], list[T]]:
    """Runs a function as two processes would, and gives what each returns. Outside of it there is one process."""

    def run(work: Callable[[], T]) -> list[T]:
        pair = Pair()
        with monkeypatch.context() as patch:
            patch.setattr(dist, "is_initialized", lambda: True)
            patch.setattr(dist, "get_world_size", lambda: 2)
            patch.setattr(dist, "get_rank", pair.rank)
            patch.setattr(dist, "all_reduce", pair.all_reduce)
            patch.setattr(dist, "all_gather", pair.all_gather)
            return pair.run(work)

    return run


@pytest.fixture
def toy() -> Callable[..., Setting]:
    """Makes a setting, the same at every call; keywords replace its fields, `norm=False` the teacher's batch norm."""
    return make
