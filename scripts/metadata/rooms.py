"""Furnished rooms, a corridor and a hall of columns, in metres."""

from __future__ import annotations

from scripts.metadata.furniture import (
    armchair,
    bookshelf,
    curtain,
    floor_lamp,
    frame,
    legs,
    plant,
    shell,
    sofa,
    table,
    table_lamp,
    wall,
    window,
)
from scripts.metadata.surfaces import Arch, Convex, Ellipsoid, Frustum, Plane, RoundBox, Surface, Vault, box

__all__ = ["bedroom", "colonnade", "corridor", "living_room"]


def living_room() -> list[Surface]:
    """A sofa before the back wall, a coffee table on a rug, an armchair, shelves, a window with curtains."""
    half, height, z = 2.9, 2.65, 5.6
    hole = (0.75, 0.85, 2.25, 2.25)
    return [
        *shell(half, height, z),
        *wall(half, height, z, hole),
        *window(z, hole, (2, 2)),
        *curtain(0.30, 0.42, z - 0.12, 2.42),
        *curtain(2.28, 0.42, z - 0.12, 2.42),
        Frustum((0.2, 2.45, z - 0.12), 2.6, 0.02, 0.02, axis="x"),
        *sofa(-0.75, z - 0.12, 2.15),
        *floor_lamp(0.62, z - 0.5),
        *frame(-1.15, 1.62, z, 0.62, 0.8),
        *frame(-0.40, 1.62, z, 0.62, 0.8),
        RoundBox((-0.45, 0.01, 3.55), (2.7, 0.025, 1.9), 0.01),
        *table((-1.05, 0.02, 3.2), (0.15, 0.42, 3.85)),
        Frustum((-0.62, 0.42, 3.5), 0.16, 0.05, 0.07),
        RoundBox((-0.2, 0.44, 3.5), (0.3, 0.04, 0.22), 0.01, 0.3),
        RoundBox((-0.2, 0.475, 3.5), (0.26, 0.03, 0.19), 0.01, 0.15),
        *armchair(1.72, 3.75, -0.75),
        *bookshelf(-half, 3.0, 2.1, 1.7),
        *plant(2.42, 5.05, 1.05),
        Frustum((-0.45, 2.05, 3.5), 0.24, 0.27, 0.08),
        Frustum((-0.45, 2.25, 3.5), 0.4, 0.008, 0.008),
    ]


def bedroom() -> list[Surface]:
    """A double bed with its head at the back wall, bedside tables with lamps, a window, a wardrobe, a bench."""
    half, height, z = 2.5, 2.6, 5.2
    hole = (-2.15, 0.80, -1.05, 2.15)
    bed = 0.55
    out = [
        *shell(half, height, z),
        *wall(half, height, z, hole),
        *window(z, hole, (2, 1)),
        *curtain(-2.48, 0.34, z - 0.12, 2.4),
        *curtain(-1.06, 0.34, z - 0.12, 2.4),
        Frustum((-2.5, 2.43, z - 0.12), 1.9, 0.018, 0.018, axis="x"),
        RoundBox((bed, 0.62, z - 0.07), (1.85, 1.24, 0.12), 0.05),
        RoundBox((bed, 0.20, z - 1.12), (1.72, 0.26, 2.05), 0.04),
        RoundBox((bed, 0.42, z - 1.12), (1.66, 0.24, 2.0), 0.08),
        RoundBox((bed, 0.45, z - 1.42), (1.80, 0.28, 1.42), 0.09),
        RoundBox((bed, 0.52, z - 1.78), (1.84, 0.20, 0.50), 0.08),
        *legs((bed - 0.86, 0, z - 2.14), (bed + 0.86, 0.1, z - 0.1), 0.08, 0.04),
        RoundBox((bed, 0.012, 3.1), (2.6, 0.024, 1.9), 0.01),
        RoundBox((bed, 0.36, 2.68), (1.35, 0.14, 0.42), 0.05),
        *legs((bed - 0.67, 0, 2.48), (bed + 0.67, 0.3, 2.88), 0.07, 0.03),
        *frame(bed, 1.78, z, 1.15, 0.62),
        box((half - 0.62, 0, 2.6), (half, 2.2, 4.2)),
        box((half - 0.64, 0.06, 2.63), (half - 0.6, 2.16, 3.38)),
        box((half - 0.64, 0.06, 3.42), (half - 0.6, 2.16, 4.17)),
        Frustum((half - 0.67, 1.0, 3.33), 0.22, 0.012, 0.012),
        Frustum((half - 0.67, 1.0, 3.47), 0.22, 0.012, 0.012),
        Frustum((0.0, 2.52, 3.3), 0.08, 0.22, 0.26),
        *armchair(-1.65, 4.05, 0.75),
    ]
    for side in (-1, 1):
        out += [
            RoundBox((bed + side * 0.42, 0.66, z - 0.36), (0.70, 0.24, 0.42), 0.11),
            RoundBox((bed + side * 0.36, 0.70, z - 0.56), (0.46, 0.28, 0.2), 0.095),
            box((bed + side * 1.2 - 0.24, 0.08, z - 0.44), (bed + side * 1.2 + 0.24, 0.55, z)),
            box((bed + side * 1.2 - 0.21, 0.33, z - 0.46), (bed + side * 1.2 + 0.21, 0.52, z - 0.4)),
            box((bed + side * 1.2 - 0.21, 0.11, z - 0.46), (bed + side * 1.2 + 0.21, 0.30, z - 0.4)),
            *table_lamp(bed + side * 1.2, 0.55, z - 0.22),
        ]
    return out


