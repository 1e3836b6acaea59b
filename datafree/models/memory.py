"""Networks that are given as they are, not by a name or a file."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

MEMORY = "memory:"  # how such a network begins where a name is wanted, as in manifests


def in_memory(network: nn.Module) -> str:
    """What a network that has no name is called."""
    return f"{MEMORY}{type(bare(network)).__name__}"


def gone(name: str) -> str:
    """What to do where only the name is left."""
    return (
        f"the network {name.removeprefix(MEMORY)} was given from memory, and no file keeps such a one: give it again, "
        "from Python, or a file.py:function that makes it"
    )


def bare(network: nn.Module) -> nn.Module:
    """The network without what DataParallel, DistributedDataParallel and torch.compile put around it."""
    inner = getattr(network, "_orig_mod", None)
    if inner is None and isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = network.module
    return bare(inner) if isinstance(inner, nn.Module) else network


def copied(network: nn.Module) -> nn.Module:
    """A copy on the CPU, weights in float32, which nothing that is done to it carries over to the user's own.

    Raises:
        ValueError: it is scripted, has layers without sizes, or holds something that cannot be copied.
    """
    check_sizes(network, in_memory(network))
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ValueError(
            "a module of torch.jit.script or torch.jit.trace can be neither watched nor frozen: give the network that "
            "it was made from"
        )
    try:
        return copy.deepcopy(bare(network)).cpu().float()
    except Exception as error:  # a user's module may hold anything
        raise ValueError(
            f"{in_memory(network)} cannot be copied ({type(error).__name__}): save its state_dict() to a file, and "
            "give that with arch='file.py:function'"
        ) from error


def check_sizes(network: nn.Module, name: str) -> None:
    """Raises ValueError for lazy layers that no image has passed: nothing could be read into them."""
    for module in network.modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ValueError(
                f"{name} has layers without sizes ({type(module).__name__}): give these, or pass a batch through it "
                "first, such as network(torch.zeros(2, 3, 32, 32))"
            )


def tensors_sha256(network: nn.Module) -> str:
    """Of names, sizes and values of all that its state dict holds."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
