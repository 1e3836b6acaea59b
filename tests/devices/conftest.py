"""A pretended GPU: tensors that lie on the CPU and say "cuda:0". A test without a GPU sees what a GPU refuses.

Where DATAFREE_TEST_GPU is set, the tests take a real one: DATAFREE_TEST_GPU=1 python -m pytest -m "" tests/devices.
It is asked for float32 in the place of TF32, and for sums in a fixed order: else it is as near as rounding, not equal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it a GPU's products are in no fixed order

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# What torch's own C++ is told in the place of GPU: it asks this kind for no driver, no streams and no threads.
INSIDE = torch.device("meta")
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({})"
aten = torch.ops.aten
# What takes tensors of both kinds, and by their place those that may lie on the CPU beside a first one on the GPU.
ANYWHERE = {aten.copy_, aten._to_copy, aten._foreach_copy_}
INDICES = {aten.index: (1,), aten.index_put: (1,), aten.index_put_: (1,), aten._unsafe_index: (1,)}
# A single number on the CPU is read as a number there.
NUMBERS = {aten.masked_fill: (2,), aten.masked_fill_: (2,), aten.fill_: (1,), aten.fill: (1,)}
NUMBERS |= {aten.index_put: (2,), aten.index_put_: (2,)}
# No GPU multiplies matrices of whole numbers.
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot, aten.convolution}

# Autocast of C++ passes by what it takes for meta tensors, so these are cast here.
HALF = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear prelu matmul __matmul__
    __rmatmul__ mm mv bmm addmm addmv addbmm baddbmm einsum chain_matmul
"""
FULL = """
    softmax log_softmax cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss kl_div cosine_similarity
    binary_cross_entropy_with_logits cosine_embedding_loss layer_norm group_norm norm dist cdist exp log log2
    log10 log1p expm1 pow __pow__ __rpow__ rsqrt reciprocal sum prod cumsum cumprod softplus
"""
CASTS = {**dict.fromkeys(HALF.split(), "half"), **dict.fromkeys(FULL.split(), "full")}


class OnGPU(Tensor):
    """A tensor that says it lies on the GPU. `here` holds its values, on the CPU."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGPU:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=INSIDE,
        )
        made.here = inner
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGPU({self.here})"

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    # With these two, torch exchanges a module's parameters in place when it moves them.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["here"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], *_: Any) -> OnGPU:
        return OnGPU(inner["here"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]  # as `map_location="cpu"` reads it

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(func, args, kwargs or {})


class GPUGenerator(torch.Generator):
    """Takes the place of `torch.Generator`: draws on the CPU and knows which device it is for."""

    def __new__(cls, device: Any = "cpu") -> GPUGenerator:
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        (FOR_GPU.add if is_gpu(device) else FOR_GPU.discard)(address(made))
        return made

    device = property(lambda self: device_of(self))


FOR_GPU: set[int] = set()  # by their addresses: an operation is handed another Python object for the same generator


def address(generator: Any) -> int:
    return int(generator._cdata)


def device_of(generator: Any) -> torch.device:
    return GPU if address(generator) in FOR_GPU else CPU


def is_gpu(device: Any) -> bool:
    return torch.device(device).type in (GPU.type, INSIDE.type)


class Pretence(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, new tensors may be made on the GPU, and every operation is checked."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def listed(place: Any) -> Any:
    """A list as an index tensor, anything else as it is."""
    return torch.tensor(place, dtype=None if place else torch.int64) if isinstance(place, list) else place


class Calls(TorchFunctionMode):
    """Keeps C++ from looking for a GPU, and does autocast's work, by the names that torch's documentation lists."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in CASTS and torch.is_autocast_enabled("cuda"):
            wanted = torch.get_autocast_dtype("cuda") if CASTS[name] == "half" else torch.float32

            def cast_to(x: Any) -> Any:
                known = isinstance(x, Tensor) and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
                return x.to(wanted) if known and is_gpu(x.device) else x

            args, kwargs = tree_map(cast_to, args), tree_map(cast_to, kwargs)
        device = kwargs.get("device")
        if func in (Tensor.__getitem__, Tensor.__setitem__):  # C++ would make an index of a list below all modes
            place = tuple(map(listed, args[1])) if isinstance(args[1], tuple) else listed(args[1])
            return func(args[0], place, *args[2:])
        if func in (torch.tensor, torch.as_tensor, torch.asarray):  # these read their data below all modes
            held = args[0].clone() if isinstance(args[0], OnGPU) else func(*args, **{**kwargs, "device": None})
            return held.to(held.device if device is None else device, kwargs.get("dtype", held.dtype))
        if func is Tensor.new_tensor:
            like, data = args
            made = torch.tensor(data, dtype=kwargs.get("dtype", like.dtype))
            return made.to(like.device if device is None else device)
        if device is not None and is_gpu(device):
            kwargs["device"] = INSIDE
        return func(*args, **kwargs)


