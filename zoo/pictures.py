"""Pictures for people: contact sheets, and the equal-bits thumbnail that a tokenizer has to beat."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zoo.errors import InputError

BITS_PER_PIXEL = 24  # of an uncompressed RGB thumbnail
GAP, MARGIN = 12, 20  # pixels between cells and around the sheet
ROW_LABEL_WIDTH = 200
INK, FAINT = (32, 33, 36), (110, 114, 120)


def to_uint8(x: Any) -> np.ndarray:
    """Float images in [-1, 1] -> uint8 of the same shape: clipped, scaled to 0..255, rounded."""
    return np.rint((np.clip(np.asarray(x, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def thumbnail(image: np.ndarray, bits: float) -> tuple[np.ndarray, int]:
    """The plainest codec at the same number of bits: a tiny RGB picture, enlarged again.

    The image is area-averaged (PIL BOX) to k x k uint8, with the largest k for which 24 k^2 <= bits, at least
    1 and at most the shorter side, and enlarged back with PIL BICUBIC.

    Args:
        image: uint8 [h, w, 3].
        bits: what the tokens of this image cost.

    Returns:
        The enlarged thumbnail, uint8 [h, w, 3], and k.
    """
    h, w = image.shape[:2]
    # 1e-6: sums of logarithms fall a hair short of the whole number
    k = min(max(1, math.isqrt(int(bits / BITS_PER_PIXEL + 1e-6))), h, w)
    small = Image.fromarray(image).resize((k, k), Image.Resampling.BOX)
    return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC)), k


def save_png(image: Image.Image | np.ndarray, path: str | Path) -> None:
    """Writes a picture, or uint8 [h, w, 3], as PNG; makes the folder.

    Raises:
        InputError: the place cannot be written.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, format="PNG")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    columns: Sequence[str],
    labels: Sequence[Sequence[str]] | None = None,
    row_labels: Sequence[str] | None = None,
    scale: int = 1,
) -> Image.Image:
    """A labelled contact sheet on white.

    Every cell is `scale` times the largest image; smaller images are enlarged to it with PIL BICUBIC, keeping
    their proportions.

    Args:
        rows: uint8 images [h, w, 3], one list per row, as many in each as there are columns.
        columns: a heading per column.
        labels: a caption under each image, "" for none.
        row_labels: a name at the left of each row; one that is too long loses its middle.
        scale: how many screen pixels one pixel of the largest image gets.
    """
    layout = _layout(rows, columns, labels, row_labels, scale)
    sheet = Image.new("RGB", layout.size(len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, width, heading in zip(layout.lefts, layout.widths, columns, strict=True):
        draw.text((x + width / 2, MARGIN), heading, INK, layout.heading, anchor="ma")
    for r, row in enumerate(rows):
        top = layout.top(r)
        if row_labels:
            text = _shorten(row_labels[r], layout.caption, ROW_LABEL_WIDTH)
            right = layout.lefts[0] - GAP
            draw.text((right, top + layout.cell[1] / 2), text, FAINT, layout.caption, anchor="rm")
        for c, image in enumerate(row):
            _paste(sheet, image, layout, c, top)
            if labels:
                below = (layout.lefts[c] + layout.widths[c] / 2, top + layout.cell[1] + 5)
                draw.text(below, labels[r][c], FAINT, layout.caption, anchor="ma")
    return sheet


@dataclasses.dataclass(frozen=True)
class _Layout:
    cell: tuple[int, int]  # (width, height)
    lefts: list[int]
    widths: list[int]  # of the columns, at least cell[0]
    first_top: int
    pitch: int  # from one row's top to the next
    heading: Any
    caption: Any

    def top(self, row: int) -> int:
        return self.first_top + row * self.pitch

    def size(self, rows: int) -> tuple[int, int]:
        return self.lefts[-1] + self.widths[-1] + MARGIN, self.top(rows) - GAP + MARGIN


def _layout(rows, columns, labels, row_labels, scale) -> _Layout:
    cell = (
        scale * max(image.shape[1] for row in rows for image in row),
        scale * max(image.shape[0] for row in rows for image in row),
    )
    heading, caption = ImageFont.load_default(16), ImageFont.load_default(14)
    widths = [
        max([cell[0], heading.getlength(title)] + [caption.getlength(row[c]) for row in labels or []])
        for c, title in enumerate(columns)
    ]
    widths = [math.ceil(width) for width in widths]
    x = MARGIN
    if row_labels:
        x += GAP + math.ceil(min(ROW_LABEL_WIDTH, max(caption.getlength(name) for name in row_labels)))
    lefts = [x + sum(widths[:c]) + c * GAP for c in range(len(widths))]
    pitch = cell[1] + GAP + (22 if labels else 0)
    return _Layout(cell, lefts, widths, MARGIN + 30, pitch, heading, caption)


def _paste(sheet: Image.Image, image: np.ndarray, layout: _Layout, column: int, top: int) -> None:
    h, w = image.shape[:2]
    factor = min(layout.cell[0] / w, layout.cell[1] / h)
    shown = (max(1, round(w * factor)), max(1, round(h * factor)))
    picture = Image.fromarray(image).resize(shown, Image.Resampling.BICUBIC)
    left = layout.lefts[column] + (layout.widths[column] - shown[0]) // 2
    sheet.paste(picture, (left, top + (layout.cell[1] - shown[1]) // 2))


def _shorten(text: str, font: Any, width: float) -> str:
    """`text`, with its middle replaced by "..." until it is at most `width` pixels long."""
    kept = len(text)
    short = text
    while font.getlength(short) > width:
        kept -= 1
        short = text[: (kept + 1) // 2] + "..." + text[len(text) - kept // 2 :]
    return short
