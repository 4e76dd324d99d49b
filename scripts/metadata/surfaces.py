"""Surfaces that rays can meet: convex solids, frustums, ellipsoids, rounded boxes, vaults and arches.

A surface is given the eye and directions [N,3], and answers t [N], the distance along the camera's axis, inf where it
is missed. float64 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Arch",
    "Array",
    "Ball",
    "Convex",
    "Ellipsoid",
    "Frustum",
    "Plane",
    "Point",
    "RoundBox",
    "Surface",
    "Vault",
]
__all__ += ["box", "prism"]

Array = NDArray[np.float64]
Point = tuple[float, float, float]
Ball = tuple[Point, float]  # centre and radius of a ball round the whole surface
AXES = {"x": (1, 0, 2), "y": (0, 1, 2), "z": (0, 2, 1)}  # puts the axis in the middle


class Surface(Protocol):
    """Anything that a ray can meet."""

    @property
    def ball(self) -> Ball | None: ...  # None: everywhere

    def hit(self, eye: Array, d: Array) -> Array: ...


@dataclass(frozen=True)
class Plane:
    """The points where normal . p = level."""

    normal: Point
    level: float
    ball: Ball | None = None

    def hit(self, eye: Array, d: Array) -> Array:
        normal = np.asarray(self.normal)
        t = _divide(self.level - eye @ normal, d @ normal)
        return np.where(t > 0, t, np.inf)


@dataclass(frozen=True)
class Convex:
    """What lies behind every one of some planes, normal . p <= level."""

    normals: tuple[Point, ...]
    levels: tuple[float, ...]
    ball: Ball

    def hit(self, eye: Array, d: Array) -> Array:
        enter, leave = np.full(len(d), -np.inf), np.full(len(d), np.inf)
        for normal, level in zip(self.normals, self.levels, strict=True):
            across = d @ np.asarray(normal)
            t = _divide(level - eye @ np.asarray(normal), across)
            enter = np.where(across < 0, np.maximum(enter, t), enter)
            leave = np.where(across > 0, np.minimum(leave, t), leave)
        return np.where((enter < leave) & (enter > 0), enter, np.inf)


@dataclass(frozen=True)
class Ellipsoid:
    centre: Point
    radii: Point

    @property
    def ball(self) -> Ball:
        return self.centre, max(self.radii)

    def hit(self, eye: Array, d: Array) -> Array:
        scale = np.asarray(self.radii)
        o, d = (eye - np.asarray(self.centre)) / scale, d / scale
        a, b, c = (d * d).sum(-1), d @ o, o @ o - 1
        root = np.sqrt(np.maximum(b * b - a * c, 0))
        t = (-b - root) / a
        return np.where((b * b > a * c) & (t > 0), t, np.inf)


@dataclass(frozen=True)
class Frustum:
    """A cylinder or cone from `base`, `length` along `axis`, of radius `first` there and `last` at its end; closed."""

    base: Point
    length: float
    first: float
    last: float
    axis: str = "y"

    @property
    def ball(self) -> Ball:
        centre = list(self.base)
        centre["xyz".index(self.axis)] += self.length / 2
        return (centre[0], centre[1], centre[2]), math.hypot(self.length / 2, max(self.first, self.last))

    def hit(self, eye: Array, d: Array) -> Array:
        order = list(AXES[self.axis])
        (ox, oy, oz), (dx, dy, dz) = (eye - np.asarray(self.base))[order], d[:, order].T
        slope = (self.last - self.first) / self.length
        reach = self.first + slope * oy  # the radius at the eye's height
        a = dx * dx + dz * dz - (slope * dy) ** 2
        b = ox * dx + oz * dz - slope * dy * reach
        c = ox * ox + oz * oz - reach * reach
        disc = b * b - a * c
        root = np.sqrt(np.maximum(disc, 0))
        best = np.full(len(d), np.inf)
        for sign in (-1, 1):
            t = _divide(-b + sign * root, a)
            y = oy + t * dy
            ok = (disc > 0) & (t > 0) & (y >= 0) & (y <= self.length)
            best = np.where(ok & (t < best), t, best)
        for level, radius in ((0.0, self.first), (self.length, self.last)):
            t = _divide(level - oy, dy)
            ok = (t > 0) & ((ox + t * dx) ** 2 + (oz + t * dz) ** 2 <= radius * radius)
            best = np.where(ok & (t < best), t, best)
        return best


@dataclass(frozen=True)
class Vault:
    """The inside of a tunnel along z: radius `radius` about x = `x`, y = `y`, seen above `y` only."""

    x: float
    y: float
    radius: float
    ball: Ball | None = None

    def hit(self, eye: Array, d: Array) -> Array:
        ox, oy = eye[0] - self.x, eye[1] - self.y
        dx, dy = d[:, 0], d[:, 1]
        a, b, c = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - self.radius**2
        disc = b * b - a * c
        t = _divide(-b + np.sqrt(np.maximum(disc, 0)), a)
        return np.where((disc > 0) & (t > 0) & (oy + t * dy > 0), t, np.inf)


@dataclass(frozen=True)
class Arch:
    """A half ring standing across a vault from z = `first` to `last`: its near face and its underside."""

    x: float
    y: float
    inner: float
    outer: float
    first: float
    last: float
    ball: Ball | None = None

    def hit(self, eye: Array, d: Array) -> Array:
        t = _divide(self.first - eye[2], d[:, 2])
        x, y = eye[0] + t * d[:, 0] - self.x, eye[1] + t * d[:, 1] - self.y
        across = x * x + y * y
        face = (t > 0) & (y > 0) & (across > self.inner**2) & (across < self.outer**2)
        under = Vault(self.x, self.y, self.inner).hit(eye, d)
        z = eye[2] + np.where(np.isfinite(under), under, 0) * d[:, 2]
        under = np.where((z > self.first) & (z < self.last), under, np.inf)
        return np.minimum(np.where(face, t, np.inf), under)


@dataclass(frozen=True)
class RoundBox:
    """A box with rounded edges, turned about the vertical; found by marching the distance to it."""

    centre: Point
    size: Point
    edge: float
    turn: float = 0.0

    @property
    def ball(self) -> Ball:
        return self.centre, math.hypot(*self.size) / 2

    def hit(self, eye: Array, d: Array) -> Array:
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        into = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        o, d = (eye - np.asarray(self.centre)) @ into, d @ into
        length = np.sqrt((d * d).sum(-1))
        core = np.asarray(self.size) / 2 - self.edge
        t = np.maximum(math.dist(eye, self.centre) - self.ball[1], 0) / length
        gap = np.zeros_like(t)
        for _ in range(60):
            q = np.abs(o + t[:, None] * d) - core
            gap = np.sqrt((np.maximum(q, 0) ** 2).sum(-1)) + np.minimum(q.max(-1), 0) - self.edge
            t = t + gap / length
        return np.where(np.abs(gap) < 1e-4, t, np.inf)


def box(low: Point, high: Point, turn: float = 0.0) -> Convex:
    """A box between two corners, then turned about its own vertical axis."""
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    half = [(b - a) / 2 for a, b in zip(low, high, strict=True)]
    cos, sin = math.cos(turn), math.sin(turn)
    sides = [(cos, 0.0, sin), (0.0, 1.0, 0.0), (-sin, 0.0, cos)]
    normals = [(s * x, s * y, s * z) for x, y, z in sides for s in (1.0, -1.0)]
    levels = [
        sum(n * m for n, m in zip(normal, middle, strict=True)) + half[k // 2]
        for k, normal in enumerate(normals)
    ]
    return Convex(tuple(normals), tuple(levels), ((middle[0], middle[1], middle[2]), math.hypot(*half)))


def prism(low: Point, high: Point, ridge: str = "x") -> Convex:
    """A gable roof over the rectangle from `low` to `high`, its ridge along `ridge` at high's height."""
    x, y, z = ((a + b) / 2 for a, b in zip(low, high, strict=True))
    rise = high[1] - low[1]
    along, over = (0, 2) if ridge == "x" else (2, 0)
    half = (high[over] - low[over]) / 2
    length = math.hypot(half, rise)
    normals: list[Point] = [(0.0, -1.0, 0.0)]
    levels = [-low[1]]
    for sign in (1.0, -1.0):
        roof = [0.0, half / length, 0.0]
        roof[over] = sign * rise / length
        gable = [0.0, 0.0, 0.0]
        gable[along] = sign
        normals += [(roof[0], roof[1], roof[2]), (gable[0], gable[1], gable[2])]
        levels.append(roof[1] * high[1] + roof[over] * (x if over == 0 else z))
        levels.append(max(sign * high[along], sign * low[along]))
    size = [(b - a) / 2 for a, b in zip(low, high, strict=True)]
    return Convex(tuple(normals), tuple(levels), ((x, y, z), math.hypot(*size)))


def _divide(a: Array | float, b: Array) -> Array:
    return np.asarray(a / np.where(np.abs(b) < 1e-12, 1e-12, b))
