"""Several processes: rank, world size, slices of a batch, and reductions that gradients flow through.

Launched by torchrun, nothing else. A loss that is a mean over samples needs `average_gradients` alone. A loss of batch
statistics (batch norm in training mode, the BN term, class balance) needs its statistics reduced over all processes,
with gradients: `batch_mean` and `synchronise`. Every process draws the global batch's random numbers and takes its
slice, so that N processes compute what one does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# How long a process waits for another. All wait while the first trains a network for them, which may take hours.
# torch's own limits are 30 minutes (gloo) and 10 (nccl). Where one fails, torchrun ends the others at once.
TIMEOUT = timedelta(days=1)


def world_size() -> int:
    """Number of processes; 1 outside of torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 for the one that writes."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def initialise(device: str) -> str:
    """Joins the group that torchrun announced (gloo on CPU, nccl on GPUs) and returns this process's device.

    On GPUs that is made the current one first: what is sent between processes is built there.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    cuda = device.startswith("cuda")
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    return device


def finish() -> None:
    """Leaves the group, if one was joined, once all have come to their end."""
    if dist.is_available() and dist.is_initialized():
        last = dist.barrier(async_op=True)
        last.wait()
        # Gloo's own thread lets go of the barrier a little later. Were that the last reference to it, and the
        # interpreter ending by then, the process would abort; so one reference is never given back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(last))
        dist.destroy_process_group()


def forked(device: torch.device) -> AbstractContextManager[None]:
    """Inside, torch's global random numbers of the CPU and of this device may be drawn; afterwards they are as before.

    Not of all GPUs, as `fork_rng` does by itself: the others are no business of this process.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def shard(batch: Tensor) -> Tensor:
    """This process's equal slice of a global batch (along the first dimension).

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    size = world_size()
    if size == 1:
        return batch
    if len(batch) % size:
        raise ValueError(f"a batch of {len(batch)} does not divide among {size} processes: take a multiple of {size}")
    return batch.chunk(size)[rank()]


def gather(rows: Tensor) -> Tensor:
    """All processes' rows in rank order, without gradient."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def from_first(text: str) -> str:
    """Rank 0's text, to all; all wait for it."""
    if world_size() == 1:
        return text
    held = [text]
    dist.broadcast_object_list(held)
    return held[0]


def latest(value: float) -> float:
    """The largest of all processes' values: all read one clock, or take one decision (0 or 1)."""
    if world_size() == 1:
        return value
    held = torch.tensor([value], dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return float(held.item())


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is summed too, since every process's loss depends on every process's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def mean_over_processes(x: Tensor) -> Tensor:
    """Mean of equally weighted values over processes, with gradients."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total / world_size()


def batch_mean(x: Tensor) -> Tensor:
    """Mean over the first dimension of the global batch, with gradients."""
    return mean_over_processes(x.mean(0))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over processes between backward and step: exact for losses that are means over samples."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def synchronise(network: nn.Module) -> nn.Module:
    """Makes batch norm in training mode use the global batch's statistics; parameters, buffers and names stay.

    torch's own SyncBatchNorm works on GPUs only. What else a layer does, such as an activation of its own, it goes on
    doing. Nothing changes for one process. In evaluation mode nothing is reduced, for the first process tests alone: a
    batch norm without running statistics then takes each process's own.
    """
    if world_size() == 1:
        return network
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = _synchronised_forward(module)  # type: ignore[method-assign]
    return network


def _synchronised_forward(norm: nn.modules.batchnorm._BatchNorm) -> Any:
    plain = norm.forward

    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return plain(x)
        with _GlobalBatchNorm() as inside:
            y = plain(x)
        if not inside.met:
            raise ValueError(
                f"{type(norm).__name__} normalises by itself, which several processes cannot share: take one process"
            )
        return y

    return forward


class _GlobalBatchNorm(TorchFunctionMode):
    """Inside, torch's batch norm in training mode uses the global batch's statistics. `met`: whether it was called."""

    met = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        self.met = True
        return _global_batch_norm(*args, **(kwargs or {}))


def _global_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` over the global batch."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, var = channel_statistics(x)
    count = x.numel() // x.shape[1] * world_size()
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * count / max(count - 1, 1), momentum)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    y = (x - mean.view(shape)) * torch.rsqrt(var.view(shape) + eps)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


class _ChannelStatistics(torch.autograd.Function):
    """Mean and biased variance of each channel of x (N, C, ...), with a gradient that takes one pass over x.

    On a CPU, channels last, torch.var_mean takes 5 to 8 times longer than two plain means, and its gradient is a chain
    of half a dozen operations, some of them in another layout.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        if x.dtype.itemsize < 4 and x.device.type == "cpu":
            # One operation that sums in float32 and makes no copy. It keeps averages as well, which go unused.
            zeros = x.new_zeros(x.shape[1], dtype=torch.float32)
            mean, var = torch.ops.aten.batch_norm_update_stats(x, zeros, torch.ones_like(zeros), 0.0)
        else:
            raised = x if x.dtype == torch.float64 else x.float()
            mean = raised.mean(dims)
            var = (raised - mean.view(-1, *(1 for _ in dims[1:]))).square_().mean(dims)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """g_mean / M + 2 g_var (x - mean) / M, with M values a channel: batch norm of variance 1 is this very map."""
        # eps vanishes beside 1; not every version of torch takes 0.
        x, mean = ctx.saved_tensors
        scale = x.shape[1] / x.numel()
        to_mean, to_var = gradients
        one = torch.ones_like(mean)
        result: Tensor = F.batch_norm(x, mean, one, 2 * scale * to_var, scale * to_mean, eps=1e-30)
        return result


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over the global batch and all positions, in float32 at least.

    Args:
        x: (N, C, ...) activations; half types are raised to float32.

    Returns:
        Two tensors (C,), differentiable once; equal to those of one process that sees the whole batch.
    """
    mean, var = _ChannelStatistics.apply(x)
    if world_size() == 1:
        return mean, var
    total = mean_over_processes(mean)
    return total, mean_over_processes(var + (mean - total).square())
