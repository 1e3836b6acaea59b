"""`evaluate` and `sample`: what a student is worth, and what its generator makes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.arguments import checked
from datafree.data import get_split, load_data
from datafree.evaluation.accuracy import evaluate as score
from datafree.fields import flag
from datafree.generators import GENERATORS
from datafree.generators.noisy import Noisy
from datafree.idle import METHOD, idle_beside
from datafree.jobs.loading import LoadedTeacher, load_teacher
from datafree.jobs.machine import find_device
from datafree.jobs.manifest import from_manifest
from datafree.jobs.paths import check_there
from datafree.jobs.writing import to_picture
from datafree.models.build import is_file_arch
from datafree.models.checkpoint import find_checkpoint, read_checkpoint
from datafree.models.memory import MEMORY
from datafree.pictures import png_bytes
from datafree.runs import SAMPLES, Run, atomic_write, write_json


@checked("student", "teacher")
def evaluate(
    student: str | os.PathLike[str] | nn.Module,
    data: str | None = None,
    *,
    arch: str | nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    teacher: str | nn.Module | None = None,
    teacher_arch: str | nn.Module | None = None,
    teacher_mean: Sequence[float] | None = None,
    teacher_std: Sequence[float] | None = None,
    download: bool = False,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Accuracy of a student (a run folder, a file or a network) on a test split, and its fidelity to its teacher.

    The teacher is the run's own, if the student is a run folder (none where that or its `arch` was a network from
    memory); or the one given. Where the run was given its teacher's `arch` as file.py:function, `teacher_arch` has to
    name it again: no file is run that only a run names. `arch` and `teacher_arch` may be networks that the files are
    for; `student` and `teacher` the networks themselves, from normalised images (N, C, H, W) to logits, or a result's
    `student`. Architectures and normalisations are for what does not say its own; it is else the one of the data, and
    `say` is called with what was inferred.

    Returns:
        accuracy, per_class, confusion; with a teacher also teacher_accuracy, agreement (fractions of 1) and kl (nats).

    Raises:
        ValueError: something a person can mend; one line.
        FileNotFoundError: the data are not there.
    """
    if not isinstance(student, str | os.PathLike | nn.Module):
        raise ValueError(
            f"a {type(student).__name__} is no student: give a run folder (a result's path), a file or the "
            "torch.nn.Module itself"
        )
    student = student if isinstance(student, nn.Module) else os.fspath(student)
    run = _own_run(student) if teacher is None and isinstance(student, str) else None
    check_teacher_options(
        teacher, teacher_arch=None if run else teacher_arch, teacher_mean=teacher_mean, teacher_std=teacher_std
    )
    place = find_device(device)
    # A file that says what images it takes goes before the data; of any other file, or a network, they decide.
    known = None if isinstance(student, str) and _knows_its_images(student) else data
    own = load_teacher(student, arch=arch, data=known, mean=mean, std=std, device=place)
    for line in own.choices if known is not None else ():
        say(line)
    network, domain = own.teacher.classifier, own.domain
    name = data or own.loaded.data
    if name is None:
        raise ValueError(f"{own.loaded.source} does not say which data it is for: give --data NAME")
    if data is None:
        check_there(name, own.loaded.source)
    held = load_data(name, download=download, device=place, splits=("test",))
    x, y = get_split(held, "test")
    if held.domain.shape != domain.shape or held.domain.classes != domain.classes:
        raise ValueError(
            f"{name} has {held.domain.classes} classes of {held.domain.shape} images, "
            f"the student takes {domain.classes} of {domain.shape}: give the data it was made for"
        )
    found: LoadedTeacher | None = None
    if teacher is not None:
        found = load_teacher(teacher, arch=teacher_arch, data=name, mean=teacher_mean, std=teacher_std, device=place)
    elif run is not None:
        found = run_teacher(run, place, arch=teacher_arch)
    scores = score(network, x, y, teacher=found.teacher if found is not None else None)
    return {"student": own.loaded.source, "data": name, **scores.to_dict()}


def _own_run(student: str) -> Run | None:
    """The run of a student's folder, if its teacher can be found again."""
    if not (Path(student) / "run.json").is_file():
        return None
    run = Run.open(student)
    about = run.manifest()
    gone = about.get("job") != "train" or any(
        str(about["config"][name]).startswith(MEMORY) for name in ("teacher", "arch")
    )
    return None if gone else run


def check_teacher_options(teacher: object, **options: Any) -> None:
    """Refuses what describes a teacher's file where none is given: a run's own says it all.

    Raises:
        ValueError: names the options.
    """
    given = [flag(name) for name, value in options.items() if value is not None]
    if teacher is None and given:
        verb = "describe" if len(given) > 1 else "describes"
        raise ValueError(f"{', '.join(given)} {verb} the file of --teacher: give that too, or leave it out")


def _knows_its_images(source: str) -> bool:
    """Whether a file was written by datafree, with the shape and the normalisation of its images."""
    if source.startswith(("torchvision:", "timm:")):
        return False
    return bool(read_checkpoint(find_checkpoint(source)).metadata)


