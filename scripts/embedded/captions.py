"""Captions: a scene in natural words, with variations. Objects are named from left to right.

No colour word appears but those of the objects, so that a caption asks for exactly the colours it names.
"""

from __future__ import annotations

import random

from scripts.embedded.palette import COLOURS, FLOORS, SHAPES, SKIES
from scripts.embedded.world import Scenes

__all__ = ["caption", "captions", "shuffled"]

SHAPE_WORDS = {
    "sphere": ("sphere", "sphere", "ball"),
    "cube": ("cube", "cube", "box"),
    "cylinder": ("cylinder", "cylinder", "drum"),
    "cone": ("cone",),
}
FLOOR_WORDS = {
    "grass": ("on grass", "on grass", "on the grass", "on a lawn", "standing on grass", "in a meadow"),
    "sand": ("on sand", "on sand", "on the sand", "on a beach", "standing on sand", "in the desert"),
    "stone": (
        "on stone",
        "on stone",
        "on a stone floor",
        "on paving stones",
        "standing on stone",
        "on stone tiles",
    ),
}
SKY_WORDS = {
    "daylight": ("in daylight", "in daylight", "on a sunny day", "under a clear sky", "at noon", "by day"),
    "sunset": (
        "at sunset",
        "at sunset",
        "in the evening",
        "at dusk",
        "under a sunset sky",
        "in evening light",
    ),
    "night": ("at night", "at night", "under the stars", "under a night sky", "in the moonlight", "by night"),
}
OPENINGS = ("", "", "", "", "a picture of ", "a photo of ", "a render of ")


def _join(things: list[str], rng: random.Random, repeated: bool) -> str:
    if len(things) == 1:
        return things[0]
    if len(things) == 2:
        ways = [
            f"{things[0]} to the left of {things[1]}",
            f"{things[0]} on the left and {things[1]} on the right",
        ]
        if not repeated:
            ways += [
                f"{things[0]} and {things[1]}",
                f"{things[0]} next to {things[1]}",
                f"{things[0]}, {things[1]}",
            ]
        return rng.choice(ways)
    ways = [f"{things[0]} on the left, {things[1]} in the middle and {things[2]} on the right"]
    if not repeated:
        ways += [
            f"{things[0]}, {things[1]} and {things[2]}",
            ", ".join(things),
            f"{things[0]} with {things[1]} and {things[2]}",
        ]
    return rng.choice(ways)


def caption(scenes: Scenes, index: int, rng: random.Random) -> str:
    """One caption for scene `index`; the words are drawn from `rng`."""
    kinds = [int(k) for k in scenes.kind[index] if k >= 0]
    things = [
        f"{rng.choice(['a', 'a', 'a', 'one'])} {COLOURS[int(c)]} {rng.choice(SHAPE_WORDS[SHAPES[k]])}"
        for k, c in zip(kinds, scenes.colour[index], strict=False)
    ]
    things = [t.replace("a orange", "an orange") for t in things]
    repeated = len(set(kinds)) < len(kinds)
    body = _join(things, rng, repeated)
    floor = rng.choice(FLOOR_WORDS[FLOORS[int(scenes.floor[index])]])
    sky = rng.choice(SKY_WORDS[SKIES[int(scenes.sky[index])]])
    opening = rng.choice(OPENINGS)
    return rng.choice(
        [
            f"{opening}{body} {floor} {sky}",
            f"{opening}{body} {floor}, {sky}",
            f"{sky}, {body} {floor}",
            f"{body}, {floor}, {sky}",
        ]
    )


def captions(scenes: Scenes, seed: int) -> list[str]:
    """A caption for every scene; a function of the scenes and `seed` alone."""
    rng = random.Random(seed)
    return [caption(scenes, index, rng) for index in range(len(scenes))]


def shuffled(prompts: list[str]) -> list[str]:
    """The prompts, each given to the scene before its own."""
    return [*prompts[1:], *prompts[:1]]
