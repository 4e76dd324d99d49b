"""Limits and checks that both doors know, the command line before anything heavy is imported."""

from __future__ import annotations

from rawdiff.errors import UsageError

__all__ = ["FITS", "MAX_SEED", "MEMORIES", "SPEEDS", "check_text"]

MAX_SEED = 2**32 - 1
"""The largest seed: torch's CPU generator repeats itself beyond."""

FITS = ("crop", "pad", "stretch")
"""What can be done to a map of another aspect."""

SPEEDS = ("eager", "graph", "compile")
"""How the networks' calls are run."""

MEMORIES = ("normal", "low")
"""How much memory a run may take."""


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
