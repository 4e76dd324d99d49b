"""What a picture shows, read from its pixels: objects' silhouettes and colours, the sky and the floor.

Objects are the strongly coloured pixels: colourfulness is Oklab chroma over lightness, which shading hardly changes.
The thresholds and centroids come from true renders and are checked on them: every metric is printed for the true
renders too, where it must be all but perfect.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.embedded.palette import COLOURS, FLOORS, SKIES, oklab
from scripts.embedded.world import MAX_OBJECTS, Scenes, render, sample_scenes

__all__ = [
    "Reading",
    "colourfulness",
    "psnr",
    "psnr_inside",
    "read_colours",
    "score_colours",
    "score_silhouette",
    "score_surroundings",
    "scores",
]

GROUND = 0.07  # the colourfulness of what is not an object, at most about this
CALIBRATION_SEED = 990_001
CHUNK = 16  # pictures measured at a time
PRESENT = 0.004  # a colour is in a picture if it covers at least this share of it
NOT_ASKED = 0.01  # a colour that was not asked for counts as an error from this share on


@dataclass(frozen=True)
class Reading:
    """Per pixel: is it an object's, and which colour is it nearest to."""

    solid: Tensor  # [B,H,W] bool
    colour: Tensor  # [B,H,W] int64, index into COLOURS


