"""Which fields a recipe has, and what may stand in each; `schema` tells what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from rawdiff.errors import InputError
from rawdiff.limits import MAX_ADDED
from rawdiff.syntax import PLAIN, SYNTAXES

__all__ = [
    "ACCOUNT",
    "CONTROL",
    "EMBEDDING",
    "LORA",
    "MADE",
    "MADE_EXTRAS",
    "PICTURE",
    "PICTURE_EXTRAS",
    "SAMPLER",
    "belong",
    "check_account",
    "check_fields",
]

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


def _holding(**tests: Test) -> Test:
    """These at least."""
    return lambda value: (
        isinstance(value, dict) and all(key in value and test(value[key]) for key, test in tests.items())
    )


def _anything(value: Any) -> bool:
    return True


def _range(value: Any) -> bool:
    return value == "auto" or _several(_number, 2)(value)


def _controls(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_ADDED


def _some(test: Test) -> Test:
    """At least one: where there is none, the key is left out, so that a picture has one id."""
    return lambda value: _several(test)(value) and 0 < len(value) <= MAX_ADDED


def _size_ids(negative: Test) -> Test:
    """Sizes that SDXL is told of, as `SizeIds.describe` says them."""
    pair = _several(_whole, 2)
    return _object(original=_maybe(pair), crop=pair, target=_maybe(pair), negative=negative)


_IMAGE: dict[str, Test] = {
    "sha256": _digest,
    "mask": _maybe(_digest),
    "strength": _number,
    "paste": _maybe(_flag),
    "fit": _maybe(_text),
}


_BLENDED: dict[str, Test] = {**_IMAGE, "mask": _digest, "blend": lambda value: value is True}


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
    "prompt_2": lambda value: _text(value) and value != "",
    "negative_2": lambda value: _text(value) and value != "",
    "guidance_end": lambda value: _number(value) and 0.0 <= value < 1.0,
    "image": lambda value: _object(**_IMAGE)(value) or _object(**_BLENDED)(value),
    "loras": _some(_mapping),
    "embeddings": _some(_mapping),
    "syntax": lambda value: value in SYNTAXES and value != PLAIN,
    "repeats": _some(_text),
    "merge": _several(_number),
    "size_ids": _size_ids(_maybe(_size_ids(lambda value: value is None))),
    "zeros": lambda value: value is True,
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
MADE_EXTRAS: dict[str, Test] = {
    "vae": _object(name=_text, kind=_text),
    "backend": _text,
    "image": _object(path=_text, mask=_maybe(_text)),
    "loras": _some(_text),
    "embeddings": _some(_text),
    "tiles": lambda value: value == "vae",
}


ACCOUNT: dict[str, Test] = {
    **{name: PICTURE[name] for name in ("size", "rescale", "clip_skip", "guess", "weights", "noise", "hints", "dtype")},
    "rawdiff": _text,
    "model": _text,
    "prompt": _several(_text),
    "negative": _several(_text),
    "seeds": _several(_whole),
    "guidance": _several(_number),
    "sampler": _holding(given=_text, name=_text),
    "latents": _maybe(_digest),
    "image": _maybe(_holding(mask=_maybe(_digest), strength=_number)),
    "controls": _several(
        _holding(
            kind=_text, weight=_number, start=_number, end=_number, net=_maybe(_text), module=_flag,
            weights=_maybe(_digests), sha256=_text, hint=_anything,
        )
    ),
    "loras": _several(_holding(name=_text, scale=_number)),
    "embeddings": _several(_mapping),
    "syntax": _maybe(_text),
    "repeats": _several(_text),
    **{name: _maybe(PICTURE_EXTRAS[name]) for name in ("guidance_end", "size_ids", "zeros")},
}  # fmt: skip
"""What the account of a whole run has, as a saved run holds it."""
ACCOUNT_EXTRAS = {
    "merge": PICTURE_EXTRAS["merge"],
    "prompt_2": _several(_text),
    "negative_2": _several(_text),
}
"""What it has only where there is any of it."""


def check_account(found: Any, images: int, where: str) -> None:
    """Raise InputError for what is no account of a run of so many pictures."""
    check_fields(found, ACCOUNT, where, "recipe", ACCOUNT_EXTRAS)
    for name in ("prompt", "negative", "seeds", "guidance", "prompt_2", "negative_2"):
        if name in found and len(found[name]) != images:
            raise InputError(
                f"{where}: its recipe is no recipe: recipe.{name} has {len(found[name])} for {images} pictures"
            )


def belong(image: Mapping[str, Any] | None, names: Mapping[str, Any] | None) -> bool:
    """Whether both are there or neither, and a mask in both or in neither."""
    if image is None or names is None:
        return image is names
    return (image["mask"] is None) == (names["mask"] is None) == (image["paste"] is None)


def check_fields(
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
