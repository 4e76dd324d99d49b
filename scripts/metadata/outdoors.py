"""A lake among mountains, a forest path, a street of houses: terrain, conifers, gables, in metres."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scripts.metadata.raycast import Terrain
from scripts.metadata.surfaces import Convex, Ellipsoid, Frustum, Plane, RoundBox, Surface, box, prism

__all__ = ["forest_path", "mountain_lake", "street"]

Array = NDArray[np.float64]


def _lattice(x: Array, z: Array, salt: int) -> Array:
    """A number in 0..1 for each pair of whole numbers: integer arithmetic, the same on every machine."""
    mask = np.uint64(0xFFFFFFFF)
    v = (x.astype(np.int64) * 374761393 + z.astype(np.int64) * 668265263 + salt * 974634511).astype(np.uint64)
    v &= mask
    v = ((v ^ (v >> np.uint64(13))) * np.uint64(1274126177)) & mask
    v = ((v ^ (v >> np.uint64(16))) * np.uint64(2246822519)) & mask
    return np.asarray((v ^ (v >> np.uint64(15))).astype(np.float64) / 2.0**32)


def _noise(x: Array, z: Array, salt: int) -> Array:
    """Value noise in -1..1 with features about one unit across and no creases."""
    ix, iz = np.floor(x), np.floor(z)
    fx, fz = x - ix, z - iz
    sx, sz = (f**3 * (f * (f * 6 - 15) + 10) for f in (fx, fz))
    low = _lattice(ix, iz, salt) * (1 - sx) + _lattice(ix + 1, iz, salt) * sx
    high = _lattice(ix, iz + 1, salt) * (1 - sx) + _lattice(ix + 1, iz + 1, salt) * sx
    return (low * (1 - sz) + high * sz) * 2 - 1


def _hills(x: Array, z: Array, width: float, octaves: int, salt: int) -> Array:
    """Noise of several sizes, each half as wide and under half as high as the one before."""
    total, height = np.zeros(np.broadcast(x, z).shape), 1.0
    for k in range(octaves):
        total += height * _noise((x + 13.7 * k) / width, (z - 7.3 * k) / width, salt + k)
        width, height = width / 2.03, height * 0.45
    return total


def _ridges(x: Array, z: Array, width: float, octaves: int, salt: int) -> Array:
    """Sharp crests in 0..1: noise folded at zero."""
    total, height = np.zeros(np.broadcast(x, z).shape), 0.55
    for k in range(octaves):
        total += height * (1 - np.abs(_noise((x + 31.1 * k) / width, (z + 17.9 * k) / width, salt + k))) ** 2
        width, height = width / 2.1, height * 0.42
    return total


def _smooth(low: float, high: float, v: Array) -> Array:
    f = np.asarray((v - low) / (high - low)).clip(0, 1)
    return np.asarray(f * f * (3 - 2 * f))


def _conifer(x: float, y: float, z: float, height: float) -> list[Surface]:
    """A trunk and seven cones."""
    out: list[Surface] = [Frustum((x, y - 0.3, z), 0.25 * height, 0.035 * height, 0.025 * height)]
    for k in range(7):
        low, wide = 0.09 + 0.115 * k, 0.185 - 0.022 * k
        out.append(Frustum((x, y + low * height, z), (0.24 - 0.003 * k) * height, wide * height, 0.0))
    return out


def _scatter(
    height: Callable[[Array, Array], Array],
    region: tuple[float, float, float, float],
    pitch: float,
    keep: Callable[[float, float, float], bool],
    size: tuple[float, float],
    salt: int,
) -> list[Surface]:
    """Conifers on a shaken grid over (left, near, right, far), where `keep(x, y, z)` lets them stand."""
    left, near, right, far = region
    out: list[Surface] = []
    for i in range(int((right - left) / pitch)):
        for j in range(int((far - near) / pitch)):
            cell = np.array([[float(i)], [float(j)]])
            r = [float(_lattice(cell[0], cell[1], salt + k)[0]) for k in range(3)]
            x, z = left + (i + r[0]) * pitch, near + (j + r[1]) * pitch
            y = float(height(np.array([x]), np.array([z]))[0])
            if keep(x, y, z):
                out += _conifer(x, y, z, size[0] + (size[1] - size[0]) * r[2])
    return out


def mountain_lake() -> list[Surface]:
    """A cabin and conifers on the shore of a lake, hills behind it, mountains behind those."""

    def height(x: Array, z: Array) -> Array:
        shore = _smooth(0.0, 1.0, (95 - z - 0.45 * x + 7 * _noise(x / 26, z / 26, 40)) / 50)
        left = _smooth(-20, -170, x + 0.18 * (z - 60)) * 46
        right = _smooth(55, 210, x - 0.22 * (z - 60)) * 58
        back = _smooth(330, 560, z + 30 * _noise(x / 120, z / 120, 41)) * 45
        peaks = _smooth(620, 1900, z) * (40 + 430 * _ridges(x, z, 900, 5, 50))
        rough = _hills(x, z, 60, 4, 60)
        land = -6 + 13 * shore + left + right + back + peaks
        land += rough * (0.5 + 0.13 * (land.clip(0, 120)))
        return land

    def shape(x: Array, z: Array) -> Array:
        return np.maximum(height(x, z), 0.0)

    def wooded(x: float, y: float, z: float) -> bool:
        return 1.2 < y < 60 and math.hypot(x + 15, z - 50) > 11 and not (z < 50 and -17 < x < 14)

    x, z = -15.0, 50.0
    y = float(height(np.array([x]), np.array([z]))[0]) - 0.4
    cabin: list[Surface] = [
        box((x - 4, y, z - 3), (x + 4, y + 3.3, z + 3)),
        prism((x - 4.7, y + 3.2, z - 3.8), (x + 4.7, y + 6.2, z + 3.8), ridge="x"),
        box((x + 1.6, y + 3, z - 1), (x + 2.5, y + 7.4, z)),
        box((x - 0.7, y, z - 3.1), (x + 0.5, y + 2.4, z - 2.9)),
        box((x - 4.6, y, z - 5.0), (x + 4.6, y + 0.5, z - 2.8)),
        *(Frustum((x + at, y, z - 4.8), 3.3, 0.14, 0.14) for at in (-4.4, -1.6, 1.6, 4.4)),
        box((x - 4.7, y + 3.0, z - 5.1), (x + 4.7, y + 3.25, z - 2.8)),
    ]
    pier: list[Surface] = [
        box((9.0, 0.7, 60), (11.6, 1.0, 92)),
        *(Frustum((at, -1, 68 + 5 * k), 3.0, 0.2, 0.2) for k in range(5) for at in (9.0, 11.6)),
    ]
    return [
        Terrain(shape, 4, 9000),
        *cabin,
        *pier,
        *_scatter(height, (-70, 26, -2, 150), 8.5, wooded, (9, 17), 70),
        *_scatter(height, (22, 26, 90, 150), 8.5, wooded, (9, 17), 75),
        *_scatter(height, (-260, 150, 260, 560), 17, wooded, (12, 20), 80),
    ]


def forest_path() -> list[Surface]:
    """A path that winds up between conifers to a mountain."""

    def middle(z: Array) -> Array:
        return 3.2 * np.sin(z / 11.0) * _smooth(2, 30, z) + 0.02 * z

    def height(x: Array, z: Array) -> Array:
        off = np.abs(x - middle(z))
        banks = 1.3 * _smooth(1.0, 5.0, off) + 4.5 * _smooth(6, 30, off)
        rough = 0.22 * _hills(x, z, 3.0, 4, 20) * _smooth(0.8, 2.2, off)
        rise = 0.035 * z
        peaks = _smooth(160, 900, z) * (40 + 420 * _ridges(x + 240, z, 620, 5, 30))
        return banks + rough + rise + peaks - 0.10 * _smooth(1.1, 0.6, off)

    def wooded(x: float, y: float, z: float) -> bool:
        return abs(x - float(middle(np.array([z]))[0])) > 3.0 + 0.03 * z

    rocks: list[Surface] = []
    for k, (across, z, r) in enumerate(
        [(-2.3, 5.6, 0.42), (2.5, 7.6, 0.55), (-2.8, 12.5, 0.6), (2.2, 15.5, 0.4)]
    ):
        x = across + float(middle(np.array([z]))[0])
        y = float(height(np.array([x]), np.array([z]))[0])
        rocks.append(Ellipsoid((x, y + 0.12, z), (r * 1.2, r * 0.75, r)))
        rocks.append(Ellipsoid((x + 0.5 * r * (-1) ** k, y, z - 0.3), (r * 0.6, r * 0.45, r * 0.5)))
    return [
        Terrain(height, 1.5, 6000),
        *rocks,
        *_scatter(height, (-22, 7, 22, 60), 4.2, wooded, (7, 13), 90),
        *_scatter(height, (-70, 60, 70, 170), 8, wooded, (9, 16), 95),
    ]


def _house(side: int, front: float, z: float, width: float, storeys: int, gable: bool) -> list[Surface]:
    """A house along the street (its front at x = side*front): windows, a door, a roof, a chimney."""
    storey, deep = 2.9, 8.0
    top = 0.4 + storeys * storey
    inner, outer = side * front, side * (front + deep)
    low, high = min(inner, outer), max(inner, outer)

    def slab(out: float, back: float, y0: float, y1: float, z0: float, z1: float) -> Convex:
        a, b = inner - side * out, inner + side * back
        return box((min(a, b), y0, z0), (max(a, b), y1, z1))

    parts: list[Surface] = [box((low, 0, z), (high, top, z + width))]
    if gable:
        parts.append(prism((low - 0.3, top, z), (high + 0.3, top + 0.62 * width, z + width), ridge="x"))
        parts.append(slab(0.10, 0, top - 0.1, top + 0.12, z, z + width))
    else:
        parts.append(
            prism((low - 0.5, top - 0.1, z - 0.1), (high + 0.5, top + 3.6, z + width + 0.1), ridge="z")
        )
    middle = (low + high) / 2
    parts.append(box((middle - 0.45, top, z + 0.5), (middle + 0.45, top + 4.9, z + 1.3)))
    bays = max(2, round(width / 2.4))
    for floor in range(storeys):
        for bay in range(bays):
            at = z + width * (bay + 0.5) / bays
            y = 0.4 + floor * storey
            if floor == 0 and bay == bays // 2:
                parts += [
                    slab(0.12, 0, 0, 2.65, at - 0.75, at - 0.58),
                    slab(0.12, 0, 0, 2.65, at + 0.58, at + 0.75),
                    slab(0.42, 0, 2.55, 2.75, at - 0.85, at + 0.85),
                    slab(0.70, 0, 0, 0.18, at - 0.8, at + 0.8),
                    slab(0.38, 0, 0.1, 0.34, at - 0.7, at + 0.7),
                ]
                continue
            parts += [
                slab(0.16, 0, y + 0.72, y + 0.84, at - 0.72, at + 0.72),
                slab(0.10, 0, y + 2.32, y + 2.48, at - 0.68, at + 0.68),
                slab(0.08, 0, y + 0.8, y + 2.4, at - 0.66, at - 0.52),
                slab(0.08, 0, y + 0.8, y + 2.4, at + 0.52, at + 0.66),
                slab(0.05, 0, y + 0.8, y + 2.4, at - 0.03, at + 0.03),
            ]
        if floor:
            parts.append(slab(0.09, 0, floor * storey + 0.28, floor * storey + 0.42, z, z + width))
    return parts


def _tree(x: float, z: float, height: float) -> list[Surface]:
    """A street tree: a trunk and a crown of ellipsoids."""
    out: list[Surface] = [Frustum((x, 0, z), 0.62 * height, 0.16, 0.10)]
    out.append(Ellipsoid((x, 0.70 * height, z), (0.23 * height, 0.24 * height, 0.23 * height)))
    for k in range(40):
        angle, up = 2.4 * k, 2 * (k + 0.5) / 40 - 1
        reach = 0.225 * math.sqrt(1 - up * up)
        at = (
            x + math.cos(angle) * reach * height,
            (0.70 + 0.235 * up) * height,
            z + math.sin(angle) * reach * height,
        )
        out.append(Ellipsoid(at, (0.062 * height, 0.055 * height, 0.062 * height)))
    return out


def _car(x: float, z: float) -> list[Surface]:
    """A parked car, its nose along z."""
    return [
        RoundBox((x, 0.56, z), (1.76, 0.66, 4.2), 0.22),
        RoundBox((x, 0.98, z + 0.2), (1.48, 0.84, 2.5), 0.36),
        *(
            Frustum((x + side * 0.78 - 0.1, 0.32, z + along), 0.2, 0.32, 0.32, axis="x")
            for side in (-1, 1)
            for along in (-1.3, 1.3)
        ),
    ]


def _lamp(side: int, x: float, z: float) -> list[Surface]:
    return [
        Frustum((x, 0, z), 0.7, 0.14, 0.09),
        Frustum((x, 0.7, z), 4.2, 0.065, 0.045),
        Frustum((x, 4.85, z), 0.5, 0.14, 0.24),
        Frustum((x, 5.35, z), 0.22, 0.28, 0.03),
    ]


def street() -> list[Surface]:
    """Houses on both sides of a street with pavements, trees, lamps and parked cars; a church tower at its end."""
    out: list[Surface] = [
        Plane((0, 1, 0), 0.0),
        box((-9, -1, -2), (-3.9, 0.15, 130)),
        box((3.9, -1, -2), (9, 0.15, 130)),
    ]
    widths = ((6.0, 7.2, 5.6, 6.6, 7.5, 5.8, 6.9), (7.0, 5.6, 6.8, 6.2, 7.4, 6.0, 6.6))
    storeys = ((2, 3, 2, 2, 3, 2, 3), (3, 2, 2, 3, 2, 3, 2))
    gables = ((True, False, True, False, False, True, False), (False, True, True, False, True, False, True))
    for side, wide, levels, gable in zip((-1, 1), widths, storeys, gables, strict=True):
        z = 2.0
        for w, n, g in zip(wide, levels, gable, strict=True):
            out += _house(side, 6.6, z, w, n, g)
            z += w + 0.15
    for z in (13.0, 27.0, 41.0):
        out += _tree(-4.7, z, 5.6) + _tree(4.8, z + 6, 5.2)
    for z in (7.5, 21.0, 35.0):
        out += _lamp(1, 4.4, z) + _lamp(-1, -4.4, z + 12)
    for x, z in ((-2.9, 10.0), (2.9, 15.0), (-2.9, 20.5), (2.9, 29.0), (-2.9, 33.0), (2.9, 35.5)):
        out += _car(x, z)
    out += [
        box((-3.2, 0, 72), (3.2, 17, 78)),
        box((-3.5, 16.6, 71.7), (3.5, 17.2, 78.3)),
        Frustum((0, 17.2, 75), 13, 3.2, 0.0),
        box((-9, 0, 76), (9, 9, 100)),
        prism((-9.5, 9, 76), (9.5, 15, 100), ridge="z"),
    ]
    return out
