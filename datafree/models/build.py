"""One way to build a network from a name: the zoo's, torchvision's, timm's, or a function in the user's own file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.arguments import checked
from datafree.models import ALIASES, MODELS, model_names
from datafree.models.memory import MEMORY, check_sizes, copied, gone, in_memory

# torchvision's networks with side branches during training; they are built without.
SIDE_BRANCHES = ("googlenet", "inception_v3")
RETURNS = "it returns "  # how `output_shape` begins where a network's output is no tensor


@checked()
def build_model(name: str | nn.Module, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build an untrained network that maps normalised images (N, *shape) to logits (N, classes).

    ``name``: a name of the zoo (``datafree list models``) or an alias, ``torchvision:NAME``, ``timm:NAME`` (needs the
    extra ``timm``), or ``path/file.py:function``: a function without arguments that returns the module. That file is
    run. Or a network of your own, which is copied with its weights.
    ``shape`` is (C, H, W) in pixels. Trained weights come from ``load_model`` only.

    Raises ValueError where the name is not known, the network cannot take that shape or number of classes, or one of
    your own cannot be trained.
    """
    own = isinstance(name, nn.Module) or is_file_arch(name)
    if isinstance(name, nn.Module):
        network, name = copied(name), in_memory(name)
    else:
        network = make_network(name, shape=shape, classes=classes)
    if name not in MODELS and name not in ALIASES:
        check_output(network, name=name, shape=shape, classes=classes)
    if own:
        check_trainable(network, name=name, shape=shape)
    return network


