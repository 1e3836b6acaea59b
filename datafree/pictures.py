"""Pictures of a run: labelled grids of images (PNG).

Nothing here touches a file: callers get a picture or its bytes and decide where it goes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

# Dark ground, light captions: black digits, white ground and photographs all stand out, on light and dark pages alike.
GROUND = (42, 47, 54)
CAPTION = (232, 234, 237)
CELL = 64  # pixels a small image is scaled to, about
LARGEST = 128  # pixels a large image is averaged down to
WIDEST = 80  # pixels: a caption may widen its cell up to here, then it is cut
GAP = 4
FONT_SIZE = 11


def grid(
    images: Tensor, labels: Sequence[str] | None = None, *, columns: int = 10, scale: int | None = None
) -> Image.Image:
    """A grid of images, row by row, each with its caption below.

    Args:
        images: (N, C, H, W), floating point in [0, 1]; what lies outside is clipped and NaN is drawn black.
            One channel is drawn grey and three as RGB; of two the mean is drawn, of four or more the first three.
        labels: N captions, or none. A caption that is too wide is broken at a space, then cut.
        columns: Images in a row; fewer if there are fewer images.
        scale: Screen pixels per image pixel (nearest neighbour). Default: so that the longer side is about 64 pixels;
            images above 128 pixels are averaged down to that.

    Returns:
        An RGB picture.

    Raises:
        ValueError: Wrong shape or type, no images, another number of labels than images, columns or scale below 1.
    """
    if images.ndim != 4 or 0 in images.shape or not images.is_floating_point():
        raise ValueError(
            f"a grid wants floating-point images (N, C, H, W) in [0, 1], not {images.dtype} {tuple(images.shape)}"
        )
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"a grid wants one label per image: give {len(images)} labels, not {len(labels)}")
    if columns < 1 or (scale is not None and scale < 1):
        raise ValueError("a grid wants columns and scale of at least 1")
    longest = max(images.shape[2:])
    if scale is None and longest > LARGEST:
        size = [max(1, round(side * LARGEST / longest)) for side in images.shape[2:]]
        images = functional.interpolate(images.detach().float(), size=size, mode="area")
    scale = scale or max(1, round(CELL / longest))
    tiles = _pixels(images).repeat(scale, axis=1).repeat(scale, axis=2)
    count, high, wide, _ = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)

    font = _font()
    captions = [_lines(label, max(wide, WIDEST)) for label in labels or [""] * count]
    cell = max([wide] + [round(font.getlength(line) + 0.5) for lines in captions for line in lines])
    line_height = FONT_SIZE + 2
    row_height = high + line_height * max(len(lines) for lines in captions) + GAP * 2

    picture = Image.new("RGB", (columns * (cell + GAP) + GAP, rows * row_height + GAP), GROUND)
    draw = ImageDraw.Draw(picture)
    for index, (tile, lines) in enumerate(zip(tiles, captions, strict=True)):
        left = GAP + index % columns * (cell + GAP)
        top = GAP + index // columns * row_height
        picture.paste(Image.fromarray(tile), (left + (cell - wide) // 2, top))
        for number, line in enumerate(lines):
            where = (left + cell / 2, top + high + 2 + number * line_height)
            draw.text(where, line, fill=CAPTION, font=font, anchor="ma")
    return picture


def png_bytes(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [0, 1] -> (N, H, W, 3) in 0..255."""
    images = images.detach().float().cpu().nan_to_num(0.0).clamp(0, 1)
    channels = images.shape[1]
    images = images[:, :3] if channels >= 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    pixels: NDArray[np.uint8] = (images * 255).round().permute(0, 2, 3, 1).byte().numpy()
    return pixels


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: there on every machine, and it knows most alphabets."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def _lines(label: str, width: int) -> list[str]:
    """The caption as at most two lines, each at most `width` pixels wide."""
    font = _font()
    lines = label.splitlines()[:2]
    if len(lines) == 1 and font.getlength(lines[0]) > width and " " in lines[0]:
        words = lines[0].split(" ")
        # The end of a caption (a confidence) is kept whole: as many last words as fit stand in the second line.
        breaks = [[" ".join(words[:i]), " ".join(words[i:])] for i in range(1, len(words))]
        lines = next((pair for pair in breaks if font.getlength(pair[1]) <= width), breaks[-1])
    return [one_line(line, width) for line in lines]


def one_line(text: str, width: int) -> str:
    """The text in one line of printable characters, cut to so many pixels of the captions' font."""
    font, line = _font(), "".join(c if c.isprintable() else " " for c in text)
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def data_uri(data: bytes, limit: int = 300_000) -> tuple[str, int, int]:
    """A picture as an address that holds the picture itself, to stand in a page.

    Args:
        data: The bytes of a picture file.
        limit: Bytes. A larger file is scaled down and turned into JPEG, at a quarter of its width at the least.

    Returns:
        The address, and the width and height of what it holds, in pixels.

    Raises:
        ValueError: The bytes are no picture, or only a part of one.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"this is no complete picture ({error}); remove it or make it again") from error
    kind, shrunk = Image.MIME[image.format or "PNG"], image
    for tenths in (10, 7, 5, 4, 2.5):
        if len(data) <= limit:
            break
        shrunk = image.convert("RGB").resize([max(1, round(side * tenths / 10)) for side in image.size])
        buffer = io.BytesIO()
        shrunk.save(buffer, format="JPEG", quality=85)
        kind, data = "image/jpeg", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}", shrunk.width, shrunk.height
