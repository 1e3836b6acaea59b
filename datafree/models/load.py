"""Anybody's checkpoint as a network: what is not said is read off the weights, and each such choice is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from datafree.arguments import checked
from datafree.models import ALIASES, MODELS, model_names
from datafree.models.build import (
    RETURNS,
    build_model,
    check_output,
    is_file_arch,
    output_shape,
    run_file,
    unknown_name,
)
from datafree.models.checkpoint import (
    Checkpoint,
    architecture_beside,
    find_checkpoint,
    largest_part,
    normalisation_beside,
    read_checkpoint,
    without_prefixes,
)
from datafree.models.fit import SIDES, Fit, closest, closest_words, compare, ends, fit, misfit
from datafree.models.memory import MEMORY, copied, gone, in_memory, tensors_sha256
from datafree.models.naming import names_in, shapes_of
from datafree.models.pretrained import load_pretrained, torchvision_names, usual_side


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A trained network (in evaluation mode, on the CPU) and what is known of it.

    ``shape``: (C, H, W) of its images, None if it cannot be known. ``mean``, ``std``: the normalisation it needs, one
    value a channel, None if the checkpoint does not say. ``data``: the domain's name if the checkpoint knows it.
    ``sha256``: of the file, or of the tensors of a network from memory. ``choices``: one line for each thing that was
    inferred. ``origin``: where the normalisation was found.
    """

    network: nn.Module
    arch: str
    shape: tuple[int, int, int] | None
    classes: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    data: str | None
    sha256: str | None
    source: str
    choices: tuple[str, ...]
    origin: str = "from the checkpoint"


@checked("source")
def load_model(
    source: str | os.PathLike[str] | nn.Module,
    *,
    arch: str | nn.Module | None = None,
    shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    download: bool = False,
) -> Loaded:
    """Load a trained network.

    ``source``: a state dict in a .pt, .pth, .th, .ckpt or .bin file (bare, or under state_dict, model,
    model_state_dict, net), a safetensors file, a run folder or one of Hugging Face's, ``torchvision:NAME`` or
    ``timm:NAME``; or the network itself, which is copied. A prefix that all names share is left out where the network
    fits without it, as are a few tensors beside the network where the others fit exactly. ``arch``: any name
    ``build_model`` takes, or a network that the file's weights are for; else the checkpoint's own word, else the file's
    name, else config.json beside it. ``shape`` (C, H, W) and ``classes`` are checked where given, else read off the
    weights. ``download`` allows torchvision's and timm's weights to be fetched. Pickled code is never run; a file named
    with ``arch="file.py:function"`` is.

    Raises FileNotFoundError or ValueError, one line that says what to do.
    """
    if isinstance(source, nn.Module):
        if arch is not None:
            raise ValueError("an arch goes with a checkpoint file; a network in memory is its own: leave arch out")
        return from_memory(source, shape=shape, classes=classes)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"a {type(source).__name__} is no checkpoint: give a file, or the torch.nn.Module itself")
    source = os.fspath(source)
    if source.startswith(MEMORY):
        raise ValueError(gone(source))
    if source.startswith(("torchvision:", "timm:")):
        if arch not in (None, source):
            raise ValueError(f"--arch {arch} goes with a checkpoint file; {source} has its own architecture")
        found = load_pretrained(source, download=download)
        check_classes(source, found.classes, classes, "its pretrained weights")
        if shape is not None and shape[0] != found.shape[0]:
            raise ValueError(f"{source} takes {found.shape[0]} channels, not {shape[0]}: give data of as many")
        if shape not in (None, found.shape):
            check_output(found.network, name=source, shape=shape, classes=found.classes)
        known = {**vars(found), "shape": shape or found.shape}
        return Loaded(**known, arch=source, data=None, source=source)
    try:
        path = find_checkpoint(source)
    except FileNotFoundError as error:
        if f"torchvision:{source}" in torchvision_names():
            raise FileNotFoundError(f"no file {source}: for pretrained weights say torchvision:{source}") from error
        raise
    checkpoint = read_checkpoint(path)
    if checkpoint.metadata.get("whitened"):
        raise ValueError(
            f"{source} knows images as condense --zca whitened them, and cannot see any other: give another network"
        )
    if isinstance(arch, nn.Module) or (arch is not None and is_file_arch(arch)):
        return from_user_network(source, checkpoint, arch=arch, shape=shape, classes=classes)
    return from_known_name(source, checkpoint, arch=arch, shape=shape, classes=classes)


