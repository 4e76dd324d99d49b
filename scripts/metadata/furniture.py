"""What rooms are made of, in metres: walls with windows, and furniture of boxes, rounded boxes and frustums."""

from __future__ import annotations

import math

from scripts.metadata.surfaces import Ellipsoid, Frustum, Plane, Point, RoundBox, Surface, box

__all__ = [
    "armchair",
    "bookshelf",
    "curtain",
    "floor_lamp",
    "frame",
    "legs",
    "plant",
    "shell",
    "sofa",
    "table",
]
__all__ += ["table_lamp", "wall", "window"]


def shell(half: float, height: float, depth: float) -> list[Surface]:
    """Floor, ceiling, side walls and the skirting of the back wall, which is made with its windows."""
    return [
        Plane((0, 1, 0), 0.0),
        box((-half - 1, height, -9), (half + 1, height + 1, depth + 0.3)),
        box((-half - 1, 0, -9), (-half, height, depth + 0.3)),
        box((half, 0, -9), (half + 1, height, depth + 0.3)),
        box((-half, 0, depth - 0.02), (half, 0.12, depth)),
    ]


def wall(half: float, height: float, z: float, hole: tuple[float, float, float, float]) -> list[Surface]:
    """A back wall with one opening (left, bottom, right, top), the world behind it far away."""
    left, bottom, right, top = hole
    thick = 0.3
    return [
        box((-half, 0, z), (left, height, z + thick)),
        box((right, 0, z), (half, height, z + thick)),
        box((left, 0, z), (right, bottom, z + thick)),
        box((left, top, z), (right, height, z + thick)),
        Plane((0, 0, 1), z + 14),
    ]


def window(z: float, hole: tuple[float, float, float, float], panes: tuple[int, int]) -> list[Surface]:
    """A frame with bars in an opening, and a sill."""
    left, bottom, right, top = hole
    bar = 0.035
    out: list[Surface] = []
    for k in range(panes[0] + 1):
        x = left + (right - left) * k / panes[0]
        out.append(box((x - bar, bottom, z + 0.12), (x + bar, top, z + 0.2)))
    for k in range(panes[1] + 1):
        y = bottom + (top - bottom) * k / panes[1]
        out.append(box((left, y - bar, z + 0.12), (right, y + bar, z + 0.2)))
    out.append(box((left - 0.1, bottom - 0.05, z - 0.14), (right + 0.1, bottom, z + 0.1)))
    return out


def curtain(x: float, width: float, z: float, top: float) -> list[Surface]:
    """Folds of cloth: a row of upright cylinders."""
    folds = max(2, round(width / 0.11))
    pitch = width / folds
    return [
        Frustum((x + pitch * (k + 0.5), 0.03, z), top - 0.03, pitch * 0.62, pitch * 0.56)
        for k in range(folds)
    ]


def legs(low: Point, high: Point, inset: float, radius: float) -> list[Surface]:
    return [
        Frustum((x, low[1], z), high[1] - low[1], radius * 0.7, radius)
        for x in (low[0] + inset, high[0] - inset)
        for z in (low[2] + inset, high[2] - inset)
    ]


def table(low: Point, high: Point, top: float = 0.05, radius: float = 0.035) -> list[Surface]:
    board = RoundBox(
        ((low[0] + high[0]) / 2, high[1] - top / 2, (low[2] + high[2]) / 2),
        (high[0] - low[0], top, high[2] - low[2]),
        top * 0.4,
    )
    return [board, *legs(low, (high[0], high[1] - top, high[2]), 0.1, radius)]


def floor_lamp(x: float, z: float, height: float = 1.65) -> list[Surface]:
    return [
        Frustum((x, 0, z), 0.03, 0.17, 0.16),
        Frustum((x, 0.03, z), height - 0.35, 0.015, 0.015),
        Frustum((x, height - 0.36, z), 0.36, 0.26, 0.17),
    ]


def table_lamp(x: float, y: float, z: float) -> list[Surface]:
    return [
        Ellipsoid((x, y + 0.11, z), (0.085, 0.115, 0.085)),
        Frustum((x, y + 0.2, z), 0.07, 0.02, 0.02),
        Frustum((x, y + 0.25, z), 0.21, 0.17, 0.10),
    ]


def plant(x: float, z: float, scale: float = 1.0) -> list[Surface]:
    """A pot with leaves standing out of it in a spiral."""
    out: list[Surface] = [
        Frustum((x, 0, z), 0.34 * scale, 0.13 * scale, 0.19 * scale),
        Frustum((x, 0.3 * scale, z), 0.7 * scale, 0.025, 0.02),
    ]
    for k in range(46):
        angle, up = 2.4 * k, k / 45
        reach = (0.10 + 0.26 * math.sin(math.pi * (0.15 + 0.8 * up))) * (0.75 + 0.25 * ((k * 7) % 3) / 2)
        at = (
            x + math.cos(angle) * reach * scale,
            (0.5 + 0.78 * up) * scale,
            z + math.sin(angle) * reach * scale,
        )
        out.append(Ellipsoid(at, (0.075 * scale, 0.045 * scale, 0.075 * scale)))
    return out


