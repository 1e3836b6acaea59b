"""What a person asks of `condense`: which options a method reads, what is refused, and plans of plans."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.condensation import METHODS, load_method, trained
from datafree.condensation.initial import initial_images
from datafree.condensation.setting import Setting
from datafree.condensation.synthetic import Synthetic
from datafree.config import CondenseConfig
from datafree.data.wrapped import from_dataset
from datafree.fields import fields_of, replace
from datafree.jobs.condense_defaults import LOOP_READS, SELECTION_READS, check_read
from datafree.jobs.condense_planning import (
    condense_plan,
    from_manifest,
    make_setting,
    manifest,
    run_clock,
)
from datafree.jobs.condensing import condense, dry_run_condense
from datafree.tables import find_tables, load_table

OBJECTIVES = [name for name in METHODS if hasattr(load_method(name), "terms")]
SELECTIONS = [name for name in METHODS if name not in OBJECTIVES]
TINY: dict[str, Any] = {"data": "digits", "ipc": 2, "arch": "convnet3", "threads": 1}
CPU = torch.device("cpu")


@pytest.mark.parametrize("factor", [None, 1])
@pytest.mark.parametrize("name", METHODS)
def test_a_plan_of_a_plan_is_that_plan(name: str, factor: int | None) -> None:
    """So that a run resumes and its run.json reruns it."""
    asked: dict[str, Any] = {} if factor is None else {"factor": factor}
    first = condense_plan(CondenseConfig(method=name, **asked, **TINY), {}, CPU, None)
    config, own = from_manifest(json.loads(json.dumps(manifest(first))))
    again = condense_plan(config, own, CPU, None)
    assert again.config == first.config
    assert again.method_config == first.method_config
    assert again.counts == first.counts


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_multi_formation_a_set_starts_from_whole_images(name: str) -> None:
    plan = dry_run_condense(method=name, factor=1, **TINY)
    assert plan["config"]["init"] == "real"


def test_real_images_that_are_asked_for_are_whole() -> None:
    asked: dict[str, Any] = {"ipc": 1, "init": "real", "threads": 1}
    data = from_dataset([(torch.rand(1, 16, 16), label % 10) for label in range(20)])
    assert dry_run_condense(data=data, **asked)["config"]["factor"] == 1
    with pytest.raises(ValueError, match=r"--factor 2 would cut into parts: give --init mosaic, .* or --factor 1$"):
        dry_run_condense(data=data, factor=2, **asked)


# What a method looks at of its setting, where it takes a step or makes its set.


class Watched(Setting):
    """Notes which of the loop's options are read."""

    def __getattribute__(self, name: str) -> Any:
        if name in WATCHED:
            seen(self).add(name)
        return super().__getattribute__(name)


# Whitening and the mode are part of networks and of the augmentation; learned labels have a test of their own.
WATCHED = {"augmentation", "nets", "net_pool", "net_steps"}
# The smallest experts, that the set's two steps need.
EXPERTS = {"experts": 1, "expert_epochs": 1, "expert_images": 64, "expert_batch": 16, "expert_every": 1, "max_start": 1}


def seen(setting: Setting) -> set[str]:
    found: set[str] = vars(setting).setdefault("seen", set())
    return found