def check_classes(source: str, found: int, wanted: int | None, where: str) -> None:
    """Raise ValueError where the number of classes that was asked for is not the weights'."""
    if wanted is not None and wanted != found:
        raise ValueError(f"{source} has {found} classes ({where}), not {wanted}: give data of as many")


def from_known_name(
    source: str, checkpoint: Checkpoint, *, arch: str | None, shape: tuple[int, int, int] | None, classes: int | None
) -> Loaded:
    """Load into an architecture of the zoo, torchvision's or timm's."""
    known_shape = shape or checkpoint.shape
    names, why = candidates(checkpoint, arch)

    def share(state: Mapping[str, Tensor]) -> float:
        fits = [fit(name, state, shape=known_shape, side=usual_side(name)) for name in names] or [closest(state)]
        return max(each.difference.share for each in fits)

    whole = checkpoint
    checkpoint, told = unwrapped(checkpoint, share)
    if not names:
        raise ValueError(
            f"{source}: neither the file nor its name says the architecture; "
            f"{closest_words(closest(checkpoint.state))}; name it with --arch: {', '.join(model_names())}, "
            "torchvision:NAME, timm:NAME or file.py:function"
        )

    def tries(state: Mapping[str, Tensor]) -> list[Fit]:
        done: list[Fit] = []
        for name in names:
            done.append(fit(name, state, shape=known_shape, side=usual_side(name)))
            if done[-1].fits:
                break
        return done

    tried = tries(checkpoint.state)
    if not tried[-1].fits and (part := fitting_part(whole, lambda state: tries(state)[-1].fits)):
        checkpoint, told = part
        tried = tries(checkpoint.state)
    taken = tried[-1]
    if not taken.fits:
        check_channels(source, checkpoint, tried[0].first, known_shape)
        best = closest(checkpoint.state, extra=names)
        raise ValueError(misfit(source, tried[0].arch, tried[0].difference, best))
    check_classes(source, taken.classes, classes, f"read off {taken.last}")
    with torch.random.fork_rng(devices=[]):  # its weights are overwritten: the random numbers are left alone
        network = build_model(taken.arch, shape=taken.shape, classes=taken.classes)
    choices = [] if why == "given" else [f"architecture: {taken.arch} ({why})"]
    choices += told
    if taken.naming:
        choices.append(f"names of the tensors: {taken.naming}, renamed")
    if classes is None and "classes" not in checkpoint.metadata:
        choices.append(f"classes: {taken.classes} (read off {taken.last})")
    if known_shape is None:
        size = "x".join(map(str, taken.shape))
        choices.append(f"shape: {size} (channels read off {taken.first}, usual size for {taken.arch})")
    fill(network, checkpoint, taken.keys)
    return loaded(source, checkpoint, network, taken.arch, taken.shape, taken.classes, choices)


def unwrapped(checkpoint: Checkpoint, share: Callable[[Mapping[str, Tensor]], float]) -> tuple[Checkpoint, list[str]]:
    """The checkpoint without the prefix of all its names that leaves the greatest share of agreeing tensors.

    Returns also what the user is told of it. No prefix goes before any that is no better.
    """
    shorter = without_prefixes(checkpoint.state)
    if len(shorter) == 1:
        return checkpoint, []
    prefix, state = max(shorter, key=lambda each: share(each[1]))
    return replace(checkpoint, state=state), left_out(prefix)


