"""Grids of pictures as PNG: rows of samples, optionally in captioned blocks side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tvmatch.files import replacing

MARGIN = 2  # pixels between pictures, before enlargement
LONGEST_NAME = 24  # characters of a row's name


def tile(pictures: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [N, H, W, C] -> one uint8 picture [rows * (H + 2), columns * (W + 2), 3] on white, row by row."""
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + MARGIN), columns * (width + MARGIN), 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + MARGIN), (index % columns) * (width + MARGIN)
        sheet[top : top + height, left : left + width] = picture if channels == 3 else picture[..., :1]
    return sheet


def enlarge(sheet: np.ndarray, target: int = 32, side: int = 8) -> np.ndarray:
    """Repeat pixels so that pictures of `side` pixels become at least about `target` wide; never shrinks."""
    factor = max(1, round(target / side))
    return sheet.repeat(factor, axis=0).repeat(factor, axis=1)


def captioned(blocks: Sequence[tuple[str, np.ndarray]], row_names: Sequence[str] = ()) -> Image.Image:
    """Blocks (caption, sheet [H, W, 3]) of equal height side by side, captions above, row names at the left."""
    font = ImageFont.load_default(size=14)
    heights = {sheet.shape[0] for _, sheet in blocks}
    if len(heights) != 1:
        raise ValueError(f"blocks must have the same height, got {sorted(heights)}.")
    height, top, gap = heights.pop(), 44, 14
    row_names = [_printable(name) for name in row_names]
    left = 12 + max((int(font.getlength(name)) for name in row_names), default=0)
    widths = [
        max(sheet.shape[1], max(int(font.getlength(line)) for line in caption.split("\n")) + 4)
        for caption, sheet in blocks
    ]
    canvas = Image.new("RGB", (left + sum(widths) + gap * len(blocks), top + height), "white")
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(row_names):
        middle = top + (row + 0.5) * height / len(row_names)
        draw.text((6, middle), name, fill="black", font=font, anchor="lm")
    x = left
    for (caption, sheet), width in zip(blocks, widths, strict=True):
        draw.multiline_text((x, 6), caption, fill="black", font=font, spacing=3)
        canvas.paste(Image.fromarray(sheet), (x, top))
        x += width + gap
    return canvas


def save_png(picture: Image.Image | np.ndarray, path: Path) -> None:
    """Write a PNG whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with replacing(path) as file:
        image.save(file, format="PNG")


def _printable(name: str) -> str:
    """A name on one line of bounded length: folders, and so classes, may be called anything."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
