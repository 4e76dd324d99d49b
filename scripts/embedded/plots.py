"""A study's table as a picture: a panel for each column, a bar for each row that has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rawdiff.images import write_file
from rawdiff.study.scene import Colour, Scene
from scripts.embedded.steering import Row

__all__ = ["draw_rows", "write_rows"]

PANEL, BAR, GAP = 260.0, 18.0, 24.0
NAMES, MARGIN, TOP = 170.0, 20.0, 66.0
FILL: Colour = (34, 96, 152)
PALE: Colour = (243, 244, 246)
FAINT: Colour = (110, 120, 135)


def draw_rows(title: str, rows: Sequence[Row]) -> Scene:
    """Bars from zero to 1, or to the column's largest value where that is at most a fifth or more than 1."""
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    width = 2 * MARGIN + NAMES + len(columns) * (PANEL + GAP)
    scene = Scene(width, TOP + len(rows) * (BAR + 8) + MARGIN, title)
    scene.words(MARGIN, 30, title, 16)
    for k, row in enumerate(rows):
        scene.words(MARGIN, TOP + k * (BAR + 8) + 13, row.name, 11)
    for j, column in enumerate(columns):
        left = MARGIN + NAMES + j * (PANEL + GAP)
        most = max(row.values[column] for row in rows if column in row.values)
        whole = 1.0 if 0.2 < most <= 1 else most or 1.0
        scene.words(left, TOP - 10, column, 12)
        scene.words(left + PANEL, TOP - 10, f"to {whole:.3g}", 10, "end", FAINT)
        for k, row in enumerate(rows):
            if column not in row.values:
                continue
            top, value = TOP + k * (BAR + 8), row.values[column]
            end = left + PANEL * value / whole
            scene.rectangle(left, top, PANEL, BAR, PALE)
            scene.rectangle(left, top, end - left, BAR, FILL, f"{row.name}, {column}: {value:.4f}")
            if value > 0.8 * whole:
                scene.words(end - 6, top + 13, f"{value:.3f}", 11, "end", PALE)
            else:
                scene.words(end + 6, top + 13, f"{value:.3f}", 11, "start", FAINT)
    return scene


def write_rows(path: Path, title: str, rows: Sequence[Row]) -> Path:
    """The same as a PNG file."""
    return write_file(path, draw_rows(title, rows).png(), overwrite=True)