def make_network(name: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """``build_model`` without trying foreign networks out."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a shape is channels, height, width, all at least 1, such as 3x32x32, not {shape}")
    if classes < 1:
        raise ValueError(f"the number of classes must be at least 1, not {classes}")
    name = ALIASES.get(name, name)
    if name in MODELS:
        module, _, function = MODELS[name].partition(":")
        build: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
        return build(shape=shape, classes=classes)
    if name.startswith("torchvision:"):
        return build_torchvision(name, shape=shape, classes=classes)
    if name.startswith("timm:"):
        return build_timm(name, shape=shape, classes=classes)
    if is_file_arch(name):
        return run_file(name)
    if name.startswith(MEMORY):
        raise ValueError(gone(name))
    raise ValueError(unknown_name(name, model_names()))


def unknown_name(name: str, known: tuple[str, ...]) -> str:
    """The one-line message for a name that is not known, with the closest ones."""
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"; closest: {', '.join(close)}" if close else ""
    return f"unknown network {name!r}{hint}; 'datafree list models' shows all, or give path/file.py:function"


def check_output(network: nn.Module, *, name: str, shape: tuple[int, int, int], classes: int) -> None:
    """Raise ValueError unless the network maps one image of ``shape`` to ``classes`` logits (tried in eval mode)."""
    got = output_shape(network, shape)
    size = "x".join(map(str, shape))
    if isinstance(got, str) and got.startswith(RETURNS):
        raise ValueError(f"{name}: {got}: its forward must return the logits (N, classes) alone")
    if isinstance(got, str):
        raise ValueError(f"{name} cannot take images of {size}: {got}")
    if got != (1, classes):
        raise ValueError(f"{name} gives an output of shape {got} for one image of {size}, not (1, {classes}) logits")


def check_trainable(network: nn.Module, *, name: str, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless a network gives logits in either mode, in training with a gradient for its weights.

    Modes, buffers and random numbers are left as they were.
    """
    weight = next(network.parameters(), torch.empty(0))
    images = torch.full((2, *shape), 0.5, device=weight.device)
    before = {key: value.clone() for key, value in network.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), in_evaluation(network):
        try:
            answers = [network(images), network.train()(images)]
        except Exception as error:  # a user's forward may raise anything
            raise ValueError(f"{name} cannot be trained: {one_line(error)}") from error
    for answer in answers:
        if not isinstance(answer, torch.Tensor) or answer.dim() != 2:
            kind = type(answer).__name__
            raise ValueError(
                f"{name} returns {kind} in training: its forward must return the logits (N, classes) alone"
            )
        check_logits(answer, name)
    if not answers[1].requires_grad:
        raise ValueError(
            f"{name} cannot be trained, no gradient reaches its weights: leave torch.no_grad, detach and "
            "requires_grad_(False) out of it, or give a network that has weights"
        )
    with torch.no_grad():
        for key, value in network.named_buffers():
            value.copy_(before[key])


def check_logits(answers: torch.Tensor, source: str, otherwise: str = "") -> None:
    """Raise ValueError for probabilities, of which a softmax is nearly uniform: a student would learn nothing."""
    if bool((answers >= 0).all() & ((answers.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            f"{source} answers with probabilities: its forward must return the logits, which a softmax made them of"
            f"{otherwise}"
        )


def output_shape(network: nn.Module, shape: tuple[int, int, int]) -> tuple[int, ...] | str:
    """The shape of the output for one black image, or the first line of the error. The network's mode is kept."""
    weight = next(network.parameters(), torch.empty(0))
    try:
        with in_evaluation(network), torch.no_grad():
            out = network(torch.zeros(1, *shape, device=weight.device))
    except Exception as error:  # a user's forward may raise anything
        return one_line(error)
    return tuple(out.shape) if isinstance(out, torch.Tensor) else f"{RETURNS}{type(out).__name__}, not a tensor"


@contextmanager
def in_evaluation(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode inside (BN refuses one image, dropout draws random numbers), each module's own mode after."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def build_torchvision(name: str, *, shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    """torchvision's classifier ``torchvision:NAME``, untrained; the first convolution takes the shape's channels."""
    from torchvision import models

    short = name.removeprefix("torchvision:")
    known = tuple(models.list_models(module=models))
    if short not in known:
        raise ValueError(unknown_name(name, tuple(f"torchvision:{each}" for each in known)))
    if short in SIDE_BRANCHES:
        options |= {"aux_logits": False, "init_weights": True}
    if short.startswith("vit_"):
        options |= {"image_size": shape[1]}
    try:
        network: nn.Module = models.get_model(short, weights=None, num_classes=classes, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} cannot be built for {'x'.join(map(str, shape))}: {one_line(error)}") from error
    if shape[0] != 3:
        set_channels(network, shape[0])
    return network


def set_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one that takes ``channels`` channels, freshly initialised."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            parent, _, leaf = name.rpartition(".")
            fresh = nn.Conv2d(
                channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                stride=module.stride,  # type: ignore[arg-type]
                padding=module.padding,  # type: ignore[arg-type]
                dilation=module.dilation,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            setattr(network.get_submodule(parent), leaf, fresh)
            return


def import_timm() -> Any:
    """The package timm, or a ValueError that says how to install it."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ValueError("timm's networks need timm: pip install 'datafree[timm]'") from error


def build_timm(name: str, *, shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    """timm's network ``timm:NAME``, untrained unless ``options`` say otherwise."""
    timm = import_timm()
    short = name.removeprefix("timm:")
    if not timm.is_model(short):
        close = difflib.get_close_matches(short, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; closest: {', '.join(f'timm:{each}' for each in close)}" if close else ""
        raise ValueError(f"unknown network {name!r}{hint}; timm.list_models() shows all")
    cfg = timm.get_pretrained_cfg(short)
    if cfg is not None and cfg.fixed_input_size:
        options |= {"img_size": shape[1:]}
    try:
        network: nn.Module = timm.create_model(short, num_classes=classes, in_chans=shape[0], **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be built for {'x'.join(map(str, shape))}: {one_line(error)}") from error
    return network


def is_file_arch(name: str) -> bool:
    """Whether ``name`` has the form ``path/file.py:function``."""
    return name.rpartition(":")[0].endswith(".py")


def run_file(name: str) -> nn.Module:
    """Run the file of ``path/file.py:function`` and return what the function returns: an ``nn.Module``."""
    file, _, function = name.rpartition(":")
    path = Path(os.path.expanduser(file)).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {file}: give path/file.py:function")
    module_name = f"datafree_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses of that file look their module up
    sys.path.insert(0, str(path.parent))  # so that it can import its neighbours
    arguments, sys.argv = sys.argv, [str(path)]  # ours are none of its own
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        network = make() if callable(make) else None
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{name} failed when it was run: {one_line(error)}") from error
    except SystemExit as error:
        raise ValueError(f"{name} ends the program when it is run: put that under if __name__ == '__main__'") from error
    finally:
        sys.argv = arguments
        sys.path.remove(str(path.parent))
    if not callable(make):
        raise ValueError(f"{file} defines no function {function!r}")
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} returned {type(network).__name__}, not a torch.nn.Module")
    check_sizes(network, name)
    return network
