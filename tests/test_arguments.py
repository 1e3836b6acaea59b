"""Arguments of public functions: of another kind they are told in one line, which names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import datafree
from datafree import jobs
from datafree.arguments import checked
from datafree.domain import DOMAINS

SOME: dict[str, Any] = {"images": torch.rand(10, 1, 8, 8), "labels": torch.arange(10), "domain": DOMAINS["digits"]}


def on_a_set(**options: Any) -> Any:
    return datafree.evaluate_set(datafree.CondensedSet(**SOME), "digits", **options)


def network() -> torch.nn.Module:
    return datafree.build_model("lenet5_half", shape=(1, 8, 8), classes=10)


FIVE: Any = 5
NONE: Any = None
TEXT: Any = "x"
SIDES: Any = "1x8x8"
WRONG: dict[str, Callable[[], Any]] = {
    "evaluate_set(networks=1.5): give a whole number or None": lambda: on_a_set(networks=1.5),
    "evaluate_set(networks=True): give a whole number or None": lambda: on_a_set(networks=True),
    "evaluate_set(protocol=5): give a text or a Protocol": lambda: on_a_set(protocol=FIVE),
    "evaluate_set(archs=[5]): give a text or several texts": lambda: on_a_set(archs=[5]),
    "evaluate_set(lr='x'): give a number or None": lambda: on_a_set(lr="x"),
    "evaluate_set(seed=1.5): give a whole number": lambda: on_a_set(seed=1.5),
    "--seed is -1: give a number 0 or more": lambda: on_a_set(seed=-1),
    "--precision is '16': take 32 or bf16": lambda: on_a_set(precision="16"),
    "train(out=5): give a text or a path or None": lambda: datafree.train(out=FIVE),
    "train(say=5): give a function": lambda: datafree.train(say=FIVE),
    "--teacher is empty: give its value, or leave it out": lambda: datafree.train(teacher=""),
    "--out is empty: give its value, or leave it out": lambda: datafree.condense(out="", method="random"),
    "pretrain(out=5): give a text or a path or None": lambda: datafree.pretrain(out=FIVE),
    "record_experts(data=5): give a text": lambda: jobs.record_experts(data=FIVE),
    "resume(out=None): give a text or a path": lambda: datafree.resume(NONE),
    "load_data(name=None): give a text or a path": lambda: datafree.load_data(NONE),
    "load_data(splits=5): give a text": lambda: datafree.load_data("digits", splits=FIVE),
    "load_condensed(path=5): give": lambda: datafree.load_condensed(FIVE),
    "path is empty: give its value": lambda: datafree.load_condensed(" "),
    "build_model(name=None): give": lambda: datafree.build_model(NONE, shape=(1, 8, 8), classes=9),
    "build_model(shape='1x8x8'): give several whole numbers": lambda: datafree.build_model(
        "lenet5",
        shape=SIDES,
        classes=9,
    ),
    "load_method(name=5): give a text": lambda: datafree.load_method(FIVE),
    "load_teacher(mean=5): give several numbers": lambda: datafree.load_teacher(network(), mean=FIVE),
    "evaluate(mean='x'): give several numbers": lambda: datafree.evaluate(network(), "digits", mean=TEXT),
    "sample(n='x'): give a whole number": lambda: datafree.sample("run", TEXT, out="y"),
    "reproduce(cells='a/b'): give several texts": lambda: datafree.reproduce("digits-smoke", cells="a/b"),
    "rank(image_tensor=5): give a Tensor": lambda: datafree.rank(
        datafree.load_data("digits"),
        image_tensor=FIVE,
    ),
    "Teacher(network=5): give a Module": lambda: datafree.Teacher(FIVE, (0.0,), (1.0,)),
    "CondensedSet(labels=[1, 2]): give a Tensor": lambda: datafree.CondensedSet(**{**SOME, "labels": [1, 2]}),
    "Domain(mean=5): give several numbers": lambda: datafree.Domain(
        name="x",
        shape=(1, 8, 8),
        classes=2,
        mean=FIVE,
        std=(1.0,),
        flip=False,
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_an_argument_of_another_kind_is_named(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r".") as caught:
        WRONG[words]()
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_goes_for_a_kind_is_taken_as_it_is() -> None:
    @checked("any")
    def told(
        n: int, x: float, many: Sequence[float], name: str, *, any: str = "", out: str | Path | None = None
    ) -> tuple[object, ...]:
        return n, x, many, name, any, out

    accepted: tuple[tuple[Any, Any, Any, Any], ...] = (
        (1, 1, [1, 2.5], "a"),
        (np.int64(1), np.float32(1), np.ones(2), Path("a")),
        (1, torch.tensor(1.0), torch.ones(2), "a"),
    )
    for given in accepted:
        assert told(*given, out=Path("x")) == (*given, "", Path("x"))
    assert told(1, 2, (), "a", any=FIVE)[4] == 5
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        told(1, 2, ())  # type: ignore[call-arg]


def test_a_precision_that_is_not_known_is_refused_wherever_networks_are_trained() -> None:
    from datafree.evaluation.networks import forward_of

    with pytest.raises(ValueError, match="--precision is '16': take 32 or bf16"):
        forward_of(network(), "16")