# What is drawn on the GPU without a generator of one's own.
default = GPUGenerator("cuda")


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU, its result where a GPU would have it.

    Raises:
        RuntimeError: a GPU would have refused it.
    """
    outer: dict[int, Tensor] = {}

    def unwrapped(x: Any) -> Any:
        if not isinstance(x, OnGPU):
            assert not isinstance(x, Tensor) or not x.is_meta, f"{func} is given what was made below all modes"
            return x
        outer[id(x.here)] = x
        return x.here

    inner_args, inner_kwargs = tree_map(unwrapped, args), tree_map(unwrapped, kwargs)
    if outer:
        check_devices(func, args, kwargs)
    named = kwargs.get("device")
    on_gpu = is_gpu(named) if named is not None else bool(outer)
    if named is not None:
        inner_kwargs["device"] = CPU
    if on_gpu and func.overloadpacket in PRODUCTS and not args[1].dtype.is_floating_point:
        raise RuntimeError(f'"{func}" not implemented for {args[1].dtype} on a GPU')
    generator = kwargs.get("generator")
    if generator is not None and device_of(generator) != (GPU if on_gpu else CPU):
        wanted = "cuda" if on_gpu else "cpu"
        found = device_of(generator).type
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")
    if on_gpu and generator is None and torch.Tag.nondeterministic_seeded in func.tags:
        before = torch.get_rng_state()
        torch.set_rng_state(default.get_state())
        found = func(*inner_args, **inner_kwargs)
        default.set_state(torch.get_rng_state())
        torch.set_rng_state(before)
    else:
        found = func(*inner_args, **inner_kwargs)

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        held = outer.get(id(x))
        if held is None:  # else the operation changed it in place
            return OnGPU(x) if on_gpu else x
        assert held.shape == x.shape, f"{func} changes a shape in place, which is not pretended"
        return held

    return tree_map(wrapped, found)


def check_devices(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Compares the devices of an operation that is given something on the GPU.

    Raises:
        RuntimeError: a GPU refuses this mixture.
    """
    packet = func.overloadpacket
    if packet in ANYWHERE:
        return
    numbers = 0
    for place, argument in [*enumerate(args), *((-1, value) for value in kwargs.values())]:
        for x in argument if isinstance(argument, list | tuple) else (argument,):
            if not isinstance(x, Tensor) or isinstance(x, OnGPU):
                continue
            if place in INDICES.get(packet, ()):
                continue
            if x.dim() == 0 and place in NUMBERS.get(packet, ()):
                continue
            if x.dim() == 0 and torch.Tag.pointwise in func.tags and not (place == 0 and func._schema.is_mutable):
                numbers += 1
                if numbers == 1:  # a kernel has room for one
                    continue
            raise RuntimeError(MIXED.format(func))


@pytest.fixture
def pretended(gpu: torch.device) -> None:
    """For numbers that are the CPU's to the last digit: a real GPU draws others and rounds otherwise."""
    if "DATAFREE_TEST_GPU" in os.environ:
        pytest.skip("a real GPU has numbers of its own")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The pretended GPU; "cuda" is there until the test ends. It leans on what torch keeps to itself."""
    if "DATAFREE_TEST_GPU" in os.environ:
        assert torch.cuda.is_available(), "DATAFREE_TEST_GPU is set, and torch sees no GPU"
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield GPU
        torch.use_deterministic_algorithms(False)
        return
    if torch.__version__ < "2.14":  # compared as versions
        pytest.skip("the pretended GPU was made with torch 2.14")
    default.manual_seed(0)
    moved, to = nn.Module._apply, Tensor.to

    def apply(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return moved(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    def tensor_to(self: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        wanted = self.dtype if dtype is None else dtype
        if copy or (device is not None and is_gpu(device) != is_gpu(self.device)):
            target = self.device if device is None else GPU if is_gpu(device) else CPU
            return cast(Tensor, aten._to_copy(self, dtype=wanted, device=target, memory_format=memory_format))
        return to(self, wanted, memory_format=torch.preserve_format if memory_format is None else memory_format)

    for name, value in {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "pretended GPU",
        "synchronize": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "manual_seed_all": default.manual_seed,
        "get_rng_state": lambda device=None: default.get_state(),
        "set_rng_state": lambda state, device=None: default.set_state(state),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "Generator", GPUGenerator)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # its tensors cannot be wrapped
    monkeypatch.setattr(nn.Module, "_apply", apply)
    monkeypatch.setattr(Tensor, "to", tensor_to)
    monkeypatch.setattr(Tensor, "cpu", lambda self, **_: self.to(CPU))
    monkeypatch.setattr(Tensor, "cuda", lambda self, *_, **__: self.to(GPU))
    for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
        monkeypatch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)
    with Pretence(), Calls():  # type: ignore[no-untyped-call]
        yield GPU
