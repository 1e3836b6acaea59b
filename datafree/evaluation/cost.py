"""What a network costs: parameters, multiply-adds, memory of its activations, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from datafree.domain import Shape
from datafree.models.build import in_evaluation


def parameters(network: nn.Module) -> int:
    """How many parameters the network has, frozen ones included, buffers not."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, shape: Shape) -> int:
    """Multiply-adds of one pass over one image (C, H, W): those of convolutions, transposed ones, and matrix products.

    Biases, normalisation, activations and pooling are not counted, as is usual. Operations are counted where they run,
    so functional ones count as modules do. The network is left as it was.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it takes triton along: a twentieth of a command's start

    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # fused attention is not seen by the counter
        with in_evaluation(network), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            network(_input(network, shape))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    # The counter takes a multiply-add for two operations.
    return int(counter.get_total_flops()) // 2


def activation_bytes(network: nn.Module, shape: Shape, batch_size: int) -> int:
    """Estimate, in bytes, of the activations that a training step on `batch_size` images (C, H, W) keeps for backward.

    The sum over the network's leaf modules of their outputs, in the type they come in. Outputs that share memory with
    the input (in-place activations, flattening) are not counted twice; functional operations are not seen, nor is what
    the libraries use in passing. The network is left as it was.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        known = {tensor.data_ptr() for tensor in inputs if isinstance(tensor, Tensor)}
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        total += sum(
            tensor.numel() * tensor.element_size()
            for tensor in outputs
            if isinstance(tensor, Tensor) and tensor.data_ptr() not in known
        )

    leaves = [module for module in network.modules() if next(module.children(), None) is None]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with in_evaluation(network), torch.no_grad():
            network(_input(network, shape))
    finally:
        for handle in handles:
            handle.remove()
    return total * batch_size


def latency_ms(network: nn.Module, shape: Shape, *, passes: int = 20, seconds: float = 0.25) -> float:
    """Wall clock of a forward pass over one image (C, H, W), in ms: the median of some, after one that does not count.

    On the network's device, with the threads that torch has, in the type of its weights. The network is left as it was.

    Args:
        network: from images (N, C, H, W) to logits.
        shape: of the image.
        passes: at most so many.
        seconds: once these are over, no other pass is begun.
    """
    image = _input(network, shape)
    times: list[float] = []
    with in_evaluation(network), torch.no_grad():
        _timed_pass(network, image)  # finds kernels and takes memory
        begun = time.perf_counter()
        while not times or (len(times) < passes and time.perf_counter() - begun < seconds):
            times.append(1000 * _timed_pass(network, image))
    return statistics.median(times)


def latencies(networks: Mapping[str, nn.Module], shape: Shape, device: torch.device) -> dict[str, Any]:
    """What a result says of latency: "WHO_latency_ms" for each name, and "latency_on": device and threads."""
    threads = torch.get_num_threads()
    on = f"{device.type}, {threads} thread{'' if threads == 1 else 's'}"
    found = {f"{who}_latency_ms": round(latency_ms(network, shape), 3) for who, network in networks.items()}
    return {**found, "latency_on": torch.cuda.get_device_name(device) if device.type == "cuda" else on}


def _timed_pass(network: nn.Module, image: Tensor) -> float:
    """Seconds; on a GPU until the answer is there."""
    begun = time.perf_counter()
    network(image)
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - begun


def _input(network: nn.Module, shape: Shape) -> Tensor:
    like = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), torch.empty(0))
    return torch.zeros((1, *shape), dtype=like.dtype, device=like.device)
