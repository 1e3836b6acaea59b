"""What a step must not do on a device that computes on its own: wait for a number, move tensors, look for files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from datafree.fields import fields_of
from datafree.synthesis import METHODS, load_method
from datafree.synthesis.setting import Setting

NARROW = {"latent": 8, "generator_width": 4, "bank": 20, "negatives": 4}
STEPS = ("generator_steps", "pixel_steps", "memory_steps")
# Each needs a value, or a size that depends on values, and so would have to wait for the device.
READS = {"item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__array__"}
READS |= {"nonzero", "unique", "masked_select", "equal", "allclose", "is_nonzero"}
FILES = {"open", "os.listdir", "os.scandir", "os.walk", "glob.glob"}


class Reads(TorchFunctionMode):
    """Counts the calls inside that read a value, but for those of optimisers: Adam reads its own count of steps, which
    stands on the CPU whatever the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.stepping = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        masks = name == "__getitem__" and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in flat(args[1]))
        if not self.stepping and (name in READS or masks):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    def step(self, stepping: bool) -> None:
        self.stepping = stepping


def flat(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def build(name: str, at: Setting, steps: int) -> Any:
    kind = load_method(name)
    values = {**NARROW, **dict.fromkeys(STEPS, steps)}
    known = {field.name for field in fields_of(kind.Config)}
    return kind(at, kind.Config(**{key: value for key, value in values.items() if key in known}))


def reads(name: str, at: Setting, steps: int) -> tuple[Counter[str], int]:
    """What a round read, and the number of its terms. The round before it has made what is made once."""
    method, mode = build(name, at, steps), Reads()
    method.update()
    before = register_optimizer_step_pre_hook(lambda *_: mode.step(True))
    after = register_optimizer_step_post_hook(lambda *_: mode.step(False))
    try:
        with mode:
            terms = method.update()
    finally:
        before.remove()
        after.remove()
    return mode.found, len(terms)


@pytest.mark.parametrize("name", list(METHODS))
def test_no_inner_step_reads_a_value(toy: Callable[..., Setting], name: str) -> None:
    """A longer round reads no more than a short one, and that is its terms, once; spaceshipnet draws four depths and
    what to mix there."""
    short, terms = reads(name, toy(), 2)
    long, _ = reads(name, toy(), 5)
    assert long == short
    assert short.total() <= terms + (8 if name == "spaceshipnet" else 0)


SEEN: list[str] = []
ARMED = [False]


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if ARMED[0] and event in FILES:
        SEEN.append(f"{event} {arguments[0]}")


@pytest.mark.parametrize("name", list(METHODS))
def test_no_round_opens_a_file_or_walks_a_folder(toy: Callable[..., Setting], name: str) -> None:
    method = build(name, toy(), 2)
    method.update()
    method.sample(8)  # what is imported late has been
    sys.addaudithook(listen)
    SEEN.clear()
    ARMED[0] = True
    try:
        method.update()
        method.sample(8)
    finally:
        ARMED[0] = False
    assert SEEN == []