def corridor() -> list[Surface]:
    """A long corridor with panelled doors on both sides, lamps on the ceiling, a runner, a window at its end."""
    half, height, z = 1.15, 2.75, 15.0
    hole = (-0.55, 0.75, 0.55, 2.35)
    out: list[Surface] = [
        Plane((0, 1, 0), 0.0),
        Plane((0, -1, 0), -height),
        *wall(half + 0.5, height, z, hole),
        *window(z, hole, (2, 3)),
        RoundBox((0, 0.01, 8.0), (1.15, 0.024, 14.0), 0.01),
        box((-half - 0.3, height - 0.10, -1), (-half + 0.07, height, z)),
        box((half - 0.07, height - 0.10, -1), (half + 0.3, height, z)),
    ]
    doors = [1.9 + 2.6 * k for k in range(5)]
    for side in (-1, 1):
        face, deep = side * half, side * (half + 0.16)

        def slab(a: float, b: float, y0: float, y1: float, z0: float, z1: float) -> Convex:
            return box((min(a, b), y0, z0), (max(a, b), y1, z1))

        start = -1.0
        for door in doors:
            first, last = door - 0.47, door + 0.47
            out += [
                slab(face, face + side * 0.5, 0, height, start, first),
                slab(face, face + side * 0.5, 2.12, height, first, last),
                slab(face - side * 0.025, face, 0, 0.14, start, first - 0.08),
                slab(deep, deep + side * 0.05, 0, 2.12, first, last),
                slab(face - side * 0.03, face + side * 0.1, 0, 2.2, first - 0.08, first),
                slab(face - side * 0.03, face + side * 0.1, 0, 2.2, last, last + 0.08),
                slab(face - side * 0.03, face + side * 0.1, 2.12, 2.2, first - 0.08, last + 0.08),
                Ellipsoid((deep - side * 0.06, 1.02, first + 0.09), (0.045, 0.03, 0.03)),
            ]
            for low, high in ((0.18, 0.92), (1.12, 1.98)):
                for a, b in ((first + 0.1, door - 0.04), (door + 0.04, last - 0.1)):
                    out.append(slab(deep - side * 0.022, deep, low, high, a, b))
            start = last
        out.append(slab(face, face + side * 0.5, 0, height, start, z))
        for at in (3.2, 8.4):
            out += [
                slab(face - side * 0.03, face, 1.25, 2.0, at - 0.28, at + 0.28),
            ]
        for at in (5.8, 11.0):
            out += [
                Ellipsoid((face - side * 0.12, 1.75, at), (0.09, 0.13, 0.09)),
                slab(face - side * 0.12, face, 1.58, 1.64, at - 0.03, at + 0.03),
            ]
    for k in range(5):
        at = 3.2 + 2.6 * k
        out += [
            Frustum((0, height - 0.05, at), 0.05, 0.2, 0.2),
            Ellipsoid((0, height - 0.05, at), (0.18, 0.12, 0.18)),
        ]
    out += [
        *table((-0.42, 0, z - 0.42), (0.42, 0.72, z - 0.05)),
        Frustum((0, 0.72, z - 0.24), 0.26, 0.05, 0.09),
        Ellipsoid((0, 1.12, z - 0.24), (0.2, 0.2, 0.14)),
    ]
    return out


def colonnade() -> list[Surface]:
    """A hall with a barrel vault between two rows of columns, an arch of light at its end."""
    half, spring, z = 2.6, 4.4, 27.0
    out: list[Surface] = [
        Plane((0, 1, 0), 0.0),
        Vault(0.0, spring, half),
        Plane((1, 0, 0), -5.2),
        Plane((-1, 0, 0), -5.2),
        Plane((0, 0, 1), z + 25),
        box((-5.3, 0, z), (-1.25, 8, z + 0.6)),
        box((1.25, 0, z), (5.3, 8, z + 0.6)),
        box((-1.3, 4.2, z), (1.3, 8, z + 0.6)),
        Frustum((-1.05, 0.0, z - 0.35), 3.9, 0.16, 0.14),
        Frustum((1.05, 0.0, z - 0.35), 3.9, 0.16, 0.14),
        box((-1.4, 3.9, z - 0.55), (1.4, 4.2, z)),
        box((-1.6, 0, z - 0.9), (1.6, 0.16, z)),
        box((-1.9, 0, z - 1.5), (1.9, 0.08, z)),
    ]
    for side in (-1, 1):
        out += [
            box(
                (min(side * 2.55, side * 5.4), spring - 0.05, -1),
                (max(side * 2.55, side * 5.4), spring + 3, z),
            ),
            box(
                (min(side * 2.42, side * 3.2), spring - 0.35, -1),
                (max(side * 2.42, side * 3.2), spring - 0.05, z),
            ),
        ]
        for k in range(9):
            at, x = 2.6 + 2.9 * k, side * 2.8
            out += [
                box((x - 0.42, 0, at - 0.42), (x + 0.42, 0.18, at + 0.42)),
                Frustum((x, 0.18, at), 0.10, 0.40, 0.38),
                Frustum((x, 0.28, at), 0.08, 0.34, 0.32),
                Frustum((x, 0.36, at), 3.14, 0.31, 0.26),
                Frustum((x, 3.50, at), 0.06, 0.31, 0.31),
                Frustum((x, 3.56, at), 0.30, 0.27, 0.40),
                box((x - 0.42, 3.86, at - 0.42), (x + 0.42, 4.05, at + 0.42)),
                box((side * 5.2 - 0.3, 0, at - 0.3), (side * 5.2 + 0.3, 4.4, at + 0.3)),
            ]
        out += [
            Arch(0.0, spring, half - 0.16, half, 2.6 + 2.9 * k - 0.22, 2.6 + 2.9 * k + 0.22) for k in range(9)
        ]
    return out
