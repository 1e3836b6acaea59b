"""Options that another one leaves without a reader are refused, by name; saved runs and presets go through."""

from __future__ import annotations

import dataclasses

import pytest

from datafree.condensation import load_method as load_condenser
from datafree.config import CondenseConfig, TrainConfig, fields_of
from datafree.jobs.condense_planning import check_read
from datafree.jobs.filling import method_options
from datafree.jobs.idle import CONDENSE, METHOD, TRAIN, check_idle
from datafree.synthesis import METHODS, load_method


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "dm", "net_pool": 3}, "--net-pool with --nets fresh"),
        ({"method": "dm", "nets": "reused", "net_pool": 3}, "--net-pool with --nets reused"),
        ({"method": "dm", "net_steps": 3}, "--net-steps with --nets fresh"),
        ({"method": "frepo", "image_momentum": 0.9}, "--image-momentum with --optimizer adam"),
        ({"method": "frepo", "labels": "hard", "label_lr": 0.1}, "--label-lr with --labels hard"),
        ({"method": "dm", "augmentation": "none", "augmentation_mode": "all"}, "--augmentation-mode with"),
    ],
)
def test_condense_names_the_option_and_the_one_that_leaves_it_idle(options: dict[str, object], says: str) -> None:
    config = CondenseConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^nothing reads {says}"):
        check_read(config, load_condenser(config.method))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "dm", "nets": "trained", "net_pool": 3},
        {"method": "dm", "nets": "reused", "net_steps": 3},
        {"method": "frepo", "net_pool": 3, "nets": "fresh"},  # frepo's pool is its own: `nets` says nothing of it
        {"method": "frepo", "optimizer": "sgd", "image_momentum": 0.9},
        {"method": "dm", "optimizer": "adam", "image_momentum": 0.5},  # as a saved run has it
    ],
)
def test_condense_lets_through_what_is_read_or_is_as_it_is_anyway(options: dict[str, object]) -> None:
    config = CondenseConfig(**options)  # type: ignore[arg-type]
    check_read(config, load_condenser(config.method))


def test_student_options_that_nothing_reads() -> None:
    usual = {"optimizer": "adam", "momentum": 0.9, "schedule": None, "criterion": "l1", "temperature": 4.0}
    check_idle({"momentum": 0.9, "temperature": 4.0, "criterion": "l1"}, usual, TRAIN)
    check_idle({"optimizer": "sgd", "momentum": 0.5}, usual, TRAIN)
    for name, value in {"momentum": 0.5, "temperature": 2.0}.items():
        with pytest.raises(ValueError, match=f"^nothing reads --{name} with --(optimizer adam|criterion l1): leave"):
            check_idle({name: value}, usual, TRAIN)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_a_bank_beside_another_feed(name: str) -> None:
    method = load_method(name)
    fields = {field.name: field for field in fields_of(method.Config)}
    if {"feed", "bank"} <= set(fields):
        with pytest.raises(ValueError, match=r"^nothing reads --bank with --feed fresh"):
            method_options(name, method, {"feed": "fresh", "bank": fields["bank"].default + 1})
        whole = dataclasses.asdict(method_options(name, method, {"feed": "fresh"}))
        assert dataclasses.asdict(method_options(name, method, whole)) == whole
    for values in getattr(method, "PRESETS", {}).values():
        method_options(name, method, {key: value for key, value in values.items() if key in fields})


def test_the_tables_name_options_that_exist() -> None:
    for table, config in ((CONDENSE, CondenseConfig), (TRAIN, TrainConfig)):
        choices = {field.name: field.choices for field in fields_of(config)}
        assert all(option in choices and other in choices for option, (other, _) in table.items())
        assert all(set(values) <= {*choices[other], "none"} for other, values in table.values())
    owned = {field.name for name in METHODS for field in fields_of(load_method(name).Config)}
    assert {*METHOD, *(other for other, _ in METHOD.values())} <= owned
