"""The world that the embedded model knows, drawn by an analytic ray caster batched in torch.

One to three solids stand on a floor under a sky. The camera looks along +z from height `h` with a shifted lens, so
that verticals stay vertical and the horizon is the row `cy`; a pixel's ray is ((u-cx)/f, (cy-v)/f, 1) and the ray's
parameter is the depth z itself. The focal length follows the picture's area: any aspect shows objects of the same
size. Nothing here needs a GPU; everything runs on one unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.embedded.palette import COLOUR_RGB, COLOURS, FLOORS, SHAPES, SKIES, SKY_LIGHT

__all__ = [
    "CUBE_HEIGHT",
    "CYLINDER_HEIGHT",
    "MAX_OBJECTS",
    "Renders",
    "Scenes",
    "render",
    "sample_scenes",
    "single",
]

MAX_OBJECTS = 3
CUBE_HEIGHT = 1.56
"""In radii: a cube's height, and so all its sides."""
CYLINDER_HEIGHT = 1.5, 0.9
"""In radii too: the least, and how much more it may be."""
FAR = 1e6


@dataclass
class Scenes:
    """A batch of scenes. Objects are in order from left to right; `kind` is -1 where there is none."""

    kind: Tensor  # [B,3] int64, index into SHAPES, or -1
    colour: Tensor  # [B,3] int64, index into COLOURS
    centre: Tensor  # [B,3,2] x and z on the floor
    radius: Tensor  # [B,3]
    height: Tensor  # [B,3]
    turn: Tensor  # [B,3] radians about the vertical
    floor: Tensor  # [B] index into FLOORS
    sky: Tensor  # [B] index into SKIES
    eye: Tensor  # [B] camera height
    horizon: Tensor  # [B] the horizon's row over the picture's height
    focal: Tensor  # [B] focal length over sqrt(H*W)
    sun: Tensor  # [B,2] direction of the light: azimuth, elevation
    shift: Tensor  # [B,2] where on the floor's and sky's texture the camera stands

    def __len__(self) -> int:
        return self.kind.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass
class Renders:
    """What `render` makes, all on the scenes' device."""

    picture: Tensor  # [B,3,H,W] 0..1
    disparity: Tensor  # [B,1,H,W] 0..1, nearest point 1, sky 0
    normal: Tensor  # [B,3,H,W] 0..1, x right, y up, z towards the viewer; sky 0.5, 0.5, 1
    ids: Tensor  # [B,H,W] int64: object 0..2, floor 3, sky 4


# ---------------------------------------------------------------------------------------------- sampling