def fitting_part(
    checkpoint: Checkpoint, fits: Callable[[Mapping[str, Tensor]], bool]
) -> tuple[Checkpoint, list[str]] | None:
    """The checkpoint's largest part alone, with or without its prefixes, where that fits; and what the user is told."""
    part = largest_part(checkpoint.state)
    beside = [key for key in checkpoint.state if key not in part]
    for prefix, state in without_prefixes(part) if part else []:
        if fits(state):
            return replace(checkpoint, state=state), left_out(prefix, beside)
    return None


def left_out(prefix: str, beside: Sequence[str] = ()) -> list[str]:
    """What the user is told of a prefix, and of tensors ``beside`` the network."""
    more = f" and {len(beside) - 3} more" if len(beside) > 3 else ""
    tensors = [f"tensors left out: {', '.join(beside[:3])}{more} (what remains fits exactly)"] if beside else []
    whose = "all others" if beside else "all"
    return tensors + ([f"names of the tensors: without {prefix!r}, which {whose} begin with"] if prefix else [])


def candidates(checkpoint: Checkpoint, arch: str | None) -> tuple[list[str], str]:
    """Architectures to try, the likeliest first, and where their names were found."""
    stated = arch or checkpoint.metadata.get("arch")
    if stated:
        if stated.startswith(MEMORY):
            raise ValueError(f"{checkpoint.path}: {gone(stated)}")
        if is_file_arch(stated):  # a file that only the checkpoint names is never run
            raise ValueError(f"{checkpoint.path} was made with --arch {stated}: give --arch again (it runs that file)")
        if not stated.startswith(("torchvision:", "timm:")) and stated not in model_names():
            raise ValueError(unknown_name(stated, model_names()))
        return [ALIASES.get(stated, stated)], "given" if arch else "from the checkpoint"
    known = (*MODELS, *ALIASES, *torchvision_names())
    hinted = names_in(checkpoint.hint, known)
    names = [*hinted, *names_in(checkpoint.path.stem, known)]
    why = "from the checkpoint" if hinted else "from the file's name"
    if not names and (beside := architecture_beside(checkpoint.path)):
        names, why = names_in(beside.rpartition(":")[2], known), "from config.json beside it"
        if beside.startswith("timm:") and (not names or find_spec("timm")):
            names.append(beside)
    return list(dict.fromkeys(ALIASES.get(name, name) for name in names)), why


def check_channels(source: str, checkpoint: Checkpoint, name: str, shape: tuple[int, int, int] | None) -> None:
    """Where a given shape has other channels than the first convolution ``name``, say that rather than list keys."""
    weight = checkpoint.state.get(name)
    if shape is not None and weight is not None and weight.ndim == 4 and weight.shape[1] != shape[0]:
        takes = weight.shape[1]
        raise ValueError(f"{source} takes {takes} channels (read off {name}), not {shape[0]}: give data of as many")


def from_memory(network: nn.Module, *, shape: tuple[int, int, int] | None, classes: int | None) -> Loaded:
    """A copy of the user's own network, in float32; what it takes and gives is tried out."""
    name, network = in_memory(network), copied(network).eval()
    taken, found, choices = read_off(network, name, shape, classes)
    return Loaded(
        network=network,
        arch=name,
        shape=taken,
        classes=found,
        mean=None,
        std=None,
        data=None,
        sha256=tensors_sha256(network),
        source=name,
        choices=tuple(choices),
    )


def from_user_network(
    source: str,
    checkpoint: Checkpoint,
    *,
    arch: str | nn.Module,
    shape: tuple[int, int, int] | None,
    classes: int | None,
) -> Loaded:
    """Load into the module that the user gives, or their function returns; what it takes and gives is tried out."""
    name = in_memory(arch) if isinstance(arch, nn.Module) else arch
    with torch.random.fork_rng(devices=[]):
        network = copied(arch) if isinstance(arch, nn.Module) else run_file(arch)
    expected = shapes_of(network.state_dict())

    def share(state: Mapping[str, Tensor]) -> float:
        return compare(shapes_of(state), expected).share

    whole = checkpoint
    checkpoint, told = unwrapped(checkpoint, share)
    if share(checkpoint.state) < 1 and (part := fitting_part(whole, lambda state: share(state) == 1)):
        checkpoint, told = part
    difference = compare(shapes_of(checkpoint.state), expected)
    if difference.share < 1:
        raise ValueError(misfit(source, name, difference, closest(checkpoint.state)))
    fill(network, checkpoint, {key: key for key in checkpoint.state})
    taken, found, choices = read_off(network, name, shape or checkpoint.shape, classes)
    choices[1:1] = told
    return loaded(source, checkpoint, network, name, taken, found, choices)


