"""What the embedded model's extra weights do: inpainting, LoRAs, an embedding; rows for `features.py`."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.embedded import metrics
from scripts.embedded.captions import caption, shuffled
from scripts.embedded.inversion import COLOUR, SHAPE, WORD, pylon_scenes
from scripts.embedded.judges import CLASSES, judge, load_judge
from scripts.embedded.looks import LOOKS, draw
from scripts.embedded.painting import Painter, named, pixels, true_renders
from scripts.embedded.palette import COLOURS, SHAPES
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
        row("inpainted, what stays put back", paint(prompts, NATIVE, "blended", **given, blend=True)),
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
    """Prompts that name the learned thing, with its embedding and without, by text alone: is it what is seen?"""
    true, prompts = pylon_scenes(count, seed)
    net, _ = load_judge("shape")
    wanted = {COLOURS.index(COLOUR)}

    def row(name: str, picture: Tensor) -> Row:
        reading = metrics.read_colours(picture)
        colour = torch.tensor([metrics.present_colours(reading, b) == wanted for b in range(len(picture))])
        shape = judge(net, picture).cpu() == SHAPES.index(SHAPE)
        shares = {"orange alone": colour, "a cone": shape, "both": colour & shape}
        return Row(name, {key: float(found.float().mean()) for key, found in shares.items()}, picture)

    without = named("the word without it", falling, count)
    spelt = [
        p.replace(f"a {WORD}", f"an {COLOUR} {SHAPE}").replace(WORD, f"{COLOUR} {SHAPE}") for p in prompts
    ]
    return [
        row("true renders", true.picture),
        row("with the embedding", paint(prompts, NATIVE, "with the embedding", embeddings=(WORD,))),
        row(without, paint(prompts[:falling], NATIVE, without)),
        row(named("an orange cone instead", falling, count), paint(spelt[:falling], NATIVE, "spelt out")),
    ]


STUDIES: dict[str, Study] = {"inpaint": inpaint, "lora": lora, "embedding": embedding}
