"""The README's picture: a row of synthesized images, one a class, above rows of a condensed set's.

    python scripts/picture.py RUN SET [--out docs/pictures/both.png]

RUN is a folder of `datafree train` with a generator, SET one of `datafree condense`. Of the synthesized images each
class shows the first two that the teacher takes for it, whatever they look like.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import datafree
from datafree.pictures import GROUND, grid, png_bytes

SAMPLES, ROWS, PIXELS = 400, 2, 72


def synthesized(run: Path) -> tuple[Tensor, list[str]]:
    """The first ROWS images of each class (float, [0, 1]), captioned by the class and the teacher's certainty."""
    with tempfile.TemporaryDirectory() as folder:
        out = datafree.sample(run, SAMPLES, out=Path(folder, "samples"))
        files = sorted(Path(out, "images").glob("*.png"))
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        probabilities = load_file(Path(out, "labels.safetensors"))["probabilities"]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    rows, names = (
        first_of_each(probabilities.argmax(1)),
        class_names(json.loads((run / "run.json").read_text())["domain"]),
    )
    sure = probabilities.amax(1)[rows]
    return images[rows], [f"{name}\n{share:.0%}" for name, share in zip(names * ROWS, sure, strict=True)]


def condensed(path: Path) -> tuple[Tensor, list[str]]:
    """The first ROWS images of each class of a set, with the classes' names."""
    made = datafree.load_condensed(path)
    rows = first_of_each(made.classes())
    names = class_names(dataclasses.asdict(made.domain))
    return torch.stack([made[int(row)][0] for row in rows]), names * ROWS


def first_of_each(labels: Tensor) -> Tensor:
    """Row numbers of the first ROWS images of each class: a row of one image a class, then the next."""
    held = [torch.nonzero(labels == label).flatten()[:ROWS] for label in range(int(labels.max()) + 1)]
    return torch.stack(held, 1).flatten()


def class_names(domain: dict[str, Any]) -> list[str]:
    """One name a class; numbers where there are none."""
    return list(domain["class_names"]) or [str(label) for label in range(domain["classes"])]


def below(pictures: list[Image.Image]) -> Image.Image:
    """Pictures one below the other, on the ground of the first."""
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), GROUND)
    top = 0
    for picture in pictures:
        whole.paste(picture, ((whole.width - picture.width) // 2, top))
        top += picture.height
    return whole


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/both.png"))
    given = parser.parse_args()
    rows = (synthesized(given.run), condensed(given.set))
    drawn = [grid(images, names, scale=round(PIXELS / images.shape[-1])) for images, names in rows]
    given.out.write_bytes(png_bytes(below(drawn)))


if __name__ == "__main__":
    main()
