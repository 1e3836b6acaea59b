"""Device, threads, precision and random states of a job."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from datafree.config import MachineConfig
from datafree.parallel import initialise


def prepare(config: MachineConfig) -> torch.device:
    """Joins the process group if torchrun made one, sets threads and the global seed, returns the device.

    Raises:
        ValueError: the device is not there.
    """
    device = find_device(config.device)
    if config.seed >= 2**63:
        raise ValueError(f"--seed is {config.seed}: give a number below 2^63")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    seed_all(config.seed)
    return device


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" takes cuda where there is one.

    Raises:
        ValueError: the device is not there.
    """
    wanted = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(wanted).type not in ("cpu", "cuda"):
            raise RuntimeError("float64 and autocast are needed, which others lack")
        device = torch.device(initialise(wanted))
        torch.zeros(1, device=device).item()  # .item: on the device "meta" all but this works
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"--device {name} is not there: take {' or '.join(there)}") from error
    return device


def seed_all(seed: int) -> None:
    """Seeds the global generators (torch, numpy, Python): networks are initialised from them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def autocast(device: torch.device, precision: str) -> Callable[[], Any]:
    """Makes the context that sets the arithmetic of the networks.

    Without autocast's cache: it would go on using weights from before an optimiser's step.
    """
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def random_states(rng: torch.Generator) -> dict[str, Any]:
    """Every random state of the process and the run's own generator, as tensors and plain types."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "run": rng.get_state(),
        "torch": torch.get_rng_state(),
        "device": rng.device.type,
        "cuda": torch.cuda.get_rng_state(rng.device) if rng.device.type == "cuda" else None,
        "numpy": (
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "python": random.getstate(),
    }


def restore_random_states(state: Mapping[str, Any], rng: torch.Generator) -> None:
    """Sets what `random_states` saved. All processes take the first one's: they draw alike.

    Raises:
        ValueError: the state is of another kind of device.
    """
    before = state.get("device", rng.device.type)
    if before != rng.device.type:
        raise ValueError(f"this run was made on {before} and cannot go on on {rng.device.type}: resume it there")
    rng.set_state(state["run"])
    torch.set_rng_state(state["torch"])
    if rng.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], rng.device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
