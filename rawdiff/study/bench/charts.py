"""Charts as SVG that takes its colours from the page around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLOURS", "Bar", "Point", "Slice", "bars", "legend", "scatter", "stack"]

COLOURS = 8
"""The page's `--c0`, `--c1`, ... for slices, one after the other."""
WIDTH = 960.0
NAME, NUMBER = 225.0, 130.0
"""Points left of the bars for names, and right of them for numbers."""
LEFT, TOP, PLANE = 56.0, 34.0, (WIDTH - 76.0, 330.0)
"""Where a scatter's plane begins, and how large it is."""

Tick = tuple[float, str]
"""A share of an axis, and what is written there."""


@dataclass(frozen=True)
class Slice:
    """A part of a whole."""

    name: str
    value: float
    said: str
    """What it says when pointed at, and in the legend."""


@dataclass(frozen=True)
class Bar:
    """A value with its range, and a word behind it."""

    name: str
    value: float
    low: float
    high: float
    said: str
    kind: str
    """A class of the page: "base", "exact" or "approximate"."""


@dataclass(frozen=True)
class Point:
    """A place in a plane, its axes from 0 to 1."""

    name: str
    """A letter or two."""
    x: float
    y: float
    said: str
    kind: str


def stack(slices: Sequence[Slice]) -> str:
    """One bar made of slices, a share of the width each."""
    whole = sum(part.value for part in slices) or 1.0
    shapes, left = [], 0.0
    for k, part in enumerate(slices):
        width = WIDTH * part.value / whole
        shapes.append(
            f'<rect class="c{k % COLOURS}" x="{left:.2f}" y="0" width="{max(0.0, width - 1.5):.2f}" height="44" rx="2">'
            f"<title>{escape(part.name)}: {escape(part.said)}</title></rect>"
        )
        if width > 9.0 * len(part.name) + 10:
            middle = left + width / 2
            shapes.append(
                f'<text class="on" x="{middle:.2f}" y="27" text-anchor="middle">{escape(part.name)}</text>'
            )
        left += width
    return _svg(WIDTH, 44, "shares of the whole", shapes)


def legend(slices: Sequence[Slice]) -> str:
    """The names of a stack's slices beside their colours."""
    items = [
        f'<li><i class="c{k % COLOURS}"></i>{escape(part.name)} <b>{escape(part.said)}</b></li>'
        for k, part in enumerate(slices)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def bars(rows: Sequence[Bar], mark: float) -> str:
    """A bar a row from zero, its range as a line over it, and a line through all of them at `mark`."""
    most = max([mark, *(row.high for row in rows)]) or 1.0
    scale, high = (WIDTH - NAME - NUMBER) / most, 26.0
    x, height = NAME + scale * mark, high * len(rows)
    shapes = [f'<path class="mark" d="M{x:.2f} 0V{height:g}"/>']
    for k, row in enumerate(rows):
        y, end = k * high, NAME + scale * row.value
        low, top = NAME + scale * row.low, NAME + scale * row.high
        shapes += [
            f'<text x="{NAME - 10:g}" y="{y + 17:g}" text-anchor="end">{escape(row.name)}</text>',
            f'<rect class="{row.kind}" x="{NAME:g}" y="{y + 5:g}" width="{end - NAME:.2f}" height="16" rx="2"/>',
            f'<path class="range" d="M{low:.2f} {y + 13:g}H{top:.2f}M{low:.2f} {y + 9:g}v8M{top:.2f} {y + 9:g}v8"/>',
            f'<text class="faint" x="{top + 9:.2f}" y="{y + 17:g}">{escape(row.said)}</text>',
        ]
    return _svg(WIDTH, height, "seconds a picture", shapes)


def scatter(
    points: Sequence[Point], x_ticks: Sequence[Tick], y_ticks: Sequence[Tick], x_name: str, y_name: str
) -> str:
    """Points in a plane whose axes go from 0 to 1, to the right and up, with ticks at shares of each."""
    right, bottom = LEFT + PLANE[0], TOP + PLANE[1]
    shapes = []
    for share, said in x_ticks:
        x = LEFT + PLANE[0] * share
        shapes.append(f'<path class="axis" d="M{x:.1f} {TOP:g}V{bottom:g}"/>')
        shapes.append(
            f'<text class="faint" x="{x:.1f}" y="{bottom + 18:g}" text-anchor="middle">{escape(said)}</text>'
        )
    for share, said in y_ticks:
        y = bottom - PLANE[1] * share
        shapes.append(f'<path class="axis" d="M{LEFT:g} {y:.1f}H{right:g}"/>')
        shapes.append(
            f'<text class="faint" x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{escape(said)}</text>'
        )
    shapes.append(
        f'<text class="faint" x="{right:g}" y="{bottom + 38:g}" text-anchor="end">{escape(x_name)}</text>'
    )
    shapes.append(f'<text class="faint" x="{LEFT - 50:g}" y="{TOP - 12:g}">{escape(y_name)}</text>')
    for point in points:
        x, y = LEFT + PLANE[0] * point.x, bottom - PLANE[1] * point.y
        shapes.append(
            f'<g><circle class="{point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="10"/><text class="on" x="{x:.1f}" '
            f'y="{y + 4:.1f}" text-anchor="middle">{escape(point.name)}</text><title>{escape(point.said)}</title></g>'
        )
    return _svg(WIDTH, bottom + 46, f"{y_name} against {x_name}", shapes)


def _svg(width: float, height: float, title: str, shapes: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img"><title>{escape(title)}</title>{"".join(shapes)}</svg>'