def started(name: str, **options: Any) -> tuple[Watched, Any, Synthetic]:
    """The method by its name on digits, an image a class, with labels that would be learned if a term said how."""
    own = EXPERTS if name in ("mtt", "tesla", "datm") else {}
    asked = {**TINY, "ipc": 1, "factor": 1, "steps": 2, **options}
    plan = condense_plan(CondenseConfig(method=name, **asked), own, CPU, None)
    plain = make_setting(plan, run_clock(plan.config), lambda _: None, lambda: False)
    setting = Watched(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(Setting)})
    objective = plan.method(setting, plan.method_config)
    images, labels = initial_images(setting, plan.counts, "real", 1)
    rate = getattr(plan.method_config, "rate", None)
    logits = torch.randn(len(labels), 10)
    synthetic = Synthetic(images, labels, label_logits=logits, learn_labels=True, learning_rate=rate)
    return setting, objective, synthetic


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_methods_read_what_they_say_and_nothing_else(name: str) -> None:
    """A pool's size and age are read where networks are trained."""
    reads = load_method(name).READS
    setting, objective, synthetic = started(name, **({"nets": "trained"} if "nets" in reads else {}))
    seen(setting).clear()  # making experts copies the setting
    if name in SELECTIONS:
        objective.build([1] * 10)
    else:
        for _ in range(2):
            objective.terms(synthetic)
            objective.advance(synthetic)
    assert seen(setting) == set(reads) & WATCHED


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_have_gradients_where_methods_read_their_rate(name: str) -> None:
    _, objective, synthetic = started(name)
    assert synthetic.label_logits is not None
    if name == "datm":
        objective.config = dataclasses.replace(objective.config, threshold=0.0)
    total = torch.stack(list(objective.terms(synthetic).values())).sum()
    (gradient,) = torch.autograd.grad(total, synthetic.label_logits, allow_unused=True)
    assert (gradient is not None and bool(gradient.any())) == ("label_lr" in load_method(name).READS)


def test_what_is_read_are_options_and_each_is_read_by_some() -> None:
    known = {field.name for field in fields_of(CondenseConfig)}
    read = {*LOOP_READS, *SELECTION_READS}
    for name in METHODS:
        assert set(load_method(name).READS) <= known, name
        assert not set(load_method(name).READS) & read, f"{name} says what the loop reads"
    read |= {option for name in METHODS for option in load_method(name).READS}
    loop = {name for name in LOOP if name in known}
    assert read == loop


LOOP: Mapping[str, Any] = {
    "init": "noise",
    "factor": 3,
    "augmentation": "flip",
    "augmentation_mode": "idc",
    "labels": "soft",
    "label_lr": 0.5,
    "nets": "trained",
    "net_pool": 3,
    "net_steps": 7,
    "zca": True,
    "optimizer": "adam",
    "image_lr": 0.123,
    "image_momentum": 0.321,
    "schedule": "cosine",
    "image_ema": 0.5,
    "clip": "save",
}
IGNORED: dict[str, tuple[str, ...]] = {
    "dc": (),
    "dsa": (),
    "idc": (),
    "dm": ("label_lr",),
    "datadam": ("label_lr",),
    "ncfm": ("label_lr",),
    "cafe": ("nets", "net_pool", "net_steps", "label_lr"),
    "mtt": ("nets", "net_pool", "net_steps"),
    "tesla": ("nets", "net_pool", "net_steps"),
    "datm": ("nets", "net_pool", "net_steps"),
    "frepo": ("nets",),
    "sre2l": ("nets", "net_pool", "net_steps", "zca", "label_lr"),
    **{name: tuple(option for option in LOOP if option not in ("labels", "clip")) for name in SELECTIONS},
}
# What has to be said with an option, so that anything reads it.
READER: dict[str, dict[str, str]] = {
    "augmentation_mode": {"augmentation": "color"},
    "net_pool": {"nets": "trained"},
    "net_steps": {"nets": "reused"},
    "image_momentum": {"optimizer": "sgd"},
    "label_lr": {"labels": "learned"},
}


@pytest.mark.parametrize("name", METHODS)
def test_an_option_that_a_method_does_not_read_is_refused(name: str) -> None:
    method = load_method(name)
    for option, value in LOOP.items():
        if value == method.LOOP.get(option) or (name, option) == ("frepo", "labels"):
            # Given or not, the first is what the method takes; the other has a test of its own.
            value = {"optimizer": "sgd", "schedule": "constant", "labels": "hard", "nets": "reused"}[option]
        reader = {k: v for k, v in READER.get(option, {}).items() if not {k, option} & set(IGNORED[name])}
        config = CondenseConfig(**{"method": name, option: value, **reader})
        if option in IGNORED[name]:
            with pytest.raises(ValueError, match=rf"^{name} does not read --{option.replace('_', '-')}: leave it out"):
                check_read(config, method)
        else:
            check_read(config, method)