def run_teacher(run: Run, device: torch.device | str = "cpu", *, arch: str | nn.Module | None = None) -> LoadedTeacher:
    """The teacher of a run, as its manifest names it. A file that only the manifest names is never run.

    Raises:
        ValueError: it is not there any more, another network stands in its place, or `arch` is not given where the
            run's is a file, or is elsewhere.
    """
    about = run.manifest()
    config, _ = from_manifest(about)
    if config.arch is None or not is_file_arch(config.arch):
        if arch is not None:
            raise ValueError(f"the run in {run.path} says what its teacher is: leave --teacher-arch out")
        arch = config.arch
    elif arch is None:
        raise ValueError(
            f"the teacher of the run in {run.path} was given with --arch {config.arch}: give --teacher-arch "
            f"{config.arch} (it runs that file)"
        )
    domain = about["domain"]
    found = load_teacher(
        config.teacher or str(run.path / "teacher.safetensors"),
        arch=arch,
        shape=tuple(domain["shape"]),
        classes=domain["classes"],
        mean=domain["mean"],
        std=domain["std"],
        device=device,
    )
    if found.loaded.sha256 != about["teacher"]["sha256"]:
        raise ValueError(
            f"{found.loaded.source} has changed since the run in {run.path} was made: put the run's own teacher back"
        )
    return found


@checked()
@torch.no_grad()
def sample(
    run: str | Path,
    n: int = 1000,
    *,
    out: str | Path,
    teacher_arch: str | nn.Module | None = None,
    seed: int = 0,
    force: bool = False,
    device: str = "cpu",
) -> Path:
    """Writes n images of a run's generator as PNG, and the teacher's logits and probabilities for them.

    OUT/images/000000.png ..., and OUT/labels.safetensors with `logits` and `probabilities` (n, classes) in their order.
    OUT/sampling.json says of what run they are, and by which seed. `teacher_arch` as for `evaluate`.

    Raises:
        ValueError: the run has no generator or another teacher by now, or the folder is not empty.
    """
    from safetensors.torch import load_file, save

    if n < 1:
        raise ValueError(f"--n is {n}: give 1 or more")
    if not (Path(run) / "run.json").is_file():
        raise ValueError(f"no run in {run} (it has no run.json): name a folder that datafree train wrote")
    if (Path(out) / "run.json").exists():
        raise ValueError(f"{out} holds a run: give another --out")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is {seed}: give a number from 0 to below 2^63")
    place = find_device(device)
    source = Run.open(run)
    file = source.path / "generator.safetensors"
    if not file.is_file():
        raise ValueError(
            f"{source.path} has no generator.safetensors: the run is not finished, or its method has no generator"
        )
    about = _about(file)
    generator = _generator(about)
    generator.load_state_dict(load_file(file))
    generator.train(not _shown_in_evaluation(source)).to(place)
    teacher = run_teacher(source, place, arch=teacher_arch).teacher
    with Run.create(out, "sample", force=force) as folder:
        write_json(folder.path / SAMPLES, {"run": str(source.path), "n": n, "seed": seed})
        rng, made = torch.Generator().manual_seed(seed), 0
        logits: list[Tensor] = []
        while made < n:
            images = _batch(generator, about, rng, place)[: n - made].cpu()
            images = (images * 255).round().div(255)
            logits.append(teacher(images.to(place)).cpu())
            for i, image in enumerate(images):
                folder.picture(f"{made + i:06d}", png_bytes(to_picture(image)))
            made += len(images)
        stacked = torch.cat(logits)
        labels = save({"logits": stacked, "probabilities": stacked.softmax(1)})
        atomic_write(folder.path / "labels.safetensors", labels)
    return folder.path


def _shown_in_evaluation(run: Run) -> bool:
    """Whether the student was shown images of the generator's running statistics, not those of their batch."""
    options = run.manifest()["method_options"]
    return options.get("sample_mode") == "eval" and not idle_beside("sample_mode", options, METHOD)


def _generator(about: dict[str, Any]) -> nn.Module:
    """The generator that `about` describes, its weights still to be loaded."""
    generator: nn.Module = GENERATORS[about["generator"]](
        about["latent"], tuple(about["shape"]), about["width"], about["normalisation"]
    )
    if "embeddings" in about:
        return Noisy(generator, torch.zeros(about["embeddings"]), about["latent"], about["layers"], about["rows"])
    return generator


def _batch(generator: nn.Module, about: dict[str, Any], rng: torch.Generator, device: torch.device) -> Tensor:
    """A batch of images; a noisy layer is drawn anew for each."""
    if isinstance(generator, Noisy):
        generator.noise.draw(rng)
        return torch.as_tensor(generator(torch.tensor(about["targets"], device=device)))
    return torch.as_tensor(generator(torch.randn(100, about["latent"], generator=rng).to(device)))


def _about(file: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as archive:
        metadata = archive.metadata() or {}
    if "datafree" not in metadata:
        raise ValueError(f"{file} does not say which generator it holds: make it anew with datafree train")
    about: dict[str, Any] = json.loads(metadata["datafree"])
    return about
