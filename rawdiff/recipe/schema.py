"""What a recipe holds, its canonical JSON, and its id.

{"format": 1, "id": SHA-256 of `picture`, "picture": {...}, "made": {...}}

picture   prompt, negative, size [height, width], seed, guidance, rescale, clip_skip, guess, sampler, controls,
          weights {file: SHA-256}, noise and hints (versions), dtype; image, where the run began from one
  sampler   class, config, steps, timesteps, sigmas, eta
  controls  kind, sha256 (of the map's bytes), derive, weight, start, end, fit, depth_range, depth_invert, weights
  image     sha256, strength, fit; mask (SHA-256) and paste, or null
made      rawdiff, torch, diffusers, transformers; model {name, kind, revision}; sampler (the name asked for);
          inputs [path], nets [{name, kind} or null]: one for each control; device, threads; batch [place, size];
          pixels (SHA-256 of the finished picture; null in a plan); image {path, mask}, where there was one
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rawdiff.errors import InputError

__all__ = [
    "CONTROL",
    "FORMAT",
    "MADE",
    "PICTURE",
    "SAMPLER",
    "build",
    "canonical",
    "check",
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
    _fields(picture, PICTURE, where, "picture", IMAGE)
    _fields(picture["sampler"], SAMPLER, where, "picture.sampler")
    for k, control in enumerate(picture["controls"]):
        _fields(control, CONTROL, where, f"picture.controls[{k}]")
    _fields(made, MADE, where, "made", IMAGE_NAMES)
    if not _belong(picture.get("image"), made.get("image")):
        raise InputError(f"{where}: its recipe has an image or a mask without a name, or a name without one")
    for name in ("inputs", "nets"):
        if len(made[name]) != len(picture["controls"]):
            raise InputError(
                f"{where}: its recipe has {len(made[name])} {name} for {len(picture['controls'])} maps"
            )
    found = job_id(picture)
    if recipe.get("id") != found:
        raise InputError(
            f"{where}: its recipe was changed: its id is {str(recipe.get('id'))[:12]!r}, its contents' {found[:12]!r}"
        )
    return dict(recipe)


def differences(left: Any, right: Any, name: str = "") -> list[str]:
    """Names of the values in which two recipes, or parts of them, differ: `sampler.config.beta_start`."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        found = []
        for key in sorted({*left, *right}):
            inner = f"{name}.{key}" if name else str(key)
            if key not in left or key not in right:
                found.append(inner)
            else:
                found += differences(left[key], right[key], inner)
        return found
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            n
            for k, (a, b) in enumerate(zip(left, right, strict=True))
            for n in differences(a, b, f"{name}[{k}]")
        ]
    return [] if _plain(left) == _plain(right) else [name]


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


# Left out where a run begins from noise: a picture's id is then what it was before there were images.
IMAGE: dict[str, Test] = {
    "image": _object(
        sha256=_digest, mask=_maybe(_digest), strength=_number, paste=_maybe(_flag), fit=_maybe(_text)
    )
}
IMAGE_NAMES: dict[str, Test] = {"image": _object(path=_text, mask=_maybe(_text))}


def _belong(image: Mapping[str, Any] | None, names: Mapping[str, Any] | None) -> bool:
    """Whether both are there or neither, and a mask in both or in neither."""
    if image is None or names is None:
        return image is names
    return (image["mask"] is None) == (names["mask"] is None) == (image["paste"] is None)


def _fields(
    found: Any, wanted: Mapping[str, Test], where: str, name: str, optional: Mapping[str, Test] | None = None
) -> None:
    if not isinstance(found, dict):
        raise InputError(
            f"{where}: its recipe is no recipe: {name} is a {type(found).__name__}, expected an object"
        )
    missing = sorted(wanted.keys() - found.keys())
    wanted = {**wanted, **{key: test for key, test in (optional or {}).items() if key in found}}
    unknown = sorted(found.keys() - wanted.keys())
    if unknown or missing:
        what = f"an unknown {unknown[0][:60]!r}" if unknown else f"no {missing[0]!r}"
        raise InputError(f"{where}: its recipe is no recipe: {name} has {what}")
    for key, test in wanted.items():
        if not test(found[key]):
            raise InputError(f"{where}: its recipe is no recipe: {name}.{key} is {str(found[key])[:60]!r}")
