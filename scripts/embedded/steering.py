"""How the embedded model is steered: shapes by words, outlines by other nets, colours by negative prompts, guidance.

Each study makes its rows: a name and what was measured. `features.py` prints them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rawdiff import Control
from rawdiff.geometry import parse_size
from scripts.embedded import metrics
from scripts.embedded.captions import captions, shuffled
from scripts.embedded.judges import judge, load_judge
from scripts.embedded.painting import Painter, named, pixels, true_renders
from scripts.embedded.palette import COLOURS, oklab
from scripts.embedded.world import Renders, Scenes, sample_scenes
from scripts.embedded.world import single as single_object

__all__ = ["STUDIES", "Row", "Scene", "Study", "scene", "silhouettes"]

NATIVE = (128, 128)
SCALES = (1.0, 4.0, 8.0, 20.0)
THIRD = 1 / 3
OUTLINES = ("silhouette IoU", "object colour")
SIZES = [(text, False) for text in ("112x144", "128x128", "144x112", "168x96", "256x256", "384x256")] + [
    (text, True) for text in ("128x128", "168x96", "256x256", "384x256", "512x768", "768x512", "1024x384")
]
"""Sizes to try, and whether with a depth map."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what was done, what was measured, and pictures to look at."""

    name: str
    values: dict[str, float]
    picture: Tensor | None = None  # [B,3,H,W] in 0..1


Study = Callable[[Painter, int, int, int], list[Row]]
"""A painter, how many scenes, how many of them for the rows that must fall, the scenes' seed -> the rows."""


@dataclass(frozen=True)
class Scene:
    """Scenes with their captions and true renders."""

    scenes: Scenes
    prompts: list[str]
    true: Renders

    def maps(self) -> list[Tensor]:
        return list(self.true.disparity[:, 0])

    def first(self, count: int) -> Scene:
        """The first of them."""
        true = Renders(*(getattr(self.true, f.name)[:count] for f in fields(Renders)))
        return Scene(self.scenes[:count], self.prompts[:count], true)


def scene(count: int, seed: int, single: bool = False, size: tuple[int, int] = NATIVE) -> Scene:
    """`count` scenes of `seed` framed for `size` (height, width); with `single` those that hold one object only."""
    scenes = sample_scenes(count * 6 if single else count, seed, size)
    if single:
        scenes = single_object(scenes)[:count]
    return Scene(scenes, captions(scenes, seed), true_renders(scenes, size))


def silhouettes(picture: Tensor, held: Scene) -> dict[str, float]:
    """Colour and outline of pictures [B,3,H,W] against their scenes."""
    found = metrics.scores(picture, held.scenes, held.true.ids)
    return {name: found[name] for name in OUTLINES}


def shape(paint: Painter, count: int, falling: int, seed: int) -> list[Row]:
    """Is the shape that the prompt names the shape that a classifier sees? Text alone, one object."""
    net, held_out = load_judge("shape")
    held = scene(count, seed, single=True)
    few = held.first(falling)

    def row(name: str, picture: Tensor) -> Row:
        right = judge(net, picture) == held.scenes.kind[: len(picture), 0]
        return Row(name, {"shape recognised": float(right.float().mean())}, picture)

    astray = paint(shuffled(few.prompts), NATIVE, "shape: shuffled prompts")
    return [
        Row("classifier, renders held out", {"shape recognised": held_out}),
        row("true renders", held.true.picture),
        row("text alone", paint(held.prompts, NATIVE, "shape: text alone")),
        row(named("shuffled prompts", falling, count), astray),
    ]


def _control(kind: str, held: Scene, k: int, weight: float = 1.0) -> Control:
    """The hint of `kind` as a user has it made: normals from the depth map, edges from the picture."""
    if kind == "canny":
        return Control(kind, pixels(held.true.picture[k]), weight, derive=True)
    return Control(kind, held.true.disparity[k, 0], weight, derive=kind == "normal")


def _steered(
    paint: Painter, held: Scene, weights: dict[str, float], what: str, prompts: list[str] | None = None
) -> Tensor:
    controls: list[Any] = [
        [_control(kind, held, k, w) for kind, w in weights.items()] for k in range(len(held.prompts))
    ]
    return paint(prompts or held.prompts, NATIVE, what, controls=controls)


def outlines(paint: Painter, count: int, falling: int, seed: int) -> list[Row]:
    """Canny alone, normal alone, all three nets at a third each, and all but one of them."""
    held = scene(count, seed)
    few = held.first(falling)
    rows = [Row("true renders", silhouettes(held.true.picture, held), held.true.picture)]

    def add(of: Scene, name: str, weights: dict[str, float], prompts: list[str] | None = None) -> Tensor:
        picture = _steered(paint, of, weights, name, prompts)
        rows.append(Row(named(name, len(picture), count), silhouettes(picture, of), picture))
        return picture

    add(held, "depth alone", {"depth": 1.0})
    for kind in ("canny", "normal"):
        add(held, f"{kind} alone", {kind: 1.0})
        add(few, f"{kind} alone, shuffled prompts", {kind: 1.0}, shuffled(few.prompts))
    thirds = {"depth": THIRD, "normal": THIRD, "canny": THIRD}
    together = add(held, "three nets, a third each", thirds)
    for kind in thirds:
        less = add(few, f"without {kind}", {k: w for k, w in thirds.items() if k != kind})
        rows[-1].values["grey levels from three"] = float((less - together[: len(less)]).abs().mean() * 255)
    none = paint(few.prompts, NATIVE, "no net")
    rows.append(Row(named("no net", falling, count), silhouettes(none, few), none))
    return rows


