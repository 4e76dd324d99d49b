"""Scenes told and drawn twice, with cylinders where cubes were, so that the UNet learns what those words are worth.

A cube and a cylinder of one size differ in a few latents. Between timesteps 900 and 400, where a picture by text alone
becomes the one or the other, the noise in what there is to predict is a hundred times that difference, and after
200,000 pictures the wrong one of the two words still cost the UNet a tenth of what "cylinder" for a sphere did: cubes
came out as cylinders. Of two renders that are the same but for the shape the difference is known without any noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scripts.embedded.captions import SHAPE_WORDS
from scripts.embedded.palette import SHAPES
from scripts.embedded.world import CUBE_HEIGHT, CYLINDER_HEIGHT, Scenes

__all__ = ["Exchanged", "difference", "exchanged"]

CUBE, CYLINDER = SHAPES.index("cube"), SHAPES.index("cylinder")
TALL = CUBE_HEIGHT, CYLINDER_HEIGHT[0] + CYLINDER_HEIGHT[1] / 2  # a cube, and the usual cylinder
SEEN = (300, 950)  # the timesteps at which a shape is there to be named, and not settled yet


def exchanged(scenes: Scenes) -> Scenes:
    """The scenes with a cylinder for each cube and a cube for each cylinder, all else as it was."""
    other = scenes[:]
    cubes, cylinders = scenes.kind == CUBE, scenes.kind == CYLINDER
    other.kind = torch.where(cubes, CYLINDER, torch.where(cylinders, CUBE, scenes.kind))
    heights = torch.where(cubes, TALL[1], TALL[0]) * scenes.radius
    other.height = torch.where(cubes | cylinders, heights, scenes.height)
    return other


class Exchanged:
    """Captions as token ids, told of the exchanged scene."""

    def __init__(self, tokenizer: Any) -> None:
        cube, cylinder = (
            [self._one(tokenizer, word) for word in SHAPE_WORDS[SHAPES[kind]]] for kind in (CUBE, CYLINDER)
        )
        self.others = {**dict.fromkeys(cube, cylinder), **dict.fromkeys(cylinder, cube)}

    @staticmethod
    def _one(tokenizer: Any, word: str) -> int:
        _, token, _ = tokenizer(word).input_ids  # between start and end: one token, or an error
        return int(token)

    def __call__(self, tokens: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B,T] with a cylinder's word for a cube's and the other way about; at which of the timesteps [B]
        that makes a difference."""
        told = tokens.clone()
        for token, others in self.others.items():
            there = tokens == token
            pick = torch.randint(len(others), (int(there.sum()),), device=tokens.device)
            told[there] = torch.tensor(others, device=tokens.device)[pick]
        return told, (t >= SEEN[0]) & (t < SEEN[1]) & (told != tokens).any(1)


def difference(x0: Tensor, twin: Tensor, alpha_bar: Tensor) -> Tensor:
    """The twin's v less x0's own, where both came to the same noisy x: of v = (sqrt(a) x - x0) / sqrt(1 - a)."""
    return (x0 - twin) / (1 - alpha_bar).sqrt()