def frame(x: float, y: float, z: float, width: float, height: float) -> list[Surface]:
    """A picture on the back wall: a raised frame round a sunken board."""
    edge = 0.05
    return [
        box((x - width / 2, y - height / 2, z - 0.02), (x + width / 2, y + height / 2, z)),
        box((x - width / 2, y - height / 2, z - 0.05), (x - width / 2 + edge, y + height / 2, z)),
        box((x + width / 2 - edge, y - height / 2, z - 0.05), (x + width / 2, y + height / 2, z)),
        box((x - width / 2, y - height / 2, z - 0.05), (x + width / 2, y - height / 2 + edge, z)),
        box((x - width / 2, y + height / 2 - edge, z - 0.05), (x + width / 2, y + height / 2, z)),
    ]


def sofa(x: float, z: float, width: float) -> list[Surface]:
    """A sofa facing the camera, its back at z."""
    seats, arm, deep = 3 if width > 2 else 2, 0.2, 0.92
    inner = width - 2 * arm
    out: list[Surface] = [
        RoundBox((x, 0.22, z - deep / 2), (width, 0.24, deep), 0.05),
        RoundBox((x, 0.55, z - 0.13), (width, 0.62, 0.26), 0.09),
    ]
    for side in (-1, 1):
        out.append(RoundBox((x + side * (width - arm) / 2, 0.40, z - deep / 2), (arm, 0.46, deep), 0.08))
    for k in range(seats):
        at = x - inner / 2 + inner * (k + 0.5) / seats
        out.append(
            RoundBox((at, 0.42, z - deep / 2 - 0.06), (inner / seats - 0.015, 0.19, deep - 0.22), 0.07)
        )
        out.append(RoundBox((at, 0.68, z - 0.31), (inner / seats - 0.03, 0.42, 0.20), 0.09))
    out += legs((x - width / 2, 0, z - deep), (x + width / 2, 0.12, z), 0.09, 0.03)
    return out


def bookshelf(x: float, z: float, height: float, length: float) -> list[Surface]:
    """Shelves along the left wall, from x into the room, with books of many heights."""
    deep, board = 0.34, 0.035
    out: list[Surface] = []
    levels = 5
    for k in range(levels + 1):
        y = 0.05 + (height - 0.05) * k / levels
        out.append(box((x, y - board, z), (x + deep, y, z + length)))
    for at in (z, z + length / 2, z + length - board):
        out.append(box((x, 0, at), (x + deep, height, at + board)))
    out.append(box((x, 0, z), (x + 0.02, height, z + length)))
    step = (height - 0.05) / levels
    for k in range(levels):
        at, number = z + 0.06, 0
        while at < z + length - 0.12:
            thick = 0.035 + 0.012 * ((number * 7 + k * 3) % 4)
            tall = step * (0.58 + 0.08 * ((number * 5 + k) % 4))
            if (number + 2 * k) % 9 < 7 and abs(at - z - length / 2) > 0.05:
                y = 0.05 + step * k
                out.append(box((x + 0.02, y, at), (x + 0.22 + 0.012 * (number % 3), y + tall, at + thick)))
            at += thick + 0.006
            number += 1
    return out


def armchair(x: float, z: float, turn: float) -> list[Surface]:
    """An armchair turned about the vertical; at 0 it faces the camera."""
    cos, sin = math.cos(turn), math.sin(turn)

    def part(right: float, y: float, back: float, size: Point, edge: float) -> RoundBox:
        return RoundBox((x + cos * right - sin * back, y, z + sin * right + cos * back), size, edge, turn)

    return [
        part(0, 0.24, 0, (0.82, 0.24, 0.8), 0.05),
        part(0, 0.43, -0.05, (0.54, 0.18, 0.64), 0.07),
        part(0, 0.62, 0.32, (0.80, 0.70, 0.20), 0.09),
        part(-0.35, 0.44, -0.02, (0.16, 0.40, 0.76), 0.07),
        part(0.35, 0.44, -0.02, (0.16, 0.40, 0.76), 0.07),
        part(0, 0.62, 0.14, (0.42, 0.36, 0.16), 0.07),
        *(
            Frustum((x + cos * a - sin * b, 0, z + sin * a + cos * b), 0.14, 0.02, 0.03)
            for a in (-0.33, 0.33)
            for b in (-0.32, 0.32)
        ),
    ]
