"""Configuration: one definition gives default, flag and help; values that cannot be are refused in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

import datafree
from datafree.config import Floats, MachineConfig, OptimisationConfig, PretrainConfig, TrainConfig, light_config
from datafree.fields import fields_of, parse_duration, replace
from datafree.jobs import dry_run, record_experts
from datafree.synthesis import METHODS, load_method, method_spec

CONFIGS = [TrainConfig, PretrainConfig, OptimisationConfig, MachineConfig, *(load_method(n).Config for n in METHODS)]


@dataclass(frozen=True, kw_only=True)
class Sample:
    count: Annotated[int, "a number"] = 3
    some_rate: Annotated[float | None, "a rate"] = None
    kind: Annotated[Literal["a", "b"] | None, "a choice"] = "a"
    values: Annotated[Floats, "numbers"] = (0.5, 1.0)
    on: Annotated[bool, "a switch"] = False
    name: Annotated[str, "a text"] = "x"


def make_net() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (float, 'weight has no help: annotate it as Annotated[type, "help"], such as weight: Annotated[float, "weight'),
        (float | None, "weight has no help"),
        (Literal["a", "b"], "weight has no help"),
        (Annotated[float, 1.0], "weight has no help"),
        (Annotated[list[float], "weights"], "weight is a list: take int, float, bool, str, Literal or a tuple"),
        (Annotated[Path | None, "a file"], "weight is a Path: take int"),
    ],
)
def test_a_field_that_says_too_little_is_named(annotation: Any, text: str) -> None:
    config = dataclasses.make_dataclass("CuriousConfig", [("weight", annotation, None)], frozen=True, kw_only=True)
    with pytest.raises(ValueError, match=re.escape(f"CuriousConfig.{text}")) as caught:
        fields_of(config)
    assert "\n" not in str(caught.value)


def test_fields_are_read_off_the_annotations() -> None:
    found = [(f.flag, f.type, f.choices, f.help, f.default) for f in fields_of(Sample)]
    assert found == [
        ("--count", int, (), "a number", 3),
        ("--some-rate", float, (), "a rate", None),
        ("--kind", str, ("a", "b"), "a choice", "a"),
        ("--values", tuple, (), "numbers", (0.5, 1.0)),
        ("--on", bool, (), "a switch", False),
        ("--name", str, (), "a text", "x"),
    ]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_describes_itself(config: type[Any]) -> None:
    fields = fields_of(config)
    assert [f.name for f in fields] == [f.name for f in dataclasses.fields(config)]
    for field in fields:
        assert field.type in (int, float, str, bool, tuple)
        assert field.help
        assert "\n" not in field.help
        assert field.default is not dataclasses.MISSING
        assert field.default is None or isinstance(field.default, field.type)
        assert not field.choices or field.default is None or field.default in field.choices


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_through_a_manifest(config: type[Any]) -> None:
    values = dataclasses.asdict(config())
    assert replace(config(), values) == config()
    assert config(**values) == config()


@pytest.mark.parametrize("name", list(METHODS))
def test_a_methods_flags_clash_with_none_of_the_jobs(name: str) -> None:
    job = {f.name for f in fields_of(TrainConfig)}
    assert not job & {f.name for f in fields_of(load_method(name).Config)}


@pytest.mark.parametrize("name", list(METHODS))
def test_light_configuration_is_the_real_one(name: str) -> None:
    light, real = light_config(method_spec(name)), load_method(name).Config
    assert fields_of(light) == fields_of(real)
    for field in fields_of(real):
        if field.type is int and field.default:
            with pytest.raises(ValueError, match=f"--{field.name.replace('_', '-')} is -1: give"):
                light(**{field.name: -1})


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("datafree.synthesis.noise:Noisy", "noise.py has no class NoisyConfig: call the configuration of Noisy so"),
        ("datafree.nowhere:Noise", "there is no module datafree.nowhere, where Noise should be"),
    ],
)
def test_a_registered_name_that_leads_nowhere_is_told(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        light_config(spec)


@pytest.mark.parametrize(
    ("file", "line", "kind"),
    [
        ("by_module", "from datafree import config as flags", "flags.Latent"),
        ("by_name", "from datafree.config import Latent", "Latent"),
    ],
)
def test_a_shared_type_is_named_by_its_module_or_alone(
    file: str, line: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"{line}\n\n@dataclass(frozen=True, kw_only=True)\nclass OwnConfig:\n    latent: {kind} = 64\n"
    (tmp_path / f"{file}.py").write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [(f.flag, f.default) for f in fields_of(light_config(f"{file}:Own"))] == [("--latent", 64)]


def test_light_configuration_loads_nothing_heavy() -> None:
    code = (
        "import sys; from datafree.config import light_config; from datafree.fields import fields_of\n"
        "from datafree.synthesis import METHODS\n"
        "print(sum(len(fields_of(light_config(spec))) for spec in METHODS.values()))\n"
        "print([name for name in ('torch', 'numpy', 'kornia', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, heavy = done.stdout.splitlines()
    assert int(count) == sum(len(fields_of(load_method(name).Config)) for name in METHODS)
    assert heavy == "[]"


def test_an_unknown_method_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown method 'dfg'; did you mean 'dfq'"):
        method_spec("dfg")


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown option 'batchsize' for TrainConfig; did you mean 'batch_size'"):
        replace(TrainConfig(), {"batchsize": 3})
    with pytest.raises(ValueError, match="unknown option 'zzzz' for Sample: take one of count, some_rate, kind"):
        replace(Sample(), {"zzzz": 3})


def test_what_other_libraries_call_an_option_is_known() -> None:
    with pytest.raises(ValueError, match="unknown option 'learning_rate' for TrainConfig; did you mean 'lr'"):
        replace(TrainConfig(), {"learning_rate": 0.1})
    with pytest.raises(ValueError, match="unknown option 'learning_rate' with method blend; did you mean 'lr'"):
        dry_run(learning_rate=0.1)


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (datafree.train, 'TrainConfig: give keywords: datafree.train(teacher="mine.pt")'),
        (dry_run, 'TrainConfig: give keywords: datafree.train(teacher="mine.pt")'),
        (datafree.condense, 'CondenseConfig: give keywords: datafree.condense(data="mine.pt")'),
        (datafree.pretrain, 'PretrainConfig: give keywords: datafree.pretrain(data="mine.pt")'),
        (record_experts, 'ExpertsConfig: give keywords: record_experts(data="mine.pt")'),
    ],
)
def test_a_job_takes_keywords(job: Callable[..., Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a str stands in the place of {text}")):
        job("mine.pt")
    with pytest.raises(ValueError, match=r"^a Linear stands in the place of .*=\.\.\.\)$"):
        job(torch.nn.Linear(2, 2))


def test_replace_checks_again() -> None:
    with pytest.raises(ValueError, match="--lr is -1"):
        replace(TrainConfig(), {"lr": -1.0})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h1m1s", 3661),
        ("1h30s", 3630),
        ("1m30", 90),
        (".5m", 30),
        (" 2M ", 120),
        ("0.1s", 0.1),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0s", "-5m", "soon", "15 min", "1m1h", "5x", "1.2.3m", ".", "h", "nan", "inf", "1e3s", "m5", "1h30"],
)
def test_durations_of_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match=r"--budget is .*: give a time such as 90s, 15m or 1\.5h"):
        parse_duration(text)


def test_what_may_stay_open_may_be_given_as_none() -> None:
    for config in CONFIGS:
        optional = {field.name: None for field in fields_of(config) if field.optional}
        assert replace(config(), optional) == config(**optional)
        assert {field.name for field in fields_of(config) if field.default is None} <= set(optional)


def test_shares_of_a_whole_may_be_all_of_it() -> None:
    assert load_method("ssd").Config(correction=1).correction == 1
    assert load_method("mad").Config(copy_share=1).copy_share == 1
    for name, option in (("ssd", "correction"), ("mad", "copy_share")):
        with pytest.raises(ValueError, match=r" is 1\.5: give a number from 0 to 1$"):
            load_method(name).Config(**{option: 1.5})


REFUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (OptimisationConfig, {"lr": 0.0}, "--lr is 0.0: give a number above 0"),
    (OptimisationConfig, {"lr": float("nan")}, "--lr is nan: give a number above 0"),
    (OptimisationConfig, {"lr": float("inf")}, "--lr is inf: give a number above 0"),
    (OptimisationConfig, {"steps": 0}, "--steps is 0: give a number above 0"),
    (OptimisationConfig, {"epochs": -1.0}, "--epochs is -1.0"),
    (OptimisationConfig, {"batch_size": 0}, "--batch-size is 0"),
    (OptimisationConfig, {"weight_decay": -1e-4}, "--weight-decay is -0.0001: give a number 0 or more"),
    (OptimisationConfig, {"momentum": 1.0}, "--momentum is 1.0: give a number from 0 to below 1"),
    (OptimisationConfig, {"ema": -0.1}, "--ema is -0.1"),
    (OptimisationConfig, {"optimizer": "lion"}, "--optimizer is 'lion': take sgd or adam"),
    (OptimisationConfig, {"schedule": "step"}, "--schedule is 'step': take cosine or multistep or constant"),
    (OptimisationConfig, {"steps": 5, "budget": "1m"}, "--steps, --epochs and --budget exclude each other: give one"),
    (OptimisationConfig, {"steps": 5, "epochs": 1.0}, "--steps, --epochs and --budget exclude each other: give one"),
    (OptimisationConfig, {"budget": "soon"}, "--budget is 'soon'"),
    (OptimisationConfig, {"milestones": (0.5, 1.0)}, "--milestones is (0.5, 1.0): give shares of the run"),
    (MachineConfig, {"threads": 0}, "--threads is 0"),
    (MachineConfig, {"threads": 100_000}, "--threads is 100000: give 1,024 or fewer"),
    (MachineConfig, {"seed": -1}, "--seed is -1"),
    (MachineConfig, {"precision": "16"}, "--precision is '16': take 32 or bf16"),
    (TrainConfig, {"classes": 0}, "--classes is 0"),
    (TrainConfig, {"temperature": 0.0}, "--temperature is 0.0"),
    (TrainConfig, {"checkpoint_every": 0.0}, "--checkpoint-every is 0.0"),
    (TrainConfig, {"evaluations": -1}, "--evaluations is -1"),
    (TrainConfig, {"criterion": "l2"}, "--criterion is 'l2': take kl or l1 or mse"),
    (TrainConfig, {"momentum": 2.0}, "--momentum is 2.0"),
    (TrainConfig, {"seed": -1}, "--seed is -1"),
    (PretrainConfig, {"checkpoint_every": -1.0}, "--checkpoint-every is -1.0"),
    (PretrainConfig, {"steps": -1}, "--steps is -1"),
    (PretrainConfig, {"threads": -1}, "--threads is -1"),
]


@pytest.mark.parametrize(("config", "values", "text"), REFUSED)
def test_impossible_values_are_refused_in_one_line(config: type[Any], values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        config(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "values", "text"),
    [
        (TrainConfig, {"mean": "0.3"}, "--mean is '0.3': give several numbers, such as (.485, .456, .406)"),
        (TrainConfig, {"mean": torch.ones(2, 2)}, "--mean is a Tensor: give several numbers"),
        (TrainConfig, {"mean": ("a",)}, "--mean is ('a',): give several numbers"),
        (TrainConfig, {"steps": "10"}, "--steps is '10': give a whole number"),
        (TrainConfig, {"steps": 10.5}, "--steps is 10.5: give a whole number"),
        (TrainConfig, {"lr": True}, "--lr is True: give a number"),
        (TrainConfig, {"flip": "yes"}, "--flip is 'yes': give True or False"),
        (TrainConfig, {"shape": ("3", 32)}, "--shape is ('3', 32): give channels, height and width, such as 3x32x32"),
        (MachineConfig, {"precision": 16}, "--precision is '16': take 32 or bf16"),
        (PretrainConfig, {"data": ["a"]}, "--data is ['a']: give a name, npz:PATH or imagefolder:PATH"),
        (PretrainConfig, {"data": torch.ones(4, 4)}, "--data is a Tensor: give a name, npz"),
        (PretrainConfig, {"data": ["a" * 500]}, "--data is a list: give a name, npz"),
        (TrainConfig, {"data": object()}, "--data is a object: give a name, npz:PATH or imagefolder:PATH"),
        (TrainConfig, {"teacher": {"weight": 1}}, "save it with torch.save(..., PATH) and give the file"),
        (TrainConfig, {"teacher": make_net}, "--teacher is a function: give what it returns, make_net()"),
        (TrainConfig, {"student": make_net}, "--student is a function: give what it returns, make_net()"),
        (TrainConfig, {"source": object()}, "--source is a object: give condensed:PATH"),
        (PretrainConfig, {"arch": torch.nn.Linear(2, 2)}, "give a name, or file.py:function for a network of your own"),
        (MachineConfig, {"seed": None}, "--seed is None: give a whole number"),
        (TrainConfig, {"method": None}, "--method is None: give a text"),
        (load_method("cudfkd").Config, {"easy": None}, "--easy is None: give a number"),
        (load_method("fast").Config, {"bn": None}, "--bn is None: give a number"),
    ],
)
def test_values_of_another_type_are_refused_in_one_line(config: type[Any], values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        replace(config(), values)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(text)):
        replace(config(), values)


def test_a_method_refuses_values_of_another_type() -> None:
    with pytest.raises(ValueError, match=r"^--pixel-betas is '0.5': give several numbers"):
        replace(load_method("deepinversion").Config(), {"pixel_betas": "0.5"})
    with pytest.raises(ValueError, match=r"^--bank is 'all': give a whole number"):
        replace(load_method("dfq").Config(), {"bank": "all"})


def test_values_that_a_flag_would_give_anyway_are_taken(tmp_path: Path) -> None:
    config = TrainConfig(teacher=tmp_path / "x.pt", precision=32, mean=[0.3], steps=1e3, augment=1, budget=None)  # type: ignore[arg-type]
    wanted = {"teacher": str(tmp_path / "x.pt"), "precision": "32", "mean": (0.3,), "steps": 1000, "augment": True}
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert MachineConfig(device=torch.device("cpu")).device == "cpu"  # type: ignore[arg-type]
    assert [type(getattr(config, name)) for name in wanted] == [str, str, tuple, int, bool]


@pytest.mark.parametrize(
    "value", [0.5, [0.5], np.array([0.5]), np.float32(0.5), torch.tensor([0.5]), torch.tensor(0.5)]
)
def test_several_numbers_may_come_as_an_array_or_as_one(value: Any) -> None:
    config = TrainConfig(mean=value, prior=np.ones(3), lr=np.float32(0.5))  # type: ignore[arg-type]
    assert (config.mean, config.prior, config.lr) == ((0.5,), (1.0, 1.0, 1.0), 0.5)
    json.dumps(dataclasses.asdict(config))


@pytest.mark.parametrize("shape", ["1x8x8", (1, 8, 8), [1, 8, 8], torch.Size((1, 8, 8))])
def test_a_shape_may_be_a_tuple(shape: Any) -> None:
    assert TrainConfig(shape=shape).shape == "1x8x8"


def test_a_module_is_no_teacher() -> None:
    from torch import nn

    with pytest.raises(ValueError, match=r"^--teacher is a Linear: save its state_dict\(\) .* --arch file.py:function"):
        TrainConfig(teacher=nn.Linear(2, 2))  # type: ignore[arg-type]


def absurd(name: str) -> list[tuple[str, str, Any]]:
    """Values that must be refused for each field of a method that is neither a switch nor free text."""
    rows: list[tuple[str, str, Any]] = []
    for field in fields_of(load_method(name).Config):
        if field.choices:
            rows.append((name, field.name, "no such"))
        elif field.type in (int, float, tuple):
            numbers = [(x, x) if field.type is tuple else x for x in (float("nan"), -9.0)]
            rows += [(name, field.name, number) for number in numbers]
    return rows


@pytest.mark.parametrize(("method", "name", "value"), [row for m in METHODS for row in absurd(m)])
def test_methods_refuse_absurd_values(method: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} is ") as caught:
        load_method(method).Config(**{name: value})
    assert "\n" not in str(caught.value)
