"""The README's picture: what the student of a run was last shown, above the images of a condensed set.

    python scripts/picture.py RUN SET [--out docs/pictures/both.png]

RUN is a folder of `datafree train`, SET one of `datafree condense`. Nothing is chosen: the upper half is the first half
of the run's last picture, the lower one the first two images of each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

import datafree
from datafree.pictures import GAP, GROUND, grid, png_bytes

ROWS = 2


def synthesized(run: Path) -> Image.Image:
    """The first half of the rows of the run's last picture."""
    picture = Image.open(max((run / "images").glob("step-*.png"))).convert("RGB")
    return picture.crop((0, 0, picture.width, GAP + (picture.height - GAP) // 2))


def condensed(path: Path) -> Image.Image:
    """The first ROWS images of each class of a set, a class a column."""
    made = datafree.load_condensed(path)
    classes, domain = made.classes(), made.domain
    names = list(domain.class_names) or [str(label) for label in range(domain.classes)]
    picks = torch.stack([torch.nonzero(classes == label).flatten()[:ROWS] for label in range(domain.classes)], 1)
    return grid(torch.stack([made[int(row)][0] for row in picks.flatten()]), names * ROWS, columns=domain.classes)


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/both.png"))
    given = parser.parse_args()
    upper, lower = synthesized(given.run), condensed(given.set)
    whole = Image.new("RGB", (max(upper.width, lower.width), upper.height + lower.height), GROUND)
    whole.paste(upper, ((whole.width - upper.width) // 2, 0))
    whole.paste(lower, ((whole.width - lower.width) // 2, upper.height))
    given.out.write_bytes(png_bytes(whole))


if __name__ == "__main__":
    main()
