"""A sampler as a picture: P, Q, R and W as fields of colour, warm above zero and cool below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rawdiff.errors import UsageError
from rawdiff.images import check_writable, write_file
from rawdiff.paths import expanded
from rawdiff.sampler import SamplerTable
from rawdiff.study.scene import PAPER, Colour, Scene

__all__ = ["MAX_ROWS", "check_plot_path", "draw_table", "write_plot"]

MAX_ROWS = 200
PANEL = 300.0
MARGIN, GAP, TOP = 56.0, 52.0, 100.0
WARM: Colour = (196, 74, 40)
COOL: Colour = (34, 96, 152)
PALE: Colour = (243, 244, 246)
FAINT: Colour = (110, 120, 135)


def check_plot_path(path: str | Path, *, overwrite: bool = False) -> Path:
    """`path` if a plot can be written by that name, which is free unless `overwrite`; raises UsageError."""
    path = expanded(path)
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"plot {path}: expected a name that ends in .svg or .png")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise UsageError(f"plot {path}: exists already; choose another name, or --overwrite")
    return path


def write_plot(path: str | Path, table: SamplerTable, *, overwrite: bool = False) -> Path:
    """Draw a table to a file, by its ending as SVG or PNG, its folder made; raises UsageError, ResourceError."""
    path = check_plot_path(path, overwrite=overwrite)
    scene = draw_table(table)
    check_writable(path.parent)
    data = scene.svg() if path.suffix.lower() == ".svg" else scene.png()
    return write_file(path, data, overwrite=overwrite)


def draw_table(table: SamplerTable) -> Scene:
    """Four panels: P, Q, R (row i, column j) and W (row i, its entries side by side); UsageError beyond MAX_ROWS."""
    count = len(table.rows)
    if count > MAX_ROWS:
        raise UsageError(f"plot: {count} rows; expected at most {MAX_ROWS}: take fewer steps")
    width = 2 * MARGIN + 4 * PANEL + 3 * GAP
    scene = Scene(width, TOP + PANEL + 52, f"{table.name}: P, Q, R and W")
    memory = f"{table.state_size} tensors beside x" if table.state_size else "nothing beside x"
    scene.words(MARGIN, 34, table.name, 20)
    scene.words(
        MARGIN, 54, f"{count} rows, carries {memory}, predicts {table.prediction_type}", 12, colour=FAINT
    )
    said = {"P": "of x at row j", "Q": "of the output at j", "R": "of the noise at j"}
    for k, (name, what) in enumerate(said.items()):
        _panel(
            scene,
            MARGIN + k * (PANEL + GAP),
            getattr(table, name),
            name,
            f"what x after row i has {what}",
            None,
        )
    names = ["x", "out", "n", *(f"s{k}" for k in range(table.state_size))]
    flat = table.weights.reshape(count, -1)
    left = MARGIN + 3 * (PANEL + GAP)
    _panel(scene, left, flat, "W", "what x and each s after row i has", names)
    return scene


def _panel(
    scene: Scene, left: float, matrix: NDArray[np.float64], name: str, what: str, heads: list[str] | None
) -> None:
    """One matrix; with `heads` its columns are groups of as many, one for x and one for each s."""
    rows, columns = matrix.shape
    largest = float(np.abs(matrix).max())
    scene.words(left, TOP - 12, name, 15)
    scene.words(left + 18, TOP - 12, what, 11, colour=FAINT)
    scene.rectangle(left, TOP, PANEL, PANEL, PALE)
    high, wide = PANEL / rows, PANEL / columns
    for i, j in zip(*np.nonzero(matrix), strict=True):
        value = float(matrix[i, j])
        x, y = left + j * wide, TOP + i * high
        note = f"{_place(name, i, j, heads)} = {value:.6g}"
        scene.rectangle(x, y, wide, high, _colour(value, largest), note)
    for i in _ticks(rows):
        scene.words(left - 5, TOP + (i + 0.5) * high + 3, str(i), 9, "end", FAINT)
    if heads is None:
        for j in _ticks(columns):
            scene.words(left + (j + 0.5) * wide, TOP + PANEL + 13, str(j), 9, "middle", FAINT)
    else:
        _groups(scene, left, wide, columns // len(heads), heads)
    note = f"largest {largest:.4g}" if largest else "nothing"
    scene.words(left + PANEL, TOP - 12, note, 10, "end", FAINT)


def _groups(scene: Scene, left: float, wide: float, count: int, heads: list[str]) -> None:
    """The columns' names under a panel of `count` groups, and what each group makes."""
    size = 9 if wide >= 14 else 6
    for group in range(count):
        start = left + group * len(heads) * wide
        if group:
            scene.rectangle(start - 1, TOP, 2, PANEL, PAPER)
        for j, head in enumerate(heads):
            if wide >= 9:
                scene.words(start + (j + 0.5) * wide, TOP + PANEL + 13, head, size, "middle", FAINT)
        target = "x" if group == 0 else f"s{group - 1}"
        scene.words(start + len(heads) * wide / 2, TOP + PANEL + 30, f"to {target}", 10, "middle")


def _place(name: str, i: int, j: int, heads: list[str] | None) -> str:
    if heads is None:
        return f"{name}[{i},{j}]"
    group, column = divmod(j, len(heads))
    return f"row {i}, {heads[column]} to {'x' if group == 0 else f's{group - 1}'}"


def _ticks(count: int) -> range:
    """About six numbers to count by."""
    step = next(s for s in (1, 2, 5, 10, 20, 50) if count / s <= 10 or s == 50)
    return range(0, count, step)


def _colour(value: float, largest: float) -> Colour:
    """From pale at zero to warm or cool; the root shows the small ones too."""
    share = (abs(value) / largest) ** 0.4 if largest else 0.0
    end = WARM if value > 0 else COOL
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(PALE, end, strict=True))
    return red, green, blue
