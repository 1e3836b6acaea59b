"""Options that another one leaves without a reader are refused, by name; saved runs and presets go through."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from datafree.condensation import METHODS as CONDENSERS
from datafree.condensation import load_method as load_condenser
from datafree.config import CondenseConfig, TrainConfig
from datafree.fields import fields_of
from datafree.idle import CONDENSE, METHOD, TRAIN, check_idle
from datafree.jobs.condense_defaults import check_read
from datafree.jobs.filling import method_options
from datafree.synthesis import METHODS, load_method


def parted(options: Mapping[str, Any]) -> tuple[CondenseConfig, type[Any], dict[str, Any]]:
    """The run's configuration, the method, and what is the method's own."""
    common = {field.name for field in fields_of(CondenseConfig)}
    config = CondenseConfig(**{name: value for name, value in options.items() if name in common})
    return config, load_condenser(config.method), {n: v for n, v in options.items() if n not in common}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "dm", "net_pool": 3}, "--net-pool with --nets fresh"),
        ({"method": "dm", "nets": "reused", "net_pool": 3}, "--net-pool with --nets reused"),
        ({"method": "dm", "net_steps": 3}, "--net-steps with --nets fresh"),
        ({"method": "frepo", "image_momentum": 0.9}, "--image-momentum with --optimizer adam"),
        ({"method": "frepo", "labels": "hard", "label_lr": 0.1}, "--label-lr with --labels hard"),
        ({"method": "dm", "augmentation": "none", "augmentation_mode": "all"}, "--augmentation-mode with"),
        ({"method": "ncfm", "sampler_lr": 9.0}, "--sampler-lr with --sampler normal"),
        ({"method": "ncfm", "nets": "fresh", "interpolate": False}, "--interpolate with --nets fresh"),
        ({"method": "idc", "nets": "reused", "train_steps": 9}, "--train-steps with --nets reused"),
        ({"method": "idc", "nets": "fresh", "cutmix": 0.1}, "--cutmix with --nets fresh"),
        (
            {"method": "mtt", "expert_folder": "e", "expert_lr": 5.0, "expert_epochs": 3, "experts": 2},
            "--expert-epochs, --expert-lr with --expert-folder, .*: leave them out$",
        ),
        ({"method": "datm", "expert_folder": "e", "expert_rho": 0.0}, "--expert-rho with .*: leave it out$"),
    ],
)
def test_condense_names_the_option_and_the_one_that_leaves_it_idle(options: dict[str, object], says: str) -> None:
    config, method, own = parted(options)
    with pytest.raises(ValueError, match=f"^nothing reads {says}"):
        check_read(config, method, own)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "dm", "nets": "trained", "net_pool": 3},
        {"method": "dm", "nets": "reused", "net_steps": 3},
        {"method": "frepo", "net_pool": 3, "nets": "fresh"},  # frepo's pool is its own: `nets` says nothing of it
        {"method": "frepo", "optimizer": "sgd", "image_momentum": 0.9},
        {"method": "dm", "optimizer": "adam", "image_momentum": 0.5},  # as a saved run has it
        {"method": "ncfm", "sampler": "learned", "sampler_lr": 9.0, "interpolate": False},
        {"method": "idc", "train_steps": 9, "cutmix": 0.1},
        {"method": "mtt", "expert_folder": "e", "expert_lr": 0.01, "experts": 2},
        {"method": "datm", "expert_rho": 0.0},
    ],
)
def test_condense_lets_through_what_is_read_or_is_as_it_is_anyway(options: dict[str, object]) -> None:
    check_read(*parted(options))


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


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("deepinversion", {"adaptive": False, "adv": 3}, "--adv with --no-adaptive: leave it out, or give --adaptive"),
        ("dfq", {"adv": 0, "distance": "l1"}, "--distance with --adv 0: leave it out, or give --adv another"),
        ("dfq", {"adv": 0, "student_mode": "train"}, "--student-mode with --adv 0"),
        ("nayer", {"adv": 0, "masked": False}, "--masked with --adv 0"),
        ("cmi", {"contrast": 0, "negatives": 7}, "--negatives with --contrast 0"),
        ("cmi", {"contrast": 0, "contrast_bank": 7}, "--contrast-bank with --contrast 0"),
        ("cudfkd", {"contrast": 0, "contrast_temperature": 0.5}, "--contrast-temperature with --contrast 0"),
        ("cudfkd", {"adv": 0, "easy": 0, "distance": "l1"}, "--distance with --adv 0 and --easy 0: leave it out, or"),
        ("cudfkd", {"adv": 0, "easy": 0, "begin": 0.5}, "--begin with --adv 0 and --easy 0"),
        ("cudfkd", {"adv": 0, "easy": -0.5, "masked": False}, "--masked with --adv 0"),
        ("fast", {"bn": 0, "bn_momentum": 0.5}, "--bn-momentum with --bn 0"),
        ("blend", {"bn": 0, "first_bn": 5}, "--first-bn with --bn 0"),
        ("fast", {"meta": "none", "meta_lr": 1}, "--meta-lr with --meta none"),
        ("ssd", {"priority": 0, "correction": 0.9}, "--correction with --priority 0"),
        ("ssd", {"feed": "fresh", "priority": 1}, "--priority with --feed fresh"),
        ("ssd", {"balance": 0, "diversity": 0.5}, "--diversity with --balance 0"),
        ("mad", {"copy_share": 0, "copy_momentum": 0.5}, "--copy-momentum with --copy-share 0"),
        ("pre", {"replay": 0, "memory_lr": 1}, "--memory-lr with --replay 0"),
        ("pre", {"replay": 0, "memory_steps": 1}, "--memory-steps with --replay 0"),
        ("spaceshipnet", {"copies": 0, "mix": 0.3}, "--mix with --copies 0"),
        ("spaceshipnet", {"copies": 0, "sample_mode": "eval"}, "--sample-mode with --feed bank and --copies 0"),
        ("deepinversion", {"adaptive": False, "distance": "l1"}, "--distance with --no-adaptive"),
        ("noise", {"bank": 5}, "--bank with --distribution normal"),
    ],
)
def test_a_method_names_the_option_and_what_leaves_it_idle(method: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=f"^nothing reads {says}"):
        method_options(method, load_method(method), options)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cudfkd", {"adv": 0, "easy": -0.5, "distance": "l1", "student_mode": "train", "begin": 0.5}),
        ("cudfkd", {"adv": 1, "easy": 0, "distance": "l1"}),
        ("spaceshipnet", {"sample_mode": "eval"}),  # of the copies that the bank is given
        ("dfad", {"distance": "kl"}),  # has no weight that could be 0
        ("dfq", {"adv": 0, "distance": "kl"}),  # as it is anyway
        ("noise", {"distribution": "shapes", "bank": 5}),
    ],
)
def test_a_method_lets_through_what_is_read_or_is_as_it_is_anyway(method: str, options: dict[str, object]) -> None:
    method_options(method, load_method(method), options)


def test_a_preset_may_leave_an_option_idle_too() -> None:
    method = load_method("cudfkd")
    preset = {name: value for name, value in method.PRESETS["official"].items() if hasattr(method.Config, name)}
    with pytest.raises(ValueError, match=r"^nothing reads --negatives with --contrast 0:"):
        method_options("cudfkd", method, {"negatives": 7}, preset=preset)


def test_what_is_no_number_is_said_as_such() -> None:
    with pytest.raises(ValueError, match=r"^--adv is tensor\(\[1\., 1\.\]\): give a number$"):
        method_options("dfq", load_method("dfq"), {"adv": torch.ones(2), "distance": "l1"})


def test_the_tables_name_options_that_exist() -> None:
    for table, config in ((CONDENSE, CondenseConfig), (TRAIN, TrainConfig)):
        choices = {field.name: field.choices for field in fields_of(config)}
        if table is CONDENSE:
            own = (fields_of(load_condenser(name).Config) for name in CONDENSERS)
            choices |= {field.name: field.choices for fields in own for field in fields}
        for option, reasons in table.items():
            assert option in choices
            assert all(
                set(values) <= {*choices[other], "none", False}
                for reason in reasons
                for other, values in reason.items()
            )
    owned = {field.name for name in METHODS for field in fields_of(load_method(name).Config)}
    assert {*METHOD, *(other for reasons in METHOD.values() for reason in reasons for other in reason)} <= owned
