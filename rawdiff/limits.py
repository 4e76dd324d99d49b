"""Limits and checks that both doors know, the command line before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Sized

from rawdiff.errors import UsageError

__all__ = [
    "BACKENDS",
    "FITS",
    "MAX_ADDED",
    "MAX_SEED",
    "MEMORIES",
    "SPEEDS",
    "check_few",
    "check_strength",
    "check_text",
    "is_name",
]

MAX_SEED = 2**32 - 1
"""The largest seed: torch's CPU generator repeats itself beyond."""

FITS = ("crop", "pad", "stretch")
"""What can be done to a map of another aspect."""

SPEEDS = ("eager", "graph", "compile")
"""How the networks' calls are run."""

BACKENDS = ("torch", "openvino")
"""What computes the networks."""

MEMORIES = ("normal", "low")
"""How much memory a run may take."""
STRENGTH, MASKED_STRENGTH = 0.8, 1.0
"""Where nobody says: diffusers' own, without a mask and with one."""


MAX_ADDED = 64
"""How many controls, LoRAs or embeddings a run may have, each: a recipe with more is not read."""


def check_few(what: str, found: Sized) -> None:
    """Raise UsageError for more controls, LoRAs or embeddings than a recipe may have."""
    if len(found) > MAX_ADDED:
        raise UsageError(f"{what}: {len(found)} of them, expected at most {MAX_ADDED}")


def check_strength(
    image: object,
    mask: object,
    strength: object,
    paste: object,
    blend: object = None,
    latents: object = None,
) -> float:
    """The strength, filled in where it is None; raises UsageError for what makes no sense with or without an image."""
    for name, value in (("mask", mask), ("strength", strength)):
        if image is None and value is not None:
            raise UsageError(f"{name}: there is no image for it: give one, or leave it out")
    for name, value in (("paste", paste), ("blend", blend)):
        if mask is None and value is not None:
            raise UsageError(f"{name}: there is no mask that says what to {name}: give one, or leave it out")
        if value is not None and not isinstance(value, bool):
            raise UsageError(f"{name} {_short(value)}: expected True or False")
    if image is not None and latents is not None:
        raise UsageError("image and latents were given: a run begins from one of them")
    if strength is None:
        return STRENGTH if mask is None else MASKED_STRENGTH
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0.0 < strength <= 1.0:
        raise UsageError(f"strength {_short(strength)}: expected a number above 0 and up to 1")
    return float(strength)


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:80]


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_name(text: str) -> bool:
    """Whether it is the name of a LoRA or embedding that a model brings; with a dot or a slash it is a path."""
    return _NAME.fullmatch(text) is not None


def check_text(what: str, text: object) -> str:
    """`text` if a tokenizer and a file can hold it; raises UsageError for NUL and lone surrogates."""
    if not isinstance(text, str):
        raise UsageError(f"{what}: found {type(text).__name__}, expected text")
    if "\0" in text:
        raise UsageError(f"{what}: holds a NUL character at place {text.index(chr(0))}: remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what}: what stands at place {error.start} is no character (half a surrogate pair, or bytes that "
            "are no UTF-8): remove it"
        ) from None
    return text