def test_several_are_named_together_and_before_the_data_are_looked_for() -> None:
    with pytest.raises(ValueError, match=r"^random does not read --init, --factor, --image-ema: leave them out$"):
        dry_run_condense(method="random", data="npz:nowhere", factor=2, init="noise", image_ema=0.9)
    # What a method takes in any case may be said.
    dry_run_condense(method="random", factor=1, init="real", augmentation="none", **TINY)


@pytest.mark.parametrize("name", METHODS)
def test_labels_are_learned_where_a_term_depends_on_them(name: str) -> None:
    config = CondenseConfig(method=name, labels="learned")
    if name in ("dc", "dsa", "idc", "mtt", "tesla", "datm", "frepo"):
        check_read(config, load_method(name))
    else:
        with pytest.raises(ValueError, match=f"--labels learned: no term of {name} depends on labels: .* soft or hard"):
            check_read(config, load_method(name))


def test_one_hot_labels_are_not_called_soft() -> None:
    with pytest.raises(
        ValueError, match=r"^--labels soft: frepo takes no network's .*: give --labels learned or hard$"
    ):
        check_read(CondenseConfig(method="frepo", labels="soft"), load_method("frepo"))


def test_no_cell_of_a_table_is_refused() -> None:
    common, checked = {field.name for field in dataclasses.fields(CondenseConfig)}, 0
    for table in find_tables():
        for cell in load_table(table).cells:
            if cell.job == "condense":
                options = {k: v for k, v in cell.options.items() if k in common}
                config = replace(CondenseConfig(), options)
                own = {k: v for k, v in cell.options.items() if k not in common}
                check_read(config, load_method(config.method), own)
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("name", ["frepo", "idc"])
def test_whole_images_are_no_start_for_several_in_one(name: str) -> None:
    with pytest.raises(ValueError, match=r"^--init real .* --factor 2 .*give --init mosaic"):
        dry_run_condense(method=name, init="real", factor=2, **TINY)


@pytest.mark.parametrize("options", [{"train_steps": 500}, {"net_steps": 3}])
def test_a_pool_that_would_never_be_trained_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"^--train-steps \d+ is more than --net-steps \d+, .*: give a larger --net-steps"
    ):
        dry_run_condense(method="idc", **options, **TINY)
    # Fresh networks are not trained, and as many steps as that are one training each.
    dry_run_condense(method="idc", train_steps=3, net_steps=3, **TINY)
    dry_run_condense(method="idc", nets="reused", net_steps=3, **TINY)


def test_a_length_that_a_selection_does_not_read_is_told() -> None:
    for name, told in (("mean", True), ("random", True), ("herding", False), ("rded", False)):
        choices = dry_run_condense(method=name, data="digits", ipc=1, steps=5, threads=1)["choices"]
        assert any("are not used" in line for line in choices) == told, name


# The network that is looked through


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("rded", {}, "networks: rded looks through none of --arch but through --teacher: mlp is not used"),
        ("sre2l", {}, "networks: sre2l looks through none of --arch but through --teacher: mlp is not used"),
        ("random", {}, "networks: random looks through none of --arch: mlp is not used"),
        ("mean", {}, "networks: mean looks through none of --arch: mlp is not used"),
        ("random", {"labels": "soft"}, None),
        ("sre2l", {"init": "herding"}, None),
        ("herding", {}, None),
        ("dm", {}, None),
    ],
)
def test_a_network_that_nothing_looks_through_is_told(method: str, options: Any, says: str | None) -> None:
    asked = {"method": method, "data": "digits", "ipc": 1, "arch": "mlp", "threads": 1, **options}
    plan = dry_run_condense(**asked)
    assert [line for line in plan["choices"] if "is not used" in line] == ([] if says is None else [says])
    assert (plan["networks"]["arch"] == "mlp") == (says is None)