def colourfulness(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Chroma over lightness and hue in radians, each [B,H,W], of pictures [B,3,H,W] in 0..1."""
    lab = oklab(picture.permute(0, 2, 3, 1))
    return lab[..., 1:].norm(dim=-1) / (lab[..., 0] + 0.06), torch.atan2(lab[..., 2], lab[..., 1])


@cache
def _calibration() -> tuple[Tensor, Tensor, Tensor]:
    """Hue [8] and colourfulness [8] of the colours, mean Oklab [9,6] of each sky and floor: from 450 true renders."""
    scenes = sample_scenes(450, CALIBRATION_SEED, (64, 64))
    true = render(scenes, (64, 64))
    strength, hue = colourfulness(true.picture)
    own = torch.gather(scenes.colour, 1, true.ids.clamp(max=MAX_OBJECTS - 1).flatten(1)).view_as(true.ids)
    inside = -F.max_pool2d(-(true.ids < MAX_OBJECTS).float()[:, None], 3, 1, 1)[:, 0] > 0.5
    hues, strengths = [], []
    for c in range(len(COLOURS)):
        here = inside & (own == c)
        hues.append(torch.atan2(hue[here].sin().mean(), hue[here].cos().mean()))
        strengths.append(strength[here].median())
    features = _surroundings(true.picture, true.ids)
    pair = scenes.sky * len(FLOORS) + scenes.floor
    centroids = torch.stack([features[pair == p].mean(0) for p in range(len(SKIES) * len(FLOORS))])
    return torch.stack(hues), torch.stack(strengths), centroids


def read_colours(picture: Tensor) -> Reading:
    """Which pixels of pictures [B,3,H,W] in 0..1 belong to objects, and their nearest colours."""
    hues, strengths, _ = _calibration()
    picture = picture.cpu().float()
    strength, hue = colourfulness(picture)
    off = torch.remainder(hue[..., None] - hues + torch.pi, 2 * torch.pi) - torch.pi
    colour = off.abs().argmin(-1)
    return Reading(strength > 0.5 * (strengths[colour] + GROUND), colour)


def score_silhouette(reading: Reading, ids: Tensor) -> Tensor:
    """[B] intersection over union of the strongly coloured pixels with the objects of `ids` [B,H,W]."""
    true = ids.cpu() < MAX_OBJECTS
    both = (reading.solid & true).flatten(1).sum(1)
    either = (reading.solid | true).flatten(1).sum(1)
    return both / either.clamp(min=1)


def score_colours(reading: Reading, scenes: Scenes, ids: Tensor) -> tuple[int, int]:
    """(right, counted): objects whose own pixels are mostly of the asked colour, out of the objects and the colours
    that nobody asked for (where they cover at least 1% of the picture)."""
    right = counted = 0
    for b in range(len(scenes)):
        for k in range(MAX_OBJECTS):
            if scenes.kind[b, k] < 0:
                continue
            here = ids[b].cpu() == k
            seen = torch.bincount(reading.colour[b][here & reading.solid[b]], minlength=len(COLOURS))
            counted += 1
            enough = int(seen.max()) >= 0.5 * int(here.sum())
            right += int(enough and int(seen.argmax()) == int(scenes.colour[b, k]))
        asked = _asked(scenes, b)
        counted += sum(c not in asked for c in present_colours(reading, b, NOT_ASKED))
    return right, counted


def _asked(scenes: Scenes, b: int) -> set[int]:
    return {int(c) for c, k in zip(scenes.colour[b], scenes.kind[b], strict=True) if k >= 0}


def present_colours(reading: Reading, b: int, share: float = PRESENT) -> set[int]:
    """The colours that cover at least `share` of picture `b`; pixels count whose whole 3x3 neighbourhood agrees."""
    solid, colour = reading.solid[b], reading.colour[b]
    found = set()
    for c in range(len(COLOURS)):
        same = (solid & (colour == c)).float()[None, None]
        core = -F.max_pool2d(-same, 3, 1, 1)
        if float(core.mean()) >= share:
            found.add(c)
    return found


def score_exact_colours(reading: Reading, scenes: Scenes) -> Tensor:
    """[B] bool: the picture shows exactly the colours that its caption names."""
    return torch.tensor([present_colours(reading, b) == _asked(scenes, b) for b in range(len(scenes))])


def _surroundings(picture: Tensor, ids: Tensor) -> Tensor:
    """[B,6] mean Oklab of the sky's pixels and of the floor's lower half."""
    lab = oklab(picture.permute(0, 2, 3, 1))
    sky = ids == MAX_OBJECTS + 1
    floor = ids == MAX_OBJECTS
    floor = floor & (torch.arange(floor.shape[1], device=floor.device)[:, None] >= int(0.6 * floor.shape[1]))
    parts = [(lab * m[..., None]).sum((1, 2)) / m.sum((1, 2)).clamp(min=1)[:, None] for m in (sky, floor)]
    return torch.cat(parts, 1)


def score_surroundings(picture: Tensor, scenes: Scenes, ids: Tensor) -> tuple[Tensor, Tensor]:
    """([B], [B]) bool: sky right, floor right; `ids` says where to look, strongly coloured pixels apart."""
    _, _, centroids = _calibration()
    reading = read_colours(picture)
    ids = torch.where(reading.solid, 0, ids.cpu())
    distance = (_surroundings(picture.cpu().float(), ids)[:, None] - centroids).square().sum(-1)
    pair = distance.argmin(1)
    return pair // len(FLOORS) == scenes.sky, pair % len(FLOORS) == scenes.floor


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio in dB of the mean squared error over all pixels, for values in 0..1."""
    return float(-10 * torch.log10((a - b).square().mean()))


def psnr_inside(a: Tensor, b: Tensor, ids: Tensor) -> float:
    """The same over the objects' pixels alone."""
    inside = (ids < MAX_OBJECTS)[:, None].expand_as(a)
    return float(-10 * torch.log10((a - b)[inside].square().mean()))


def scores(picture: Tensor, scenes: Scenes, ids: Tensor) -> dict[str, float]:
    """Every metric of one set of pictures [B,3,H,W] in 0..1."""
    right = counted = 0
    each: list[Tensor] = []
    for at in range(0, len(scenes), CHUNK):
        part, own, seen = scenes[at : at + CHUNK], ids[at : at + CHUNK], picture[at : at + CHUNK]
        reading = read_colours(seen)
        sky, floor = score_surroundings(seen, part, own)
        r, c = score_colours(reading, part, own)
        right, counted = right + r, counted + c
        iou, exact = score_silhouette(reading, own), score_exact_colours(reading, part)
        each.append(torch.stack([v.double() for v in (sky & floor, sky, floor, iou, exact)]))
    names = ("sky and floor", "sky", "floor", "silhouette IoU", "exactly the asked colours")
    means = torch.cat(each, 1).mean(1).tolist()
    return dict(zip(names, means, strict=True)) | {"object colour": right / counted}
