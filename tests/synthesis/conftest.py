"""A tiny teacher and student for the tests of single methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

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


@pytest.fixture
def in_two(make_group: Callable[..., Any]) -> Callable[[Callable[[], T]], list[T]]:
    """Runs a function as two processes would, and gives what each returns. Outside of it there is one process."""

    def run(work: Callable[[], T]) -> list[T]:
        with pytest.MonkeyPatch.context() as patch:
            results: list[T] = make_group(2, patch).run(lambda rank: work())
            return results

    return run


@pytest.fixture
def toy() -> Callable[..., Setting]:
    """Makes a setting, the same at every call; keywords replace its fields, `norm=False` the teacher's batch norm."""
    return make
