"""What a recipe holds, its canonical JSON, and its id.

{"format": 1, "id": SHA-256 of `picture`, "picture": {...}, "made": {...}}

picture   prompt, negative, size [height, width], seed, guidance, rescale, clip_skip, guess, sampler, controls,
          weights {file: SHA-256}, noise and hints (versions), dtype; and only where there are any:
  prompt_2, negative_2   what SDXL's second text encoder reads, where it is not prompt and negative
  guidance_end  the share of the run after which guidance is off, below 1
  image       sha256, strength, fit; mask (SHA-256) and paste, or null; blend (true) only where an inpainting UNet has
              what stays put back after each step
  loras       sha256, config (of peft's adapter_config.json, or null), scale
  embeddings  sha256, trigger
  syntax      how the prompts are read, where that is not as plain text: "a1111"
  repeats     names of the work done at every step, which is else done once (`Exact`): it shows in the last bits
  merge       the weight of each checkpoint that the networks are the sum of, in their order
  size_ids    original, crop, target, and the same under negative, or null: what SDXL is told, where it is not the size
  zeros       true where an absent negative prompt is all zeros (SDXL)
  sampler   class, config, steps, timesteps, sigmas, eta
  controls  kind, sha256 (of the map's bytes), derive, weight, start, end, fit, depth_range, depth_invert, weights
made      rawdiff, torch, diffusers, transformers; model {name, kind, revision}; sampler (the name asked for);
          inputs [path], nets [{name, kind} or null]: one for each control; device, threads; batch [place, size];
          pixels (SHA-256 of the finished picture; null in a plan); and only where there are any:
  vae         name, kind: where it is another's
  backend     what computed the networks, with its version, where that was not torch
  image       path, mask (path, or null)
  loras, embeddings  [name]
  tiles       "vae", where it worked in tiles, short of memory: pixels differ by a few grey levels
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rawdiff.errors import InputError
from rawdiff.recipe.fields import (
    CONTROL,
    EMBEDDING,
    LORA,
    MADE,
    MADE_EXTRAS,
    PICTURE,
    PICTURE_EXTRAS,
    SAMPLER,
    belong,
    check_fields,
)

__all__ = ["FORMAT", "build", "canonical", "check", "compare", "differences", "job_id", "read"]

FORMAT = 1


def canonical(value: Any) -> bytes:
    """The one JSON of plain values: keys sorted, no spaces, ASCII, whole floats as whole numbers.

    Raises ValueError for NaN, Inf and what JSON does not know.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def _plain(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return value


def job_id(picture: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of what decides a picture."""
    return hashlib.sha256(canonical(picture)).hexdigest()


def build(picture: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of one picture, with its id."""
    return {"format": FORMAT, "id": job_id(picture), "picture": dict(picture), "made": dict(made)}


def read(path: str | Path) -> dict[str, Any]:
    """The recipe in a PNG's text, whatever its pixels; raises InputError where there is none that can be used."""
    from rawdiff import images

    return check(images.read_recipe(path), str(path))


def check(recipe: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`recipe` if it is one, to the last value's type; raises InputError that names the value."""
    form = recipe.get("format")
    if "picture" not in recipe:
        raise InputError(
            f"{where}: holds no recipe of a picture (a preview or a hint?); expected a finished picture"
        )
    if form != FORMAT or isinstance(form, bool):
        raise InputError(f"{where}: recipe of format {form!r}, expected {FORMAT}: made by another rawdiff?")
    picture, made = recipe["picture"], recipe.get("made", {})
    check_fields(picture, PICTURE, where, "picture", PICTURE_EXTRAS)
    check_fields(picture["sampler"], SAMPLER, where, "picture.sampler")
    for k, control in enumerate(picture["controls"]):
        check_fields(control, CONTROL, where, f"picture.controls[{k}]")
    for name, tests in (("loras", LORA), ("embeddings", EMBEDDING)):
        for k, entry in enumerate(picture.get(name, ())):
            check_fields(entry, tests, where, f"picture.{name}[{k}]")
    check_fields(made, MADE, where, "made", MADE_EXTRAS)
    if not belong(picture.get("image"), made.get("image")):
        raise InputError(f"{where}: its recipe has an image or a mask without a name, or a name without one")
    for name in ("inputs", "nets"):
        if len(made[name]) != len(picture["controls"]):
            raise InputError(
                f"{where}: its recipe has {len(made[name])} {name} for {len(picture['controls'])} maps"
            )
    for name in ("loras", "embeddings"):
        names, entries = made.get(name, ()), picture.get(name, ())
        if len(names) != len(entries):
            raise InputError(
                f"{where}: its recipe has {len(names)} names of {name} for {len(entries)} of them: made.{name}"
            )
    found = job_id(picture)
    if recipe.get("id") != found:
        raise InputError(
            f"{where}: its recipe was changed: its id is {str(recipe.get('id'))[:12]!r}, its contents' {found[:12]!r}"
        )
    return dict(recipe)


def compare(left: Any, right: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two recipes, accounts, or parts of them differ: `sampler.config.beta_start`, and what each has there."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted({*left, *right}):
            inner = f"{name}.{key}" if name else str(key)
            if key in left and key in right:
                yield from compare(left[key], right[key], inner)
            else:
                yield inner, left.get(key), right.get(key)
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for k, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from compare(a, b, f"{name}[{k}]")
    elif _plain(left) != _plain(right):
        yield name, left, right


def differences(left: Any, right: Any) -> list[str]:
    """The names alone of what `compare` finds."""
    return [name for name, _, _ in compare(left, right)]
