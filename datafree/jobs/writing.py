"""The condensed set as files: tensors, a card to read, pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.data.condensed import FILE, CondensedSet, to_bytes
from datafree.data.folders import folder_name
from datafree.jobs.paths import base_name
from datafree.pictures import grid, png_bytes
from datafree.runs import atomic_write

PNG_CHANNELS = (1, 3)
# Methods that ask no network which images to make.
WITHOUT_NETWORK = ("random", "mean")
# Methods whose images are real ones, or (rded) parts of them.
REAL_IMAGES = ("random", "herding", "k-center", "k-means", "rded")


def write_set(folder: Path, condensed: CondensedSet, metrics: Mapping[str, Any]) -> None:
    """Writes FOLDER/condensed.safetensors, card.md, and images/: a grid, and one PNG an image in class folders.

    `torchvision.datasets.ImageFolder(FOLDER/images)` reads the class folders: their names begin with the class number.
    An image lies in the folder of the class that it was made for, whatever its soft label says. No PNG file is written
    of images of other than one or three channels, but for the grid. The first two files are to be handed out: of paths
    they have the last part alone. Where the data lie is in the run.json beside them.
    """
    name, info = base_name(condensed.domain.name), _without_folders(dict(condensed.info))
    condensed = dataclasses.replace(condensed, domain=dataclasses.replace(condensed.domain, name=name), info=info)
    atomic_write(folder / FILE, to_bytes(condensed))
    atomic_write(folder / "card.md", card(condensed, metrics))
    images, _ = condensed.decoded()
    classes = condensed.made_for()
    names = class_folders(condensed)
    if images.shape[1] in PNG_CHANNELS:
        for index, (image, label) in enumerate(zip(images, classes.tolist(), strict=True)):
            place = folder / "images" / names[label]
            place.mkdir(parents=True, exist_ok=True)
            atomic_write(place / f"{index:06d}.png", png_bytes(to_picture(image)))
    (folder / "images").mkdir(exist_ok=True)
    order = torch.argsort(classes, stable=True)[:200]
    atomic_write(folder / "images" / "grid.png", png_bytes(grid(images[order])))


def _without_folders(value: Any) -> Any:
    """Plain types with the last part alone of each path."""
    if isinstance(value, Mapping):
        return {key: _without_folders(each) for key, each in value.items()}
    return base_name(value) if isinstance(value, str) else value


def class_folders(condensed: CondensedSet) -> list[str]:
    """A folder's name for each class, in the classes' order when sorted."""
    domain = condensed.domain
    digits = len(str(domain.classes - 1))
    names = domain.class_names or ("",) * domain.classes
    safe = [folder_name(name) for name in names]
    return [f"{i:0{digits}d}" + (f"-{name}" if name and name != str(i) else "") for i, name in enumerate(safe)]


def to_picture(image: Tensor) -> Any:
    """A PIL image of (C, H, W) in [0, 1], rounded to 8 bits.

    Raises:
        ValueError: it has other than one or three channels.
    """
    from PIL import Image

    pixels = (image * 255).round().to(torch.uint8).numpy()
    if len(pixels) not in PNG_CHANNELS:
        raise ValueError(f"images of {len(pixels)} channels cannot be written as PNG: use the Python API")
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def card(condensed: CondensedSet, metrics: Mapping[str, Any]) -> str:
    """card.md: what the set is, what it costs, how it is used, and what it does not promise."""
    domain, budget, info = condensed.domain, condensed.budget(), condensed.info
    shape = "×".join(map(str, domain.shape))
    labels = "soft (logits; a softmax gives probabilities)" if condensed.soft else "hard (class numbers)"
    counts = info.get("images_per_class") or []
    each = str(counts[0]) if counts and len(set(counts)) == 1 else ", ".join(map(str, counts))
    taught = info.get("teacher_file")
    entry = "ZCA whitening (in the file)" if condensed.whitening else "(x - mean) / std"
    real = info.get("method") in REAL_IMAGES
    lines = [
        f"# Condensed {domain.name}",
        "",
        f"{budget['stored_images']} {'real' if real else 'synthetic'} images of {shape} for {domain.classes} classes, "
        f"{'chosen' if real else 'made'} by "
        f"`{info.get('method', '?')}` of datafree {info.get('datafree', '?')}.",
        "",
        "| | |",
        "|---|---|",
        f"| images a class | {each or '?'} |",
        f"| stored floats | {budget['stored_floats']:,} |",
        f"| decoded images | {budget['decoded_images']:,} (factor {condensed.factor}) |",
        f"| labels | {labels}, {budget['label_bytes']:,} bytes |",
        f"| networks see | {entry}, mean {_text(domain.mean)}, std {_text(domain.std)} |",
        f"| learned rate | {condensed.learning_rate if condensed.learning_rate is not None else 'none'} |",
        f"| looked through | {_network(condensed)} |",
        *([f"| teacher | {taught['file']} ({taught['arch']}, SHA-256 {taught['sha256']}) |"] if taught else []),
        f"| steps | {metrics.get('steps', '?')} in {metrics.get('total_seconds', '?')} s |",
        f"| seed | {info.get('seed', '?')} |",
        "",
        "## Use",
        "",
        "```python",
        "import datafree",
        "",
        'dataset = datafree.load_condensed("FOLDER")  # torch.utils.data.Dataset; images (C, H, W) in [0, 1]',
        "```",
        "",
        *_pictures(condensed),
        "",
        "`datafree evaluate FOLDER --data NAME` scores the set beside a random real subset of the same size.",
        "",
        "## Limits",
        "",
        *_origin(info, real),
    ]
    if info.get("clip") == "save":
        lines.append(
            "- Pixels were brought back into [0, 1] on saving, not during the run, as the emulated release does."
        )
    return "\n".join(lines) + "\n"


def _origin(info: Mapping[str, Any], real: bool) -> list[str]:
    """What of the data the images may show."""
    if real:
        return ["- These are training images, or parts of them: who has the set has these records."]
    lines = [
        "- The images are made for training networks. They need not look like the data.",
        "- Condensing is no protection of privacy by itself: an image may resemble the records it was made from.",
    ]
    if info.get("init", "noise") != "noise":
        lines.append("- The images began as real ones, and each may still look much like its own.")
    return lines


def _network(condensed: CondensedSet) -> str:
    """What the images were looked at through when they were made; a method's teacher goes before the run's network."""
    info = condensed.info
    taught, named = info.get("teacher_file"), (info.get("options") or {}).get("teacher")
    if taught or named:
        return f"{taught['arch'] if taught else named} (the teacher)"
    arch = info.get("arch") or "?"
    if info.get("method") in WITHOUT_NETWORK:
        return f"no network; labels are those of {arch}" if condensed.soft else "no network"
    return str(arch)


def _pictures(condensed: CondensedSet) -> list[str]:
    """What the card says of images/."""
    channels = condensed.domain.shape[0]
    if channels not in PNG_CHANNELS:
        return [f"Images of {channels} channels cannot be written as PNG: `images/` holds grids alone."]
    return [
        "`images/` holds the decoded images as 8-bit PNG for `torchvision.datasets.ImageFolder`, each in the folder of",
        "the class it was made for; rounding changes them a little, and soft labels are in the safetensors file alone.",
    ]


def _text(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
