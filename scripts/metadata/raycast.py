"""A small ray caster in numpy for depth alone: surfaces, and a terrain, seen by a camera.

The world is x right, y up, z forward, in metres. The camera has a shifted lens: verticals stay vertical, whatever
the horizon's row. A pixel's ray is eye + t*d with t the distance along the camera's axis, so the depth is t itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from scripts.metadata.surfaces import Array, Ball, Point, Surface

__all__ = ["Camera", "Terrain", "cast", "disparity"]


@dataclass(frozen=True)
class Camera:
    """Where one looks from: `turn` in radians to the right, `horizon` its row over the picture's height, `focal` over
    sqrt(H*W)."""

    eye: Point
    turn: float = 0.0
    horizon: float = 0.5
    focal: float = 1.0

    def directions(self, size: tuple[int, int]) -> Array:
        """[H,W,3] rays through the pixels' centres, of length 1 along the camera's axis."""
        height, width = size
        focal = self.focal * math.sqrt(height * width)
        right = (np.arange(width) + 0.5 - width / 2) / focal
        up = (self.horizon * height - np.arange(height) - 0.5) / focal
        x, y = np.meshgrid(right, up)
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return np.stack([cos * x + sin, y, cos - sin * x], axis=-1)


@dataclass(frozen=True)
class Terrain:
    """A landscape y = height(x, z), seen between `near` and `far`."""

    height: Callable[[Array, Array], Array]
    near: float
    far: float
    samples: int = 3000
    ball: Ball | None = None

    def hit(self, eye: Array, d: Array) -> Array:
        raise TypeError("a terrain is cast column by column: see `columns`")

    def columns(self, eye: Array, d: Array) -> Array:
        """[H,W] for rays [H,W,3]: along a column only the slope differs, and the slope to the terrain, as far as it
        can be seen, only grows with the distance."""
        t = np.geomspace(self.near, self.far, self.samples)
        across = d[0]  # [W,3]
        x, z = eye[0] + t[:, None] * across[:, 0], eye[2] + t[:, None] * across[:, 2]
        slope = (self.height(x, z) - eye[1]) / t[:, None]  # [T,W]
        seen = np.maximum.accumulate(slope, axis=0)
        out = np.full(d.shape[:2], np.inf)
        for w in range(d.shape[1]):
            rise = d[:, w, 1]
            k = np.searchsorted(seen[:, w], rise)
            ok = (k > 0) & (k < self.samples)
            k = k.clip(1, self.samples - 1)
            below, above = slope[k - 1, w], slope[k, w]
            part = ((rise - below) / np.where(above > below, above - below, 1)).clip(0, 1)
            out[:, w] = np.where(ok, t[k - 1] + part * (t[k] - t[k - 1]), np.inf)
        return out


def cast(surfaces: Iterable[Surface], camera: Camera, size: tuple[int, int]) -> Array:
    """[H,W] distance along the camera's axis to the first thing met, inf in the sky."""
    eye = np.asarray(camera.eye)
    d = camera.directions(size)
    depth = np.full(size, np.inf)
    for surface in surfaces:
        if isinstance(surface, Terrain):
            depth = np.minimum(depth, surface.columns(eye, d))
            continue
        rows, columns = _window(surface.ball, camera, size)
        part = d[rows, columns]
        if part.size:
            t = surface.hit(eye, part.reshape(-1, 3)).reshape(part.shape[:2])
            depth[rows, columns] = np.minimum(depth[rows, columns], t)
    return depth


def disparity(depth: Array) -> Array:
    """[H,W] 0..1 for depths: 1/depth with its least value (the sky's is 0) moved to 0 and its greatest to 1."""
    inverse = 1 / depth
    low, high = float(inverse.min()), float(inverse.max())
    return np.asarray((inverse - low) / (high - low))


def _window(ball: Ball | None, camera: Camera, size: tuple[int, int]) -> tuple[slice, slice]:
    """The part of a picture that a ball cannot leave; all of it where the ball reaches the camera."""
    height, width = size
    everything = slice(0, height), slice(0, width)
    if ball is None:
        return everything
    (x, y, z), radius = ball
    x, y, z = x - camera.eye[0], y - camera.eye[1], z - camera.eye[2]
    cos, sin = math.cos(camera.turn), math.sin(camera.turn)
    x, z = cos * x - sin * z, sin * x + cos * z
    if z + radius <= 0:
        return slice(0, 0), slice(0, 0)
    if z - radius < 0.05:
        return everything
    focal = camera.focal * math.sqrt(height * width)

    def span(low: float, high: float, middle: float, most: int) -> slice:
        ends = [middle + focal * v / w for v in (low, high) for w in (z - radius, z + radius)]
        return slice(max(0, min(most, math.floor(min(ends)))), max(0, min(most, math.ceil(max(ends)))))

    return (
        span(-y - radius, -y + radius, camera.horizon * height, height),
        span(x - radius, x + radius, width / 2, width),
    )