def _open_prompts(held: Scene) -> list[str]:
    """The prompts without their colour words."""
    prompts = []
    for prompt in held.prompts:
        for colour in COLOURS:
            prompt = prompt.replace(f"an {colour} ", "a ").replace(f"{colour} ", "")
        prompts.append(prompt)
    return prompts


def negative(paint: Painter, count: int, falling: int, seed: int) -> list[Row]:
    """How often a colour is seen where the prompt leaves the colours open, and where a negative prompt has that colour.

    The negative prompt is a whole sentence, as all are that the model learned from: the prompt with the colour for
    every object. Of the first scenes also the colour's word by itself.
    """
    count = max(8, count - count % 8)
    few = max(8, falling - falling % 8)
    held = scene(count, seed)
    prompts = _open_prompts(held)
    denied = [COLOURS[k % len(COLOURS)] for k in range(count)]
    sentences = [_in_one_colour(prompt, c) for prompt, c in zip(held.prompts, denied, strict=True)]

    def present(picture: Tensor) -> list[set[int]]:
        reading = metrics.read_colours(picture)
        return [metrics.present_colours(reading, k) for k in range(len(picture))]

    free = paint(prompts, NATIVE, "colour left open")
    before = present(free)
    shares = {colour: sum(c in found for found in before) / count for c, colour in enumerate(COLOURS)}
    rows = [Row("colour left open", _mean(shares), free)]
    for name, texts in (("in a negative sentence", sentences), ("as a negative word", denied[:few])):
        picture = paint(prompts[: len(texts)], NATIVE, name, negative=texts)
        after = present(picture)
        shares = {
            colour: sum(c in found for found in after[c :: len(COLOURS)]) / len(after[c :: len(COLOURS)])
            for c, colour in enumerate(COLOURS)
        }
        rows.append(Row(named(name, len(texts), count), _mean(shares), picture))
    return rows


def _mean(shares: dict[str, float]) -> dict[str, float]:
    return {"share of the colour": sum(shares.values()) / len(shares)} | shares


def _in_one_colour(prompt: str, colour: str) -> str:
    """The prompt with this colour for each object."""
    for other in COLOURS:
        prompt = prompt.replace(f"an {other} ", f"a {other} ").replace(f"{other} ", f"{colour} ")
    return prompt.replace(f"a {colour} ", f"an {colour} ") if colour[0] in "aeiou" else prompt


def guidance(paint: Painter, count: int, falling: int, seed: int) -> list[Row]:
    """Saturation (mean Oklab chroma) and agreement with the prompt at several guidance scales, with depth and by text
    alone."""
    held = scene(count, seed)

    def row(name: str, picture: Tensor, depth: bool) -> Row:
        found = metrics.scores(picture, held.scenes, held.true.ids)
        chroma = oklab(picture.permute(0, 2, 3, 1))[..., 1:].norm(dim=-1).mean()
        names = (*(OUTLINES if depth else ()), "exactly the asked colours", "sky and floor")
        return Row(name, {"saturation": float(chroma)} | {n: found[n] for n in names}, picture)

    rows = [row("true renders", held.true.picture, True)]
    for depth in (True, False):
        given = {"depth": held.maps()} if depth else {}
        for scale in SCALES:
            name = f"guidance {scale:g}, {'depth given' if depth else 'text alone'}"
            rows.append(row(name, paint(held.prompts, NATIVE, name, guidance=scale, **given), depth))
    return rows


def sizes(paint: Painter, count: int, falling: int, seed: int) -> list[Row]:
    """Where the model holds together: sizes about the native area by text alone, others with depth.

    Of sizes that take longer there are fewer scenes: as many pixels as `count` native pictures have, at least 8 scenes.
    """
    rows = []
    for text, depth in SIZES:
        size = parse_size(text)
        number = min(count, max(8, count * NATIVE[0] * NATIVE[1] // (size[0] * size[1])))
        held = scene(number, seed, size=size)
        name = f"{text}, {'with depth' if depth else 'text alone'}, {number} scenes"
        picture = paint(held.prompts, size, name, **({"depth": held.maps()} if depth else {}))
        reading = metrics.read_colours(picture)
        asked = (held.scenes.kind >= 0).sum(1)
        seen = torch.tensor([_parts(solid) for solid in reading.solid])
        found = metrics.scores(picture, held.scenes, held.true.ids)
        names = ("sky and floor", "exactly the asked colours", *(OUTLINES if depth else ()))
        values = {"more patches than objects": float((seen > asked).float().mean())}
        rows.append(Row(name, values | {column: found[column] for column in names}))
    return rows


def _parts(solid: Tensor) -> int:
    """How many connected patches of colour a mask [H,W] has that cover at least 0.4% of it."""
    import cv2

    _, _, facts, _ = cv2.connectedComponentsWithStats(solid.byte().numpy())
    return int((facts[1:, cv2.CC_STAT_AREA] >= 0.004 * solid.numel()).sum())


STUDIES: dict[str, Study] = {
    "shape": shape,
    "outlines": outlines,
    "negative": negative,
    "guidance": guidance,
    "sizes": sizes,
}
