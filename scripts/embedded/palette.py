"""The words of the world and what they look like: colours, shapes, floors, skies.

Objects are strongly coloured and everything else is muted, so that a picture's objects can be found, and their colours
read, from chroma alone (see metrics.py). Colours are sRGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["COLOURS", "COLOUR_RGB", "FLOORS", "SHAPES", "SKIES", "SKY_LIGHT", "Light", "oklab"]

COLOUR_RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.10, 0.12),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.96, 0.84, 0.08),
    "green": (0.12, 0.66, 0.16),
    "cyan": (0.0, 0.80, 0.80),
    "blue": (0.12, 0.28, 0.92),
    "purple": (0.50, 0.16, 0.80),
    "pink": (0.98, 0.42, 0.72),
}
COLOURS = tuple(COLOUR_RGB)
SHAPES = ("sphere", "cube", "cylinder", "cone")
FLOORS = ("grass", "sand", "stone")
SKIES = ("daylight", "sunset", "night")


@dataclass(frozen=True)
class Light:
    """What a sky does to a scene: its own gradient, the sun's (or moon's) colour and the ambient colour."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    glow: tuple[float, float, float]  # colour added round the sun or moon


SKY_LIGHT: dict[str, Light] = {
    "daylight": Light(
        (0.58, 0.69, 0.81), (0.85, 0.90, 0.94), (0.46, 0.45, 0.43), (0.66, 0.67, 0.69), (0.10, 0.09, 0.06)
    ),
    "sunset": Light(
        (0.52, 0.49, 0.56), (0.90, 0.77, 0.69), (0.46, 0.40, 0.36), (0.60, 0.57, 0.57), (0.08, 0.05, 0.01)
    ),
    "night": Light(
        (0.050, 0.058, 0.088),
        (0.150, 0.165, 0.205),
        (0.27, 0.28, 0.30),
        (0.41, 0.42, 0.45),
        (0.16, 0.17, 0.18),
    ),
}


def oklab(rgb: Tensor) -> Tensor:
    """sRGB [..., 3] in 0..1 to Oklab [..., 3] (L in 0..1, a, b). Source: Ottosson 2020, A perceptual color space."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    to_lms = rgb.new_tensor(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = rgb.new_tensor(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return (linear @ to_lms.T).clamp(min=0).pow(1 / 3) @ to_lab.T
