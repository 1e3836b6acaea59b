"""What a network costs: parameters, multiply-adds, memory of its activations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datafree.domain import Shape


def parameters(network: nn.Module) -> int:
    """How many parameters the network has, frozen ones included, buffers not."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, shape: Shape) -> int:
    """Multiply-adds of one pass over one image (C, H, W): those of convolutions, transposed ones, and matrix products.

    Biases, normalisation, activations and pooling are not counted, as is usual. Operations are counted where they run,
    so functional ones count as modules do. The network is left as it was.
    """
    counter = FlopCounterMode(display=False)
    with _one_pass(network), counter:
        network(_input(network, shape))
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
        with _one_pass(network):
            network(_input(network, shape))
    finally:
        for handle in handles:
            handle.remove()
    return total * batch_size


@contextmanager
def _one_pass(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside (BN refuses one image, dropout draws random numbers), each module's own mode after."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _input(network: nn.Module, shape: Shape) -> Tensor:
    like = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), torch.empty(0))
    return torch.zeros((1, *shape), dtype=like.dtype, device=like.device)