def read_off(
    network: nn.Module, name: str, known_shape: tuple[int, int, int] | None, classes: int | None
) -> tuple[tuple[int, int, int] | None, int, list[str]]:
    """The shape that a user's network takes, its number of classes, and what the user is told of them.

    Raises ValueError where it does not return logits, or does not take the known shape.
    """
    first, last = ends(network)
    outputs = {each: output_shape(network, each) for each in ([known_shape] if known_shape else shapes_for(network))}
    taken = next((each for each, out in outputs.items() if not isinstance(out, str) and len(out) == 2), None)
    if no_tensor := next((out for out in outputs.values() if isinstance(out, str) and out.startswith(RETURNS)), ""):
        raise ValueError(f"{name}: {no_tensor}: its forward must return the logits (N, classes) alone")
    if known_shape is not None and taken is None:
        size, got = "x".join(map(str, known_shape)), outputs[known_shape]
        raise ValueError(f"{name} gives no logits (1, classes) for one image of {size}, but {got}: give data that fit")
    if taken is None and not last:
        raise ValueError(f"{name} has no layer that tells its images' size: give it (train --shape CxHxW)")
    out = outputs[taken] if taken is not None else (1, network.state_dict()[last].shape[0])
    assert not isinstance(out, str)
    check_classes(name, out[1], classes, "its outputs")
    choices = [f"classes: {out[1]} (outputs of {name})"]
    if known_shape is None and taken is not None:
        size = "x".join(map(str, taken))
        choices.append(f"shape: {size} (channels read off {first}, the first usual size that {name} takes)")
    return taken, out[1], choices


def shapes_for(network: nn.Module) -> list[tuple[int, int, int]]:
    """Usual image shapes for a network of any kind: 224 px first if it begins like an ImageNet network."""
    first = next((each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear)), None)
    channels = (first.in_channels,) if isinstance(first, nn.Conv2d) else (1, 3)
    large = isinstance(first, nn.Conv2d) and first.kernel_size[0] >= 7 and first.stride[0] >= 2
    preferred = 224 if large else 28 if channels[0] == 1 else 32
    return [(each, side, side) for side in dict.fromkeys((preferred, *SIDES)) for each in channels]


def fill(network: nn.Module, checkpoint: Checkpoint, keys: Mapping[str, str]) -> None:
    """Copy the checkpoint's tensors into a network that they fit, and set it to evaluation mode."""
    state = {new: checkpoint.state[old] for old, new in keys.items()}
    left = network.load_state_dict(state, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in (*left.missing_keys, *left.unexpected_keys))
    network.eval()


def loaded(
    source: str,
    checkpoint: Checkpoint,
    network: nn.Module,
    arch: str,
    shape: tuple[int, int, int] | None,
    classes: int,
    choices: list[str],
) -> Loaded:
    """Put the network together with what the checkpoint, or what lies beside it, says of its normalisation and data."""
    metadata: dict[str, Any] = checkpoint.metadata
    mean, std, origin = metadata.get("mean"), metadata.get("std"), Loaded.origin
    if not mean and not std:
        beside = normalisation_beside(checkpoint.path)
        if beside is not None and (shape is None or len(beside[0]) == shape[0]):
            mean, std, origin = *beside, "from the configuration beside it"
    return Loaded(
        network=network,
        arch=arch,
        shape=shape,
        classes=classes,
        mean=tuple(mean) if mean else None,
        std=tuple(std) if std else None,
        data=metadata.get("data"),
        sha256=checkpoint.sha256,
        source=source,
        choices=tuple(choices),
        origin=origin,
    )
