"""Limits and checks that both doors know, the command line before anything heavy is imported."""

from __future__ import annotations

import re

from rawdiff.errors import UsageError

__all__ = ["FITS", "MAX_SEED", "check_text", "is_name"]

MAX_SEED = 2**32 - 1
"""The largest seed: torch's CPU generator repeats itself beyond."""

FITS = ("crop", "pad", "stretch")
"""What can be done to a map of another aspect."""


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
