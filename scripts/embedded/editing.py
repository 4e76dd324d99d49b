"""What the embedded model's extra weights do: inpainting, LoRAs, an embedding; rows for `features.py`."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.embedded import metrics
from scripts.embedded.captions import caption, shuffled
from scripts.embedded.inversion import WORD, lime_scenes
from scripts.embedded.judges import CLASSES, judge, load_judge
from scripts.embedded.looks import LOOKS, draw
from scripts.embedded.painting import Painter, named, pixels, true_renders
from scripts.embedded.palette import COLOURS
from scripts.embedded.steering import NATIVE, Row, Scene, Study, scene, silhouettes

__all__ = ["STUDIES"]

GROW = 5  # pixels by which a mask reaches beyond its object
FAR = 12  # and by which what is compared outside stays away from the mask
SCALES = (0.0, 0.5, 1.0)


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask [B,H,W] bool, wider by so many pixels all round."""
    return F.max_pool2d(mask[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0.5


def inpaint(paint: Painter, count: int, falling: int, seed: int) -> list[Row]:
    """One object of each render is masked and asked for in another colour: is it there, and is the rest untouched?"""
    held = scene(count, seed)
    rng = random.Random(seed)
    changed = held.scenes[:]
    changed.colour = held.scenes.colour.clone()
    chosen, asked = [], []
    for b in range(count):
        objects = [k for k in range(3) if int(held.scenes.kind[b, k]) >= 0]
        used = {int(held.scenes.colour[b, k]) for k in objects}
        chosen.append(rng.choice(objects))
        asked.append(rng.choice([c for c in range(len(COLOURS)) if c not in used]))
        changed.colour[b, chosen[-1]] = asked[-1]
    prompts = [caption(changed, b, rng) for b in range(count)]
    mask = _grown(held.true.ids == torch.tensor(chosen)[:, None, None], GROW)
    away = ~_grown(mask, FAR)[:, None].expand(-1, 3, -1, -1)
    decoded = paint.round_trip(held.true.picture)

    def row(name: str, picture: Tensor) -> Row:
        reading = metrics.read_colours(picture)
        right, number = 0, len(picture)
        for b in range(number):
            seen = torch.bincount(reading.colour[b][mask[b] & reading.solid[b]], minlength=len(COLOURS))
            enough = int(seen.sum()) >= 0.25 * int(mask[b].sum())
            right += int(enough and int(seen.argmax()) == asked[b])
        off = (picture - decoded[:number])[away[:number]].square().mean()
        return Row(
            name,
            {
                "asked object inside": right / number,
                "outside, dB": float(-10 * torch.log10(off.clamp(min=1e-10))),
            },
            picture,
        )

    images = [pixels(p) for p in held.true.picture]
    given = {"image": images, "mask": [m.float() for m in mask], "paste": False}
    few = Scene(changed, prompts, held.true).first(falling)
    astray = named("inpainted, shuffled prompts", falling, count)
    nothing = named("neither picture nor mask", falling, count)
    return [
        row("the original", held.true.picture),
        row("true renders of what is asked", true_renders(changed, NATIVE).picture),
        row("inpainted", paint(prompts, NATIVE, "inpainted", **given)),
        row(astray, paint(shuffled(few.prompts), NATIVE, astray, **given)),
        row(nothing, paint(few.prompts, NATIVE, nothing)),
    ]


def lora(paint: Painter, count: int, falling: int, seed: int) -> list[Row]:
    """Each LoRA at 0, 0.5 and 1, depth given: the share of pictures of its look, and what they show."""
    net, held_out = load_judge("look")
    held = scene(count, seed)

    def row(name: str, look: str, picture: Tensor) -> Row:
        share = float((judge(net, picture) == CLASSES["look"].index(look)).float().mean())
        return Row(name, {"its look": share} | silhouettes(picture, held), picture)

    rows = [Row("classifier, renders held out", {"its look": held_out})]
    plain = paint(held.prompts, NATIVE, "no LoRA", depth=held.maps())
    for look in LOOKS:
        true = torch.cat([draw(held.scenes[k : k + 1], NATIVE, look) for k in range(count)])
        rows.append(row(f"{look}: true renders", look, true))
        for scale in SCALES:
            more = {"depth": held.maps(), "loras": ((look, scale),)}
            picture = plain if scale == 0 else paint(held.prompts, NATIVE, f"{look} at {scale:g}", **more)
            rows.append(row(f"{look} at {scale:g}", look, picture))
    return rows


def embedding(paint: Painter, count: int, falling: int, seed: int) -> list[Row]:
    """Prompts that name the learned colour, with its embedding and without: is the object nearest to that colour?"""
    true, prompts = lime_scenes(count, seed)
    calibration = lime_scenes(60, 660_777)[0].picture
    hues = [_hue(calibration, metrics.read_colours(calibration).solid).mean(0)]
    hues += [torch.stack([h.cos(), h.sin()]) for h in metrics.colour_hues()]
    known = F.normalize(torch.stack(hues), dim=1)

    def row(name: str, picture: Tensor) -> Row:
        seen = F.normalize(_hue(picture, metrics.read_colours(picture).solid), dim=1)
        return Row(
            name, {"nearest to lime": float(((seen @ known.T).argmax(1) == 0).float().mean())}, picture
        )

    without = named("the word without it", falling, count)
    other = [p.replace(WORD, "yellow") for p in prompts]
    depth = list(true.disparity[:, 0])
    return [
        row("true renders", true.picture),
        row(
            "with the embedding",
            paint(prompts, NATIVE, "with the embedding", embeddings=(WORD,), depth=depth),
        ),
        row(without, paint(prompts[:falling], NATIVE, without, depth=depth)),
        row(
            named("yellow instead", falling, count),
            paint(other[:falling], NATIVE, "yellow instead", depth=depth),
        ),
    ]


def _hue(picture: Tensor, solid: Tensor) -> Tensor:
    """[B,2] mean direction of the hue of pictures' solid pixels."""
    _, hue = metrics.colourfulness(picture)
    weight = solid.float()
    total = weight.flatten(1).sum(1).clamp(min=1)
    return torch.stack([(f(hue) * weight).flatten(1).sum(1) / total for f in (torch.cos, torch.sin)], dim=1)


STUDIES: dict[str, Study] = {"inpaint": inpaint, "lora": lora, "embedding": embedding}
