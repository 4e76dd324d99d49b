"""Scenes of the embedded model's world, composed by hand within the ranges that it was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.embedded.palette import COLOURS, FLOORS, SHAPES, SKIES
from scripts.embedded.world import MAX_OBJECTS, Renders, Scenes, render

__all__ = ["DEMO", "SOLIDS", "Solid", "SolidScene", "build", "disparity", "picture"]


@dataclass(frozen=True)
class Solid:
    """One solid: what it is, where its middle stands across the picture (0 left, 1 right), how far, how large."""

    colour: str
    shape: str
    across: float
    z: float
    radius: float
    squat: float = 0.5  # 0..1, of cylinders and cones: low to tall
    turn: float = 0.6  # radians, of cubes


@dataclass(frozen=True)
class SolidScene:
    """One map of the embedded world with the prompt that describes it."""

    path: str  # inside metadata/
    size: tuple[int, int]  # (height, width)
    prompt: str
    solids: tuple[Solid, ...]  # from left to right
    floor: str
    sky: str
    seed: int
    eye: float = 1.7
    horizon: float = 0.36
    focal: float = 1.1
    sun: tuple[float, float] = (-0.9, 0.9)


DEMO = SolidScene(
    "demo.png",
    (512, 768),
    "a red cube on the left, a yellow sphere in the middle and a blue cone on the right on grass in daylight",
    (
        Solid("red", "cube", 0.19, 5.2, 0.75, turn=0.98),
        Solid("yellow", "sphere", 0.50, 5.0, 0.72),
        Solid("blue", "cone", 0.81, 5.1, 0.74, squat=0.8),
    ),
    "grass",
    "daylight",
    seed=7,
    eye=1.9,
    horizon=0.33,
    focal=1.08,
    sun=(0.15, 0.8),
)

SOLIDS: tuple[SolidScene, ...] = (
    DEMO,
    SolidScene(
        "No crop/2_nocrop.png",
        (384, 1024),
        "an orange sphere on the left, a cyan cube in the middle and a purple cone on the right on sand at sunset",
        (
            Solid("orange", "sphere", 0.16, 5.0, 0.72),
            Solid("cyan", "cube", 0.52, 5.4, 0.74, turn=0.95),
            Solid("purple", "cone", 0.85, 4.9, 0.70, squat=0.4),
        ),
        "sand",
        "sunset",
        seed=11,
        eye=1.4,
        horizon=0.38,
        focal=1.05,
        sun=(0.8, 0.7),
    ),
    SolidScene(
        "solids/03_tall.png",
        (768, 512),
        "a purple cylinder next to an orange ball on stone at sunset",
        (
            Solid("purple", "cylinder", 0.31, 5.2, 0.74, squat=1.0),
            Solid("orange", "sphere", 0.72, 4.5, 0.62),
        ),
        "stone",
        "sunset",
        seed=3,
        eye=2.0,
        horizon=0.38,
        focal=1.08,
    ),
    SolidScene(
        "solids/04_square.png",
        (512, 512),
        "a green cone to the left of a pink cube on sand in daylight",
        (
            Solid("green", "cone", 0.28, 4.7, 0.80, squat=0.6),
            Solid("pink", "cube", 0.72, 5.1, 0.82, turn=0.35),
        ),
        "sand",
        "daylight",
        seed=4,
        horizon=0.35,
        sun=(1.0, 0.8),
    ),
    SolidScene(
        "solids/05_moonlight.png",
        (384, 384),
        "a cyan sphere on a stone floor at night",
        (Solid("cyan", "sphere", 0.46, 4.4, 0.98),),
        "stone",
        "night",
        seed=5,
        eye=1.6,
        horizon=0.34,
    ),
    SolidScene(
        "solids/06_dunes.png",
        (512, 768),
        "a blue cylinder and a yellow cone on sand at sunset",
        (
            Solid("blue", "cylinder", 0.30, 5.2, 0.82, squat=0.2),
            Solid("yellow", "cone", 0.70, 5.5, 0.86, squat=0.8),
        ),
        "sand",
        "sunset",
        seed=6,
        eye=1.9,
        horizon=0.36,
    ),
    SolidScene(
        "solids/07_meadow_by_night.png",
        (768, 512),
        "one yellow cone with a pink sphere and a green cube, in a meadow, under the stars",
        (
            Solid("yellow", "cone", 0.22, 5.4, 0.66, squat=1.0),
            Solid("pink", "sphere", 0.50, 4.2, 0.58),
            Solid("green", "cube", 0.79, 5.8, 0.66, turn=0.25),
        ),
        "grass",
        "night",
        seed=8,
        eye=2.1,
        horizon=0.33,
        focal=1.0,
    ),
    SolidScene(
        "solids/08_three_cubes.png",
        (512, 512),
        "a red cube on the left, a green cube in the middle and a blue cube on the right on paving stones at noon",
        (
            Solid("red", "cube", 0.20, 5.0, 0.62, turn=0.35),
            Solid("green", "cube", 0.52, 6.0, 0.66, turn=0.80),
            Solid("blue", "cube", 0.81, 4.9, 0.60, turn=1.15),
        ),
        "stone",
        "daylight",
        seed=9,
        horizon=0.34,
        eye=2.0,
        sun=(-0.4, 0.75),
    ),
    SolidScene(
        "solids/09_far_apart.png",
        (384, 1024),
        "a pink ball on the left and a green drum on the right on a lawn under a clear sky",
        (
            Solid("pink", "sphere", 0.18, 4.7, 0.78),
            Solid("green", "cylinder", 0.78, 5.2, 0.82, squat=0.5),
        ),
        "grass",
        "daylight",
        seed=10,
        eye=1.35,
        horizon=0.36,
        focal=1.0,
        sun=(0.7, 0.85),
    ),
    SolidScene(
        "solids/10_one_behind_the_other.png",
        (512, 768),
        "an orange cylinder, a purple sphere on a beach by day",
        (
            Solid("orange", "cylinder", 0.41, 6.0, 0.80, squat=0.5),
            Solid("purple", "sphere", 0.62, 4.3, 0.70),
        ),
        "sand",
        "daylight",
        seed=12,
        eye=2.0,
        horizon=0.30,
        sun=(-0.7, 0.75),
    ),
    SolidScene(
        "solids/11_evening.png",
        (384, 384),
        "a red drum next to a cyan cone on grass in the evening",
        (
            Solid("red", "cylinder", 0.29, 4.8, 0.76, squat=0.2),
            Solid("cyan", "cone", 0.71, 4.6, 0.72, squat=0.9),
        ),
        "grass",
        "sunset",
        seed=13,
        horizon=0.37,
    ),
    SolidScene(
        "solids/12_native.npy",
        (128, 128),
        "a yellow cube to the left of a blue sphere on stone tiles in daylight",
        (
            Solid("yellow", "cube", 0.29, 5.0, 0.80, turn=0.5),
            Solid("blue", "sphere", 0.71, 4.7, 0.76),
        ),
        "stone",
        "daylight",
        seed=14,
    ),
)


def build(scene: SolidScene) -> Scenes:
    """The scene as the world knows it, in float64: a batch of one."""
    height, width = scene.size
    missing = MAX_OBJECTS - len(scene.solids)
    aspect_w = math.sqrt(width / height)

    def rows(values: Sequence[float], fill: float) -> torch.Tensor:
        return torch.tensor([[*values, *[fill] * missing]], dtype=torch.float64)

    tall = [
        {
            "sphere": 2 * s.radius,
            "cube": 1.56 * s.radius,
            "cylinder": s.radius * (1.5 + 0.9 * s.squat),
            "cone": s.radius * (1.9 + 0.7 * s.squat),
        }[s.shape]
        for s in scene.solids
    ]
    x = rows([(s.across - 0.5) * aspect_w * s.z / scene.focal for s in scene.solids], 0.0)
    z = rows([s.z for s in scene.solids], 0.0)
    return Scenes(
        kind=rows([SHAPES.index(s.shape) for s in scene.solids], -1).long(),
        colour=rows([COLOURS.index(s.colour) for s in scene.solids], 0).long(),
        centre=torch.stack([x, z], dim=-1),
        radius=rows([s.radius for s in scene.solids], 1.0),
        height=rows(tall, 1.0),
        turn=rows([s.turn for s in scene.solids], 0.0),
        floor=torch.tensor([FLOORS.index(scene.floor)]),
        sky=torch.tensor([SKIES.index(scene.sky)]),
        eye=torch.tensor([scene.eye], dtype=torch.float64),
        horizon=torch.tensor([scene.horizon], dtype=torch.float64),
        focal=torch.tensor([scene.focal], dtype=torch.float64),
        sun=torch.tensor([scene.sun], dtype=torch.float64),
        shift=torch.tensor([[3.0 + scene.seed, 17.0 - scene.seed]], dtype=torch.float64),
    )


def _draw(scene: SolidScene, supersample: int) -> Renders:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # so that every machine rounds to the same 16 bits
    try:
        return render(build(scene), scene.size, supersample)
    finally:
        torch.set_default_dtype(dtype)


def disparity(scene: SolidScene) -> NDArray[np.float64]:
    """[H,W] float64 in 0..1: the nearest point is 1, the sky 0."""
    return _draw(scene, supersample=1).disparity[0, 0].numpy()


def picture(scene: SolidScene) -> NDArray[np.float64]:
    """[H,W,3] float64 in 0..1: what the world looks like there, for the eye that checks the map."""
    return _draw(scene, supersample=2).picture[0].permute(1, 2, 0).numpy()
