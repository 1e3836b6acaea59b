"""Teachers and students, from wherever they come."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from datafree.arguments import checked
from datafree.data import Data, data_domain, find_data
from datafree.data.folders import left_out, list_imagefolder
from datafree.data.whitening import Whitening
from datafree.domain import DOMAINS, Domain, make_domain
from datafree.models import Loaded, load_model
from datafree.teacher import Normalised, Teacher, Whitened


@dataclass(frozen=True, kw_only=True)
class LoadedTeacher:
    """A teacher with what is known of its data, and what was inferred, one line each."""

    teacher: Teacher
    domain: Domain
    loaded: Loaded
    choices: tuple[str, ...]


@checked("source")
def load_teacher(
    source: str | os.PathLike[str] | nn.Module | Teacher,
    *,
    arch: str | nn.Module | None = None,
    data: str | None = None,
    shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> LoadedTeacher:
    """Loads a checkpoint of any origin as a frozen teacher that takes images in [0, 1].

    Args:
        source: file, run folder, torchvision:NAME or timm:NAME, or the network itself, which is copied (a `Teacher`, or
            a result's `student`, with its normalisation); see `datafree.models.load_model`.
        arch: name, file.py:function or a network for the file's weights; read off the checkpoint where not given.
        data: domain of the images, by name.
        shape: (C, H, W), where no domain is named.
        classes: number of classes.
        mean: normalisation; else the checkpoint's, the domain's, the usual constants, in this order.
        std: likewise.
        download: allow downloads of weights.
        device: where the teacher is to live.

    Raises:
        ValueError: one line that says what to do.
    """
    if isinstance(source, Teacher):
        source = source.classifier
    if isinstance(source, Normalised):  # from images in [0, 1]: it is normalised once, here
        mean, std = _front(source, mean, std)
        source = source.network
    named = data_domain(data) if data is not None else None
    if named is not None:
        if shape is not None and shape[0] != named.shape[0]:
            raise ValueError(f"--shape has {shape[0]} channels, {data} has {named.shape[0]}: give one of the two")
        if classes is not None and classes != named.classes:
            raise ValueError(f"--classes is {classes}, {data} has {named.classes}: give one of the two")
        shape, classes = shape or named.shape, named.classes
    loaded = load_model(source, arch=arch, shape=shape, classes=classes, download=download)
    choices = list(loaded.choices)
    if named is None and loaded.data in DOMAINS:
        named = DOMAINS[loaded.data]
        choices.append(f"domain: {loaded.data} (from the checkpoint)")
    size = shape or loaded.shape
    if size is None:
        raise ValueError(
            "the size of the images cannot be read off the weights: give --data NAME (train also takes --shape CxHxW)"
        )
    origins = [_origin(mean, loaded.mean, loaded, named), _origin(std, loaded.std, loaded, named)]
    mean, std = (loaded.mean if mean is None else mean), (loaded.std if std is None else std)
    domain = make_domain(base=named, shape=size, classes=loaded.classes, mean=mean, std=std)
    first = f" ({origins[0]})" if origins[0] != origins[1] else ""
    choices.append(f"normalisation: mean {_numbers(domain.mean)}{first} / std {_numbers(domain.std)} ({origins[1]})")
    network = loaded.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher = Teacher(network, domain.mean, domain.std)
    teacher.classifier.to(device)
    return LoadedTeacher(teacher=teacher, domain=domain, loaded=loaded, choices=tuple(choices))


def own_data(data: Data, domain: Domain) -> list[str]:
    """What npz: and imagefolder: data were taken for; nothing of named data, of which all is known.

    Args:
        data: as they were loaded.
        domain: theirs, with the normalisation and mirror images as a person asked for.
    """
    name = data.domain.name
    path = find_data(name) if name.startswith(("npz:", "imagefolder:")) else None
    if path is None:
        return []
    held = [f"{len(x):,} {split}" for split, x in (("training", data.x_train), ("test", data.x_test)) if x is not None]
    said = f"data: {' and '.join(held)} images of {domain.classes} classes, {'x'.join(map(str, domain.shape))}"
    said += f"; normalisation mean {_numbers(domain.mean)} / std {_numbers(domain.std)}"
    said += f"; {'may be mirrored' if domain.flip else 'not mirrored'}"
    if path.is_file():
        return [said]
    splits = list_imagefolder(path)
    if len(splits) == 2 and not (path / "train").is_dir():
        said += "; every fifth of a class is for tests"
    others = left_out(path, splits)
    if not others:
        return [said]
    names = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return [said, f"data: {len(others):,} other files are left out: {names}"]


@checked("source")
def load_student(
    source: str | os.PathLike[str], *, arch: str | nn.Module | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Domain]:
    """A trained student (a run folder or a file), in evaluation mode, taking images in [0, 1]; and its domain.

    Raises:
        ValueError: no student there, or one whose normalisation is not known.
    """
    found = load_teacher(source, arch=arch, device=device)
    return found.teacher.classifier, found.domain


def _front(
    network: Normalised, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """The constants of a network that normalises by itself."""
    if mean is not None or std is not None:
        raise ValueError("this network has its own normalisation: leave mean and std out")
    return network.get_buffer("mean").flatten().tolist(), network.get_buffer("std").flatten().tolist()


def normalised(
    network: nn.Module, domain: Domain, device: torch.device, whitening: Whitening | None = None
) -> Normalised | Whitened:
    """A network with its entry, on the device, in the memory format that convolutions are fastest in."""
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if whitening is not None:
        return Whitened(network, whitening).to(device)
    return Normalised(network, domain.mean, domain.std).to(device)


def _origin(given: Sequence[float] | None, held: Sequence[float] | None, loaded: Loaded, named: Domain | None) -> str:
    """Where one of the two constants is from: a person, the checkpoint, the domain or the field's usage."""
    if given is not None or held is not None:
        return "as given" if given is not None else loaded.origin
    return (
        f"{named.name}'s"
        if named is not None
        else "the usual constants; give --mean and --std if the teacher was trained otherwise"
    )


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{v:.4g}" for v in values)
