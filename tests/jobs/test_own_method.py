"""A method of one's own: its ordinary slips are told in one line that names the class."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import torch
from click.testing import CliRunner

import datafree
from datafree import condensation
from datafree.cli.listing import listing
from datafree.config import StudentSteps
from datafree.jobs.filling import METHODS_OWN
from datafree.synthesis import METHODS, STUDENT_KNOWS, check_parts, check_values, load_method
from datafree.synthesis.setting import Batch

STUDENT = {"criterion": "kl", "temperature": 4.0, "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "augment": True}
SHORT: dict[str, Any] = {"method": "own", "student": "mlp", "data": "digits", "steps": 2, "batch_size": 8, "threads": 1}


def a_config(*more: Any) -> type[Any]:
    fields = [("student_steps", StudentSteps, 1), *more]
    return dataclasses.make_dataclass("OwnConfig", fields, frozen=True, kw_only=True)


class Own:
    """Grey images; passes."""

    Config = a_config()
    STUDENT: Any = STUDENT

    def __init__(self, setting: Any, config: Any) -> None:
        self.setting, self.config, self.made = setting, config, 0

    def update(self) -> Any:
        return {"adv": 0.5}

    def sample(self, n: int) -> Batch:
        self.made += n
        return Batch(torch.rand(n, *self.setting.domain.shape))

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state: Any) -> None:
        self.made = state["made"]


class Steps:
    """A condensation method that pulls the images towards grey."""

    Config = dataclasses.make_dataclass("StepsConfig", [], frozen=True, kw_only=True)
    LOOP: Mapping[str, Any] = {"image_lr": 0.1}
    READS: tuple[str, ...] = ()
    NEEDS_NETWORK = False

    def __init__(self, setting: Any, config: Any) -> None:
        pass

    def advance(self, synthetic: Any) -> None:
        pass

    def terms(self, synthetic: Any) -> dict[str, torch.Tensor]:
        return {"grey": (synthetic.images - 0.5).square().mean()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


Register = Callable[..., type[Any]]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Puts a class with the given attributes in the place of the method "own"; None takes one away."""

    def put(base: type[Any] = Own, **attributes: Any) -> type[Any]:
        parts = {k: v for k, v in vars(base).items() if k not in ("__dict__", "__weakref__")}
        kept = {k: v for k, v in {**parts, **attributes}.items() if v is not None}
        module = ModuleType("own_method")
        module.Own = type("Own", (), kept)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "own_method", module)
        monkeypatch.setitem(METHODS if base is Own else condensation.METHODS, "own", "own_method:Own")
        return module.Own  # type: ignore[no-any-return]

    return put


def test_one_that_has_it_all_runs(register: Register, teacher: str, tmp_path: Path) -> None:
    register()
    assert datafree.train(teacher=teacher, out=tmp_path / "run", **SHORT).metrics["steps"] == 2


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"Config": None}, "Own has no Config: give it its dataclass, Config = OwnConfig"),
        ({"Config": dict}, "Own has no Config: give it its dataclass"),
        ({"Config": a_config(("w", float, 1.0))}, "OwnConfig.w has no help: annotate it as Annotated[type, "),
        (
            {"Config": a_config(("steps", Annotated[int, "x"], 1))},
            "OwnConfig.steps is an option of every run: give it another name",
        ),
        ({"Config": a_config(("w", Annotated[float, "x"]))}, "OwnConfig.w has no default: give it one"),
        (
            {"Config": dataclasses.make_dataclass("OwnConfig", [], frozen=True)},
            "OwnConfig has no student_steps: add student_steps: StudentSteps = 1",
        ),
        ({"STUDENT": None}, "Own has no STUDENT: give a dict of criterion, temperature"),
        ({"STUDENT": {**STUDENT, "temprature": 1}}, "Own.STUDENT: unknown 'temprature'; did you mean 'temperature'?"),
        ({"STUDENT": {**STUDENT, "learning_rate": 1}}, "Own.STUDENT: unknown 'learning_rate'; did you mean 'lr'?"),
        ({"STUDENT": {"criterion": "kl", "lr": 0.1}}, "Own.STUDENT lacks temperature, optimizer, weight_decay: add"),
    ],
)
def test_a_class_that_says_too_little_is_told(
    attributes: dict[str, Any], text: str, register: Register, teacher: str, tmp_path: Path
) -> None:
    register(**attributes)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}") as caught:
        datafree.train(teacher=teacher, out=tmp_path / "run", **SHORT)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["update", "sample", "state_dict", "load_state_dict"])