@pytest.mark.parametrize(
    ("method", "network"), [("rded", "resnet8"), ("sre2l", "resnet8"), ("random", "none"), ("mean", "none")]
)
def test_a_network_that_nothing_looks_through_is_not_built(method: str, network: str) -> None:
    """ConvNet takes no images of five pixels; a method that asks none need not care."""
    x, y = torch.randint(256, (12, 1, 5, 7), dtype=torch.uint8), torch.arange(12) % 2
    data = from_dataset(torch.utils.data.TensorDataset(x, y))
    plan = condense_plan(CondenseConfig(method=method, ipc=1), {}, CPU, data)
    assert (plan.arch, plan.costs["arch"]) == (network, network)
    assert (plan.costs["parameters"] > 0) == (network != "none")
    assert not any(line.startswith("networks: ") for line in plan.choices)
    again = condense_plan(*from_manifest(json.loads(json.dumps(manifest(plan)))), CPU, data)
    assert again.config == plan.config
    with pytest.raises(ValueError, match="images of at least 8x8"):
        condense_plan(CondenseConfig(method="dm", ipc=1), {}, CPU, data)


@pytest.mark.parametrize("name", ["random", "rded"])
def test_training_a_network_for_a_selection_is_preparation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = trained.train

    def train(network: Any, setting: Setting, recipe: Any, rng: torch.Generator) -> None:
        time.sleep(0.5)
        honest(network, setting, dataclasses.replace(recipe, steps=1), rng)

    monkeypatch.setattr(trained, "train", train)
    own: dict[str, Any] = {"labels": "soft"} if name == "random" else {"teacher": "mlp", "candidates": 2, "crops": 1}
    common = {"method": name, "data": "digits", "ipc": 1, "seed": 77, "threads": 1, **own}
    first = condense(out=tmp_path / "first", **common).metrics
    again = condense(out=tmp_path / "again", **common).metrics
    assert first["preparation_seconds"] >= 0.5
    assert first["total_seconds"] >= 0
    assert again["preparation_seconds"] == 0


@pytest.mark.parametrize(
    ("asked", "image_lr", "label_lr", "told"),
    [
        ({"method": "datm"}, 100.0, 2.0, []),
        ({"method": "datm", "optimizer": "sgd"}, 100.0, 2.0, []),
        ({"method": "datm", "optimizer": "adam"}, 0.01, 0.003, ["image_lr: 0.01 for adam", "label_lr: 0.003 for adam"]),
        ({"method": "datm", "optimizer": "adamw", "image_lr": 0.02}, 0.02, 0.003, ["label_lr: 0.003 for adamw"]),
        ({"method": "mtt", "optimizer": "adam", "label_lr": 0.5, "labels": "learned"}, 0.01, 0.5, ["image_lr: 0.01"]),
        ({"method": "dm", "optimizer": "adam"}, 0.01, 0.003, ["image_lr: 0.01 for adam"]),
        ({"method": "frepo", "optimizer": "sgd"}, 0.1, 1.0, ["image_lr: 0.1 for sgd", "label_lr: 1 for sgd"]),
        ({"method": "sre2l", "optimizer": "adamw"}, 0.02, 1.0, []),  # Adam's own
    ],
)
def test_rates_are_those_of_the_optimiser_that_was_asked_for(
    asked: dict[str, Any], image_lr: float, label_lr: float, told: list[str]
) -> None:
    """A step of Adam is as long as its rate: SGD's rates would move labels, or all pixels, from end to end."""
    plan = dry_run_condense(**{"factor": 1, **TINY, **asked})
    assert (plan["config"]["image_lr"], plan["config"]["label_lr"]) == (image_lr, label_lr)
    said = [line for line in plan["choices"] if "_lr: " in line]
    assert len(said) == len(told)
    assert all(line.startswith(words) for line, words in zip(said, told, strict=True))


@pytest.mark.parametrize("options", [{"inner": 20}, {"net_lr": 0.5}, {"ipc": 10, "outer": 1, "inner": 20}])
def test_a_network_that_is_matched_once_is_never_trained(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"nothing reads --(inner|net-lr) where a network is matched once"):
        dry_run_condense(**{**TINY, "method": "dc", "ipc": 1, **options})
    for fine in ({"inner": 1}, {"net_lr": 0.01}, {"inner": 20, "outer": 2}, {"ipc": 10, "inner": 20}):
        dry_run_condense(**{**TINY, "method": "dc", "ipc": 1, **fine})
