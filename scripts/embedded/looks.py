"""Other looks of the same world, for LoRAs to learn: paper cut-outs and chalk on a board.

A look redraws a render from what is where (its ids and depth): content stays, style changes. As in the world, objects
are strongly coloured and everything else is muted, so that metrics.py reads these pictures too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.embedded.palette import COLOUR_RGB, COLOURS, FLOORS, SKIES
from scripts.embedded.world import MAX_OBJECTS, Renders, Scenes, render

__all__ = ["LOOKS", "draw"]

PAPER_FLOOR = {"grass": (0.60, 0.66, 0.53), "sand": (0.88, 0.83, 0.74), "stone": (0.68, 0.68, 0.70)}
PAPER_SKY = {"daylight": (0.83, 0.88, 0.93), "sunset": (0.94, 0.84, 0.77), "night": (0.20, 0.21, 0.27)}
CHALK_FLOOR = {"grass": (0.17, 0.195, 0.17), "sand": (0.215, 0.20, 0.18), "stone": (0.19, 0.19, 0.20)}
CHALK_SKY = {"daylight": (0.26, 0.275, 0.29), "sunset": (0.29, 0.265, 0.255), "night": (0.10, 0.105, 0.12)}


def _blur(x: Tensor, radius: int) -> Tensor:
    """Three box blurs of [B,C,H,W], all but a Gaussian."""
    for _ in range(3):
        x = F.avg_pool2d(F.pad(x, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)
    return x


def _grow(mask: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(mask, 2 * radius + 1, 1, radius)


def _surroundings(scenes: Scenes, true: Renders, floors: dict, skies: dict) -> Tensor:
    """[B,3,H,W] flat floor and sky; under objects the floor goes on."""
    floor = torch.tensor([floors[f] for f in FLOORS])[scenes.floor][:, :, None, None]
    sky = torch.tensor([skies[s] for s in SKIES])[scenes.sky][:, :, None, None]
    rows = (true.ids == MAX_OBJECTS + 1).any(2)  # a row that shows sky anywhere lies above the horizon
    return torch.where(rows[:, None, :, None], sky, floor).expand(-1, -1, -1, true.ids.shape[2]).clone()


def _paper(scenes: Scenes, true: Renders, unit: int) -> Tensor:
    """Flat coloured sheets with a white cut edge, each throwing a soft shadow on what lies behind it."""
    picture = _surroundings(scenes, true, PAPER_FLOOR, PAPER_SKY)
    paint = torch.tensor([COLOUR_RGB[c] for c in COLOURS])[scenes.colour]  # [B,3,3]
    order = scenes.centre[..., 1].argsort(1, descending=True)  # the farthest first
    for turn in range(MAX_OBJECTS):
        k = order[:, turn]
        mask = (true.ids == k[:, None, None]).float()[:, None]
        sheet = _grow(mask, unit)
        dropped = F.pad(sheet, (2 * unit, 0, 2 * unit, 0))[..., : mask.shape[2], : mask.shape[3]]
        picture = picture * (1 - 0.45 * _blur(dropped, unit) * (1 - sheet))
        picture = torch.where(sheet > 0, 0.95, picture)
        colour = paint.gather(1, k[:, None, None].expand(-1, 1, 3))[:, 0, :, None, None]
        picture = torch.where(mask > 0, colour, picture)
    g = torch.Generator().manual_seed(int(scenes.shift.abs().sum() * 1000) % 2**31)
    grain = torch.rand(len(picture), 1, *picture.shape[2:], generator=g) - 0.5
    return picture + 0.05 * _blur(grain, 1)


def _chalk(scenes: Scenes, true: Renders, unit: int) -> Tensor:
    """A dark board on which objects are filled in with chalk: flat and bright, their rims pale, smears all over."""
    picture = _surroundings(scenes, true, CHALK_FLOOR, CHALK_SKY)
    paint = torch.tensor([COLOUR_RGB[c] for c in COLOURS])[scenes.colour]
    g = torch.Generator().manual_seed(int(scenes.shift.abs().sum() * 1000) % 2**31)
    smear = _blur(torch.rand(len(picture), 1, *picture.shape[2:], generator=g) - 0.5, 6 * unit)
    picture = picture + 0.6 * smear
    for k in range(MAX_OBJECTS):
        mask = (true.ids == k).float()[:, None]
        colour = paint[:, k, :, None, None]
        inner = 1 - _grow(1 - mask, unit)
        picture = torch.where(
            mask > 0, inner * (0.95 * colour) + (1 - inner) * (0.82 * colour + 0.18), picture
        )
    return picture


LOOKS = {"paper": _paper, "chalk": _chalk}


@torch.no_grad()
def draw(scenes: Scenes, size: tuple[int, int], look: str) -> Tensor:
    """Pictures [B,3,H,W] in 0..1 of `scenes` at `size` (height, width) in a look of LOOKS, antialiased."""
    height, width = size
    true = render(scenes, (2 * height, 2 * width), supersample=1)
    unit = max(1, round(0.016 * (height * width) ** 0.5))
    return F.avg_pool2d(LOOKS[look](scenes, true, unit), 2).clamp(0, 1)
