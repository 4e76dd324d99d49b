"""What a recipe holds, its canonical JSON, and its id.

{"format": 1, "id": SHA-256 of `picture`, "picture": {...}, "made": {...}}

picture   prompt, negative, size [height, width], seed, guidance, rescale, clip_skip, guess, sampler, controls,
          weights {file: SHA-256}, noise and hints (versions), dtype; and only where there are any:
  loras       sha256, config (of peft's adapter_config.json, or null), scale
  embeddings  sha256, trigger
  repeats     names of the work done at every step, which is else done once (`Exact`): it shows in the last bits
  sampler   class, config, steps, timesteps, sigmas, eta
  controls  kind, sha256 (of the map's bytes), derive, weight, start, end, fit, depth_range, depth_invert, weights
made      rawdiff, torch, diffusers, transformers; model {name, kind, revision}; sampler (the name asked for);
          inputs [path], nets [{name, kind} or null]: one for each control; device, threads; batch [place, size];
          pixels (SHA-256 of the finished picture; null in a plan); where there are any, loras [name], embeddings [name]
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rawdiff.errors import InputError

__all__ = [
    "CONTROL",
    "EMBEDDING",
    "FORMAT",
    "LORA",
    "MADE",
    "PICTURE",
    "PICTURE_EXTRAS",
    "SAMPLER",
    "build",
    "canonical",
    "check",
    "compare",
    "differences",
    "job_id",
    "read",
]

FORMAT = 1
MAX_CONTROLS = 64


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
    _fields(picture, PICTURE, where, "picture", PICTURE_EXTRAS)
    _fields(picture["sampler"], SAMPLER, where, "picture.sampler")
    for k, control in enumerate(picture["controls"]):
        _fields(control, CONTROL, where, f"picture.controls[{k}]")
    for name, tests in (("loras", LORA), ("embeddings", EMBEDDING)):
        for k, entry in enumerate(picture.get(name, ())):
            _fields(entry, tests, where, f"picture.{name}[{k}]")
    _fields(made, MADE, where, "made", MADE_EXTRAS)
    for name in ("inputs", "nets"):
        if len(made[name]) != len(picture["controls"]):
            raise InputError(
                f"{where}: its recipe has {len(made[name])} {name} for {len(picture['controls'])} maps"
            )
    for name in MADE_EXTRAS:
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


Test = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 10**6


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _digests(value: Any) -> bool:
    return isinstance(value, dict) and all(_digest(inner) for inner in value.values())


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _maybe(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _several(test: Test, count: int | None = None) -> Test:
    return lambda value: (
        isinstance(value, list)
        and (count is None or len(value) == count)
        and all(test(inner) for inner in value)
    )


def _object(**tests: Test) -> Test:
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == tests.keys()
        and all(test(value[key]) for key, test in tests.items())
    )


def _range(value: Any) -> bool:
    return value == "auto" or _several(_number, 2)(value)


def _controls(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_CONTROLS


def _some(test: Test) -> Test:
    """At least one: where there is none, the key is left out, so that a picture has one id."""
    return lambda value: _several(test)(value) and 0 < len(value) <= MAX_CONTROLS


PICTURE: dict[str, Test] = {
    "prompt": _text,
    "negative": _text,
    "size": _several(_whole, 2),
    "seed": _whole,
    "guidance": _number,
    "rescale": _number,
    "clip_skip": _whole,
    "guess": _flag,
    "sampler": _mapping,
    "controls": _controls,
    "weights": _digests,
    "noise": _whole,
    "hints": _whole,
    "dtype": _text,
}
PICTURE_EXTRAS: dict[str, Test] = {
    "loras": _some(_mapping),
    "embeddings": _some(_mapping),
    "repeats": _some(_text),
}
"""What a picture has only where there is any of it."""
LORA: dict[str, Test] = {"sha256": _digest, "config": _maybe(_digest), "scale": _number}
EMBEDDING: dict[str, Test] = {"sha256": _digest, "trigger": _text}
SAMPLER: dict[str, Test] = {
    "class": _text,
    "config": _mapping,
    "steps": _maybe(_whole),
    "timesteps": _maybe(_several(_whole)),
    "sigmas": _maybe(_several(_number)),
    "eta": _number,
}
CONTROL: dict[str, Test] = {
    "kind": _text,
    "sha256": _digest,
    "derive": _flag,
    "weight": _number,
    "start": _number,
    "end": _number,
    "fit": _maybe(_text),
    "depth_range": _maybe(_range),
    "depth_invert": _maybe(_flag),
    "weights": _digests,
}
MADE: dict[str, Test] = {
    "rawdiff": _text,
    "torch": _text,
    "diffusers": _text,
    "transformers": _text,
    "model": _object(name=_text, kind=_text, revision=_maybe(_text)),
    "sampler": _maybe(_text),
    "inputs": _several(_text),
    "nets": _several(_maybe(_object(name=_text, kind=_text))),
    "device": _text,
    "threads": _whole,
    "batch": _several(_whole, 2),
    "pixels": _maybe(_digest),
}
MADE_EXTRAS: dict[str, Test] = {"loras": _some(_text), "embeddings": _some(_text)}


def _fields(
    found: Any, wanted: Mapping[str, Test], where: str, name: str, extras: Mapping[str, Test] | None = None
) -> None:
    if not isinstance(found, dict):
        raise InputError(
            f"{where}: its recipe is no recipe: {name} is a {type(found).__name__}, expected an object"
        )
    known = {**wanted, **(extras or {})}
    unknown, missing = sorted(found.keys() - known.keys()), sorted(wanted.keys() - found.keys())
    if unknown or missing:
        what = f"an unknown {unknown[0][:60]!r}" if unknown else f"no {missing[0]!r}"
        raise InputError(f"{where}: its recipe is no recipe: {name} has {what}")
    for key, test in known.items():
        if key in found and not test(found[key]):
            raise InputError(f"{where}: its recipe is no recipe: {name}.{key} is {str(found[key])[:60]!r}")
