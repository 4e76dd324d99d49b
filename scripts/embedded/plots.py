"""A study's table as a picture: a panel for each column, a bar for each row that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def draw_rows(title: str, rows: Sequence[Row], said: Mapping[str, str] | None = None) -> Scene:
    """Bars from zero to 1, or to the largest value of a column whose values are all smaller than a fifth, or larger
    than 1. `said` names the columns to draw, and how; without it all of them are drawn."""
    columns = said or {name: name for row in rows for name in row.values}
    width = 2 * MARGIN + NAMES + len(columns) * (PANEL + GAP)
    scene = Scene(width, TOP + len(rows) * (BAR + 8) + MARGIN, title)
    scene.words(MARGIN, 30, title, 16)
    for k, row in enumerate(rows):
        scene.words(MARGIN, TOP + k * (BAR + 8) + 13, row.name, 11)
    for j, (column, name) in enumerate(columns.items()):
        left = MARGIN + NAMES + j * (PANEL + GAP)
        values = [row.values[column] for row in rows if column in row.values]
        most = max(values, default=0.0)
        whole = 1.0 if 0.2 < most <= 1 else most or 1.0
        scene.words(left, TOP - 10, name, 12, colour=FAINT)
        for k, row in enumerate(rows):
            if column not in row.values:
                continue
            top, value = TOP + k * (BAR + 8), row.values[column]
            scene.rectangle(left, top, PANEL, BAR, PALE)
            scene.rectangle(left, top, PANEL * value / whole, BAR, FILL, f"{row.name}, {name}: {value:.4f}")
            inside = value > 0.8 * whole
            place = left + PANEL * value / whole + (-6 if inside else 6)
            scene.words(
                place, top + 13, f"{value:.3f}", 11, "end" if inside else "start", PALE if inside else FAINT
            )
    return scene


def write_rows(path: Path, title: str, rows: Sequence[Row], said: Mapping[str, str] | None = None) -> Path:
    """The same as a file, SVG or PNG by its ending."""
    scene = draw_rows(title, rows, said)
    return write_file(path, scene.svg() if path.suffix == ".svg" else scene.png(), overwrite=True)