def test_a_part_that_is_missing_is_named(part: str, register: Register, teacher: str, tmp_path: Path) -> None:
    register(**{part: None})
    with pytest.raises(ValueError, match=f"^Own has no {part}: give it what docs/add-a-method.md says of each$"):
        datafree.train(teacher=teacher, out=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["made", "config"])
def test_a_part_that_is_not_set_is_named(part: str, register: Register, teacher: str, tmp_path: Path) -> None:
    def begin(self: Any, setting: Any, config: Any) -> None:
        Own.__init__(self, setting, config)
        delattr(self, part)

    register(__init__=begin)
    with pytest.raises(ValueError, match=f"^Own has no {part}: give"):
        datafree.train(teacher=teacher, out=tmp_path / "run", **SHORT)


@pytest.mark.parametrize(
    ("returned", "text"),
    [(None, "NoneType"), (0.5, "float"), ({"adv": torch.ones(())}, "'adv' as Tensor")],
)
def test_an_update_that_returns_no_floats_is_told(
    returned: Any, text: str, register: Register, teacher: str, tmp_path: Path
) -> None:
    register(update=lambda self: returned)
    with pytest.raises(ValueError, match=rf"^Own.update\(\) returned {text}: return floats by name, such as "):
        datafree.train(teacher=teacher, out=tmp_path / "run", **SHORT)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_shipped_method_passes(name: str) -> None:
    assert load_method(name).Config()


def test_what_a_student_knows_is_what_the_job_fills_in() -> None:
    assert {*METHODS_OWN, "batch_size"} == set(STUDENT_KNOWS)
    check_values(Own(None, None), {"adv": 1.0, "queries": 3})
    check_parts(Own(None, None))


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"Config": None}, "Own has no Config: give it its dataclass"),
        (
            {"Config": a_config(("zca", Annotated[bool, "x"], True))},
            "OwnConfig.zca is an option of every run: give it another name",
        ),
        ({"LOOP": None}, "Own has no LOOP: give a dict of the loop's options"),
        ({"LOOP": {"image_rate": 0.1}}, "Own.LOOP: unknown 'image_rate'; did you mean 'image_"),
        ({"READS": None}, "Own has no READS: give a tuple"),
        ({"READS": ("zka",)}, "Own.READS: unknown 'zka'; did you mean 'zca'?"),
        ({"terms": None}, "Own has neither build nor terms: give it what CONTRIBUTING.md says of one of them"),
        ({"advance": None}, "Own has terms and no advance: give it what CONTRIBUTING.md says of each"),
        ({"state_dict": None, "load_state_dict": None}, "Own has terms and no state_dict, load_state_dict: give"),
    ],
)
def test_a_condensation_method_that_says_too_little_is_told(
    attributes: dict[str, Any], text: str, register: Register, tmp_path: Path
) -> None:
    register(Steps, **attributes)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}") as caught:
        datafree.condense(method="own", data="digits", ipc=1, steps=2, threads=1, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_condensation_method_that_has_it_all_runs_and_is_listed(register: Register, tmp_path: Path) -> None:
    register(Steps)
    made = datafree.condense(method="own", data="digits", ipc=1, steps=2, threads=1, out=tmp_path / "run")
    assert made.metrics["steps"] == 2
    assert "\n  own " in CliRunner().invoke(listing, ["condensers"]).output