def _uniform(g: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    return torch.rand(*shape, generator=g) * (high - low) + low


def sample_scenes(count: int, seed: int, size: tuple[int, int] = (128, 128), repeats: float = 0.12) -> Scenes:
    """`count` scenes framed for pictures of `size` (height, width); a function of its arguments alone.

    Colours in a scene differ; shapes differ too, but for a share `repeats` of the scenes.
    """
    g = torch.Generator().manual_seed(seed)
    aspect_w = math.sqrt(size[1] / size[0])  # picture width over sqrt(area)
    aspect_h = 1 / aspect_w
    focal = _uniform(g, count, low=0.95, high=1.25)
    eye = _uniform(g, count, low=1.2, high=2.3)
    horizon = _uniform(g, count, low=0.22, high=0.46)
    number = torch.multinomial(torch.tensor([0.3, 0.4, 0.3]), count, replacement=True, generator=g) + 1
    kind = torch.full((count, MAX_OBJECTS), -1)
    colour = torch.zeros(count, MAX_OBJECTS, dtype=torch.int64)
    centre = torch.zeros(count, MAX_OBJECTS, 2)
    radius = torch.ones(count, MAX_OBJECTS)
    height = torch.ones(count, MAX_OBJECTS)
    repeat = torch.rand(count, generator=g) < repeats
    for b in range(count):
        n = int(number[b])
        colour[b] = torch.randperm(len(COLOURS), generator=g)[:MAX_OBJECTS]
        kind[b, :n] = torch.randperm(len(SHAPES), generator=g)[:n]
        if repeat[b] and n > 1:
            kind[b, :n] = kind[b, 0]
        placed = _place(
            g, n, float(focal[b]), float(eye[b]), float(horizon[b]) * aspect_h, aspect_w, aspect_h
        )
        centre[b, :n], radius[b, :n] = placed[:, :2], placed[:, 2]
        squat = _uniform(g, n, low=0.0, high=1.0)
        for k in range(n):
            name, r = SHAPES[int(kind[b, k])], radius[b, k]
            height[b, k] = {
                "sphere": 2 * r,
                "cube": CUBE_HEIGHT * r,
                "cylinder": r * (CYLINDER_HEIGHT[0] + CYLINDER_HEIGHT[1] * squat[k]),
                "cone": r * (1.9 + 0.7 * squat[k]),
            }[name]
    return Scenes(
        kind=kind,
        colour=colour,
        centre=centre,
        radius=radius,
        height=height,
        turn=_uniform(g, count, MAX_OBJECTS, low=0, high=math.pi / 2),
        floor=torch.randint(len(FLOORS), (count,), generator=g),
        sky=torch.randint(len(SKIES), (count,), generator=g),
        eye=eye,
        horizon=horizon,
        focal=focal,
        sun=torch.stack(
            [_uniform(g, count, low=-2.2, high=2.2), _uniform(g, count, low=0.6, high=1.1)], dim=1
        ),
        shift=_uniform(g, count, 2, low=-40, high=40),
    )


def single(scenes: Scenes) -> Scenes:
    """Those that hold one object."""
    return scenes[((scenes.kind >= 0).sum(1) == 1).nonzero().flatten()]


def _place(
    g: torch.Generator, n: int, focal: float, eye: float, horizon: float, width: float, height: float
) -> Tensor:
    """[n,3] x, z, radius of `n` objects from left to right: inside the picture, standing apart, each well seen."""
    for attempt in range(400):
        crowd = 1.0 - 0.0015 * attempt  # after many failures, smaller objects
        r = _uniform(g, n, low=0.55, high=(1.05, 0.95, 0.82)[n - 1]) * crowd
        z = _uniform(g, n, low=3.6, high=(5.6, 6.2, 6.8)[n - 1])
        half = r * focal / z * 1.08  # half width in the picture, in units of sqrt(area)
        reach = width / 2 - half - 0.01
        bottom = horizon + focal * eye / (z - r)  # the lowest row touched
        u = (torch.rand(n, generator=g) * 2 - 1) * reach
        order = u.argsort()
        r, z, half, reach, bottom, u = (v[order] for v in (r, z, half, reach, bottom, u))
        x = u * z / focal
        if (reach < 0).any() or (bottom > height - 0.01).any():
            continue
        apart = all(
            math.hypot(x[i] - x[j], z[i] - z[j]) > 1.25 * (r[i] + r[j])
            and abs(u[i] - u[j]) > half[i] + half[j] - 0.4 * min(half[i], half[j])
            for i in range(n)
            for j in range(i)
        )
        if apart:
            return torch.stack([x, z, r], dim=1)
    # A shape of picture that holds n objects nowhere at random: a row of small ones.
    z = torch.full((n,), max(5.0, 1.2 * focal * eye / (height - horizon)))
    u = (torch.arange(n) + 0.5) / n * width - width / 2
    r = torch.full((n,), min(0.8, width / n / 2.4 * float(z[0]) / focal))
    return torch.stack([u * z / focal, z, r], dim=1)


# ---------------------------------------------------------------------------------------------- solids
# Each takes ray directions d [n,P,3], the eye's height and the object's numbers [n,1], and returns the depth [n,P]
# (FAR where missed) and the normal [n,P,3] in the world's frame (x right, y up, z away from the camera).


def _nearest_root(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    disc = b * b - a * c
    return (-b - disc.clamp(min=0).sqrt()) / a, disc > 0


def _sphere(
    d: Tensor, eye: Tensor, x: Tensor, z: Tensor, r: Tensor, h: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor]:
    dx, dy, dz = d.unbind(-1)
    oy = eye - r
    t, hit = _nearest_root(d.square().sum(-1), dy * oy - dx * x - dz * z, x * x + oy * oy + z * z - r * r)
    normal = torch.stack([(t * dx - x) / r, (t * dy + oy) / r, (t * dz - z) / r], dim=-1)
    return torch.where(hit & (t > 0), t, FAR), normal


def _cube(
    d: Tensor, eye: Tensor, x: Tensor, z: Tensor, r: Tensor, h: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor]:
    cos, sin = turn.cos(), turn.sin()
    dx, dy, dz = d.unbind(-1)
    half = h / 2
    local = torch.stack([cos * dx + sin * dz, dy, -sin * dx + cos * dz], dim=-1)
    start = torch.stack([-cos * x - sin * z, eye - half, sin * x - cos * z], dim=-1)  # [n,1,3]
    inverse = 1 / torch.where(local.abs() < 1e-9, 1e-9, local)
    a, b = (-half[..., None] - start) * inverse, (half[..., None] - start) * inverse
    near, far = torch.minimum(a, b), torch.maximum(a, b)
    t, axis = near.max(-1)
    hit = (t < far.min(-1).values) & (t > 0)
    n = F.one_hot(axis, 3).to(d.dtype) * -local.sign()
    normal = torch.stack(
        [cos * n[..., 0] - sin * n[..., 2], n[..., 1], sin * n[..., 0] + cos * n[..., 2]], dim=-1
    )
    return torch.where(hit, t, FAR), normal


def _cylinder(
    d: Tensor, eye: Tensor, x: Tensor, z: Tensor, r: Tensor, h: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor]:
    dx, dy, dz = d.unbind(-1)
    t, hit = _nearest_root(dx * dx + dz * dz, -(dx * x + dz * z), x * x + z * z - r * r)
    y = eye + t * dy
    side = torch.where(hit & (t > 0) & (y >= 0) & (y <= h), t, FAR)
    top = (h - eye) / torch.where(dy.abs() < 1e-9, 1e-9, dy)
    inside = (top * dx - x).square() + (top * dz - z).square() <= r * r
    cap = torch.where((top > 0) & inside, top, FAR)
    up = torch.tensor([0.0, 1.0, 0.0], device=d.device).expand_as(d)
    round_ = torch.stack([(t * dx - x) / r, torch.zeros_like(dx), (t * dz - z) / r], dim=-1)
    return torch.minimum(side, cap), torch.where((cap < side)[..., None], up, round_)


def _cone(
    d: Tensor, eye: Tensor, x: Tensor, z: Tensor, r: Tensor, h: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor]:
    dx, dy, dz = d.unbind(-1)
    k = (r / h).square()  # x^2 + z^2 = k (h - y)^2
    g = h - eye
    a = dx * dx + dz * dz - k * dy * dy
    b = -(dx * x + dz * z) + k * g * dy
    c = x * x + z * z - k * g * g
    disc = (b * b - a * c).clamp(min=0)
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    roots = torch.stack([(-b - disc.sqrt()) / a, (-b + disc.sqrt()) / a])
    y = eye + roots * dy
    ok = (b * b - a * c > 0) & (roots > 0) & (y >= 0) & (y <= h)
    t = torch.where(ok, roots, FAR).min(0).values
    px, py, pz = t * dx - x, eye + t * dy, t * dz - z
    normal = torch.stack([px, k * (h - py), pz], dim=-1)
    return t, F.normalize(normal, dim=-1)


_SOLIDS = (_sphere, _cube, _cylinder, _cone)


# ---------------------------------------------------------------------------------------------- textures


def _hash(x: Tensor, y: Tensor, salt: float) -> Tensor:
    """A number in 0..1 for each pair of whole numbers (floats here): a cheap, smooth-free hash."""
    v = torch.sin((x * 12.9898 + y * 78.233 + salt * 37.719) % (2 * math.pi)) * 43758.5453
    return v - v.floor()


def _noise(x: Tensor, y: Tensor, salt: float) -> Tensor:
    """Value noise in -1..1 with features about one unit across."""
    ix, iy = x.floor(), y.floor()
    fx, fy = x - ix, y - iy
    sx, sy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    low = _hash(ix, iy, salt) * (1 - sx) + _hash(ix + 1, iy, salt) * sx
    high = _hash(ix, iy + 1, salt) * (1 - sx) + _hash(ix + 1, iy + 1, salt) * sx
    return (low * (1 - sy) + high * sy) * 2 - 1


def _floor_colour(kind: Tensor, px: Tensor, pz: Tensor, distance: Tensor) -> Tensor:
    """[B,P,3] albedo of the floor at world coordinates, its texture fading with distance."""
    fade = (5.0 / distance).clamp(max=1.0) ** 1.5
    coarse = _noise(px * 0.7, pz * 0.7, 1.0)
    fine = _noise(px * 2.6, pz * 2.6, 2.0)
    grass = px.new_tensor([0.475, 0.545, 0.405]) + (0.030 * coarse + 0.045 * fine * fade)[
        ..., None
    ] * px.new_tensor([0.9, 1.0, 0.6])
    ripple = torch.sin(5.2 * pz + 1.4 * coarse + 0.6 * px)
    sand = px.new_tensor([0.82, 0.76, 0.66]) + (0.028 * ripple * fade + 0.015 * coarse)[..., None]
    tile = 1.1
    row = (pz / tile).floor()
    column = (px / tile + 0.5 * (row % 2)).floor()
    edge_x = ((px / tile + 0.5 * (row % 2)) - column - 0.5).abs()
    edge_z = (pz / tile - row - 0.5).abs()
    blur = 0.02 + 0.012 * distance
    joint = torch.sigmoid((torch.maximum(edge_x, edge_z) - 0.465) / blur * 3)
    shade = (0.10 * (_hash(column, row, 3.0) - 0.5) - 0.13 * joint) * fade + 0.012 * fine * fade
    stone = px.new_tensor([0.58, 0.58, 0.595]) + shade[..., None]
    choice = kind[:, None, None]
    return torch.where(choice == 0, grass, torch.where(choice == 1, sand, stone))


def _sky_colour(scenes: Scenes, d: Tensor, light: dict[str, Tensor]) -> Tensor:
    """[B,P,3] the sky along directions d [B,P,3] (above the horizon)."""
    up = d[..., 1].clamp(min=0)
    mix = (1 - torch.exp(-up * 3.2))[..., None]
    sky = light["horizon"] * (1 - mix) + light["zenith"] * mix
    azimuth = scenes.sun[:, :1] * 0.12
    toward = torch.exp(-((d[..., 0] - azimuth).square() + (up - 0.12).square()) * 9)
    cloud = _noise(
        d[..., 0] * 3.0 / (up + 0.35) + scenes.shift[:, :1], 5.0 * up / (up + 0.35) + scenes.shift[:, 1:], 4.0
    )
    cloudy = (cloud.clamp(min=0) * (up * 4).clamp(max=1))[..., None]
    night = (scenes.sky == SKIES.index("night"))[:, None, None]
    white = torch.where(night, 0.02, 0.10) * cloudy
    moon = torch.sigmoid((0.055 - torch.hypot(d[..., 0] - azimuth, up - 0.20)) * 160)[..., None] * 0.62
    cell_x, cell_y = (d[..., 0] * 26).floor(), (d[..., 1] * 26).floor()
    chance = _hash(cell_x + scenes.shift[:, :1].floor(), cell_y, 5.0)
    jitter_x, jitter_y = _hash(cell_x, cell_y, 6.0) * 0.5 + 0.25, _hash(cell_x, cell_y, 7.0) * 0.5 + 0.25
    off = (d[..., 0] * 26 - cell_x - jitter_x).square() + (d[..., 1] * 26 - cell_y - jitter_y).square()
    stars = ((chance > 0.86) * torch.exp(-off * 34) * 0.45)[..., None]
    return sky + light["glow"] * toward[..., None] + white + torch.where(night, moon + stars, 0.0)


# ---------------------------------------------------------------------------------------------- rendering


def _light(scenes: Scenes) -> dict[str, Tensor]:
    """Each colour of the scenes' skies as [B,1,3]."""
    device = scenes.sky.device
    return {
        name: torch.tensor([getattr(SKY_LIGHT[s], name) for s in SKIES], device=device)[scenes.sky][:, None]
        for name in ("zenith", "horizon", "sun", "ambient", "glow")
    }


def _rays(scenes: Scenes, size: tuple[int, int], sub: int) -> Tensor:
    """[B, H*sub*W*sub, 3] directions through the centres of the sub-pixels."""
    height, width = size
    device = scenes.eye.device
    focal = (scenes.focal * math.sqrt(height * width))[:, None, None]
    v = (torch.arange(height * sub, device=device) + 0.5) / sub
    u = (torch.arange(width * sub, device=device) + 0.5) / sub
    dy = (scenes.horizon[:, None, None] * height - v[None, :, None]) / focal
    dx = (u[None, None, :] - width / 2) / focal
    dx, dy = torch.broadcast_tensors(dx, dy)
    return torch.stack([dx, dy, torch.ones_like(dx)], dim=-1).flatten(1, 2)


def _trace(scenes: Scenes, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth [B,P], normal [B,P,3] and id [B,P] of the first thing that each ray meets."""
    batch, pixels, _ = d.shape
    floor = torch.where(d[..., 1] < -1e-5, scenes.eye[:, None] / -d[..., 1].clamp(max=-1e-5), FAR)
    best = floor
    ids = torch.where(floor < FAR, MAX_OBJECTS, MAX_OBJECTS + 1)
    normal = torch.tensor([0.0, 1.0, 0.0], device=d.device).expand(batch, pixels, 3).clone()
    for kind, solid in enumerate(_SOLIDS):
        for k in range(MAX_OBJECTS):
            rows = (scenes.kind[:, k] == kind).nonzero().flatten()
            if not len(rows):
                continue
            t, n = solid(
                d[rows],
                scenes.eye[rows, None],
                scenes.centre[rows, k, :1],
                scenes.centre[rows, k, 1:],
                scenes.radius[rows, k, None],
                scenes.height[rows, k, None],
                scenes.turn[rows, k, None],
            )
            closer = t < best[rows]
            best[rows] = torch.where(closer, t, best[rows])
            ids[rows] = torch.where(closer, k, ids[rows])
            normal[rows] = torch.where(closer[..., None], n, normal[rows])
    return best, normal, ids


def _shadow(scenes: Scenes, p: Tensor, towards: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """[B,P] share of sunlight and of ambient light that reaches points p [B,P,3].

    Solids cast the shadow of a rounded stand-in (a capsule), softly, and darken the floor where they touch it.
    """
    sun = torch.ones_like(p[..., 0])
    ambient = torch.ones_like(sun)
    for k in range(MAX_OBJECTS):
        rows = (scenes.kind[:, k] >= 0).nonzero().flatten()
        if not len(rows):
            continue
        q, light, other = p[rows], towards[rows], ids[rows] != k
        r, h = scenes.radius[rows, k, None], scenes.height[rows, k, None]
        x, z = scenes.centre[rows, k, :1], scenes.centre[rows, k, 1:]
        cone = scenes.kind[rows, k, None] == SHAPES.index("cone")
        to_x, to_z = x - q[..., 0], z - q[..., 2]
        for at, width in ((0.3, 0.9), (0.7, 0.86)):
            wide = r * torch.where(cone, 1.02 - at * 0.85, width)
            to_y = h * at - q[..., 1]
            along = to_x * light[..., 0] + to_y * light[..., 1] + to_z * light[..., 2]
            miss = (to_x * to_x + to_y * to_y + to_z * to_z - along * along).clamp(min=0).sqrt()
            block = (1 - ((miss - 0.78 * wide) / (0.42 * wide)).clamp(0, 1)) * (along > 0) * other
            sun[rows] = torch.minimum(sun[rows], 1 - block)
        gap = torch.hypot(to_x, to_z)
        touch = torch.exp(-(gap - 0.75 * r).clamp(min=0) / (0.30 * r) - 2.2 * q[..., 1].clamp(min=0) / r)
        ambient[rows] *= 1 - 0.42 * touch * other
    return sun, ambient


@torch.no_grad()
def render(
    scenes: Scenes,
    size: tuple[int, int],
    supersample: int = 2,
) -> Renders:
    """Draw scenes at `size` (height, width).

    Pictures are antialiased by `supersample` squared rays a pixel; depth, normals and ids are those of the ray through
    the pixel's centre. A 768x512 picture takes about 1 GB: chunk large batches.
    """
    height, width = size
    batch = len(scenes)
    light = _light(scenes)
    d = _rays(scenes, size, supersample)
    depth, normal, ids = _trace(scenes, d)
    azimuth, elevation = scenes.sun.unbind(1)
    towards = torch.stack(
        [azimuth.sin() * elevation.cos(), elevation.sin(), -azimuth.cos().abs() * elevation.cos()], dim=-1
    )
    towards = F.normalize(towards, dim=-1)[:, None]  # [B,1,3]
    point = d * depth.clamp(max=400)[..., None]
    point[..., 1] += scenes.eye[:, None]

    floor = _floor_colour(
        scenes.floor,
        point[..., 0] + scenes.shift[:, :1],
        point[..., 2] + scenes.shift[:, 1:],
        depth.clamp(max=400),
    )
    paint = torch.tensor([COLOUR_RGB[c] for c in COLOURS], device=d.device)[scenes.colour]  # [B,3,3]
    own = torch.gather(paint, 1, ids.clamp(max=MAX_OBJECTS - 1)[..., None].expand(-1, -1, 3))
    solid = (ids < MAX_OBJECTS)[..., None]
    albedo = torch.where(solid, own, floor)

    sun, ambient = _shadow(scenes, point, towards, ids)
    diffuse = (normal * towards).sum(-1).clamp(min=0) * sun
    facing = 0.82 + 0.18 * normal[..., 1]  # more light from above
    lit = albedo * (light["ambient"] * (ambient * facing)[..., None] + light["sun"] * diffuse[..., None])
    view = -F.normalize(d, dim=-1)
    half = F.normalize(view + towards, dim=-1)
    gloss = (normal * half).sum(-1).clamp(min=0) ** 40 * sun * 0.28
    lit = lit + torch.where(solid, gloss[..., None] * light["sun"], 0.0)
    haze = (1 - torch.exp(-(depth.clamp(max=400) - 7).clamp(min=0) / 32))[..., None]
    lit = torch.where(solid, lit, lit * (1 - haze) + light["horizon"] * haze)
    sky = _sky_colour(scenes, d, light)
    colour = torch.where((ids == MAX_OBJECTS + 1)[..., None], sky, lit)
    picture = colour.view(batch, height * supersample, width * supersample, 3).permute(0, 3, 1, 2)
    picture = F.avg_pool2d(picture, supersample).clamp(0, 1)

    if supersample % 2 == 0:  # no ray passes through the pixel's centre: trace those
        d = _rays(scenes, size, 1)
        depth, normal, ids = _trace(scenes, d)
    else:
        middle = supersample // 2
        depth, normal, ids = (
            v.view(batch, height, supersample, width, supersample, -1)[:, :, middle, :, middle].flatten(1, 2)
            for v in (depth, normal, ids)
        )
        depth, ids = depth[..., 0], ids[..., 0]
    depth, ids = depth.view(batch, height, width), ids.view(batch, height, width)
    disparity = torch.where(ids == MAX_OBJECTS + 1, 0.0, 1 / depth)
    disparity = disparity / disparity.amax((1, 2), keepdim=True).clamp(min=1e-9)
    normal = normal.view(batch, height, width, 3).permute(0, 3, 1, 2) * normal.new_tensor([1, 1, -1]).view(
        1, 3, 1, 1
    )
    flat = normal.new_tensor([0, 0, 1]).view(1, 3, 1, 1)
    normal = torch.where((ids == MAX_OBJECTS + 1)[:, None], flat, normal) * 0.5 + 0.5
    return Renders(picture, disparity[:, None], normal, ids)
