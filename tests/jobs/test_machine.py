"""Devices, random states, precision; and the teacher that is trained with data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import datafree
from datafree.config import MachineConfig
from datafree.jobs.machine import autocast, prepare, random_states, restore_random_states, seed_all


def draws(rng: torch.Generator) -> list[float]:
    own, common = torch.rand(3, generator=rng).tolist(), torch.randn(3).tolist()
    return [*own, *common, *np.random.rand(3).tolist(), np.random.randn(), random.random(), random.gauss(0, 1)]


def test_random_states_go_through_a_checkpoint(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(3)
    seed_all(5)
    draws(rng)
    torch.save(random_states(rng), tmp_path / "s.pt")
    wanted = draws(rng)
    draws(rng)
    restore_random_states(torch.load(tmp_path / "s.pt", weights_only=True), rng)
    assert draws(rng) == wanted


def test_random_states_of_another_device_are_refused_in_a_line() -> None:
    rng = torch.Generator().manual_seed(3)
    state = {**random_states(rng), "device": "cuda", "run": torch.zeros(16, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"^this run was made on cuda and cannot go on on cpu: resume it there$"):
        restore_random_states(state, rng)


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_a_seed_fixes_every_generator(seed: int) -> None:
    drawn = []
    for _ in range(2):
        seed_all(seed)
        drawn.append(draws(torch.Generator().manual_seed(seed)))
    assert drawn[0] == drawn[1]


def test_devices() -> None:
    assert prepare(MachineConfig(device="cpu", threads=1)) == torch.device("cpu")
    for name in ("cuda:99", "gpu", "cpu:x", "mps", "meta"):
        with pytest.raises(ValueError, match=f"--device {name} is not there: take .*cpu") as caught:
            prepare(MachineConfig(device=name))
        assert "\n" not in str(caught.value)


def test_precision() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with autocast(torch.device("cpu"), "32")():
        assert layer(x).dtype == torch.float32
    with autocast(torch.device("cpu"), "bf16")():
        before = layer(x)
        assert before.dtype == torch.bfloat16
        with torch.no_grad():
            layer.weight.add_(1.0)
        assert not torch.equal(layer(x), before), "autocast went on using weights from before a step"


def test_pretraining_writes_a_teacher_that_knows_itself(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": "digits", "arch": "resnet8", "steps": 4, "batch_size": 32, "threads": 1}
    result = datafree.pretrain(out=tmp_path / "one", **options)
    assert {p.name for p in (tmp_path / "one").iterdir()} >= {
        "model.safetensors",
        "run.json",
        "result.json",
        "report.html",
    }
    assert result["steps"] == 4
    assert 0 <= result["accuracy"] <= 1
    assert result == json.loads((tmp_path / "one" / "result.json").read_text())
    loaded = datafree.load_teacher(str(tmp_path / "one" / "model.safetensors"))
    assert loaded.domain.name == "digits"
    assert loaded.loaded.arch == "resnet8"
    assert datafree.evaluate(tmp_path / "one" / "model.safetensors")["accuracy"] == result["accuracy"]

    datafree.pretrain(out=tmp_path / "two", **options)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1], "the same seed gave another network"


def test_pretraining_refuses_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="--download"):
        datafree.pretrain(out=tmp_path / "one", data="mnist", steps=1)
    assert not (tmp_path / "one").exists()
