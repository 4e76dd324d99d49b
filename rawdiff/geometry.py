"""Sizes. `WIDTHxHEIGHT` for people, `(height, width)` in code; pixels are 8 times latents.

A size is checked, never rounded: what does not fit is refused with the two nearest sizes that do.
"""

from __future__ import annotations

import math
import re

from rawdiff.errors import SizeError

__all__ = [
    "FACTOR",
    "MAX_SIDE_PX",
    "Size",
    "check_size",
    "format_size",
    "latent_size",
    "parse_size",
    "size_like",
]

FACTOR = 8
"""Pixels per latent along a side, for every Stable Diffusion VAE."""

MAX_SIDE_PX = 8192
"""No side is longer than this: beyond it a typing mistake is likelier than a wish."""

Size = tuple[int, int]
"""(height, width), in pixels unless a name says latents."""


def format_size(size: Size) -> str:
    """`(height, width)` as `WIDTHxHEIGHT`."""
    return f"{size[1]}x{size[0]}"


def check_size(size: Size, factor: int = FACTOR) -> Size:
    """Return `size` if both sides are positive multiples of `factor`, else raise SizeError with the nearest two."""
    height, width = size
    for side in (height, width):
        if isinstance(side, bool) or not isinstance(side, int):
            raise SizeError(
                f"size {height!r}, {width!r}: expected two whole numbers, (height, width) in pixels"
            )
    if min(size) < factor or max(size) > MAX_SIDE_PX:
        raise SizeError(
            f"size {format_size(size)}: each side must lie between {factor} and {MAX_SIDE_PX} pixels"
        )
    if height % factor or width % factor:
        smaller = tuple(max(factor, side - side % factor) for side in size)
        larger = tuple(side + -side % factor for side in size)
        raise SizeError(
            f"size {format_size(size)} is not a multiple of {factor}: "
            f"use {format_size(smaller)} or {format_size(larger)}"  # type: ignore[arg-type]
        )
    return height, width


def parse_size(text: str, factor: int = FACTOR) -> Size:
    """`"768x512"` (width x height) as `(512, 768)`; raises SizeError."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", text)
    if not match:
        raise SizeError(f"size {text!r}: expected WIDTHxHEIGHT in pixels, such as 768x512")
    return check_size((int(match[2]), int(match[1])), factor)


def latent_size(size: Size, factor: int = FACTOR) -> Size:
    """`(height, width)` in pixels as `(h, w)` in latents."""
    height, width = check_size(size, factor)
    return height // factor, width // factor


def size_like(shape: Size, area: Size, factor: int = FACTOR) -> Size:
    """The size with `shape`'s aspect and about `area`'s number of pixels; multiples of `factor`.

    Of the candidates near the exact answer the one with the closest aspect is taken, so that a map of a common
    aspect (3:2, 16:9) keeps it.
    """
    height, width = shape
    if min(shape) < 1:
        raise SizeError(f"size {format_size(shape)}: both sides must be positive")
    scale = math.sqrt(area[0] * area[1] / (height * width))
    rows = max(1, round(height * scale / factor))
    columns = max(1, round(width * scale / factor))
    candidates = [
        (r, c) for r in range(max(1, rows - 1), rows + 2) for c in range(max(1, columns - 1), columns + 2)
    ]
    aspect = math.log(width / height)
    r, c = min(
        candidates,
        key=lambda rc: (
            round(abs(math.log(rc[1] / rc[0]) - aspect), 3),
            abs(rc[0] * rc[1] * factor**2 - area[0] * area[1]),
        ),
    )
    return check_size((r * factor, c * factor), factor)
