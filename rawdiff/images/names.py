"""Names for pictures: safe on every file system, and never one that is taken."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from rawdiff.errors import ResourceError, UsageError

__all__ = ["name_key", "next_path", "picture_name", "stem_from"]

MAX_NAME_BYTES = 200
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


_OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")


def picture_name(name: str) -> str:
    """`name` as the name of a PNG, its ending added where it has none; folders before it with a slash.

    Raises UsageError for the ending of another kind of picture, and for names that some system keeps for itself
    (CON, nul.png).
    """
    *folders, last = name.split("/")
    if last.lower().endswith(_OTHER_PICTURES):
        raise UsageError(
            f"out {name[:120]}: pictures are written as PNG; expected a folder, or a name that ends in .png"
        )
    for part in (*folders, last):
        if part.partition(".")[0].strip().casefold() in _RESERVED:
            raise UsageError(f"out {name[:120]}: {part[:60]!r} is a device's name on Windows; choose another")
    return name if last.lower().endswith(".png") else f"{name}.png"


def stem_from(text: str, limit: int = 60) -> str:
    """A file stem from a prompt: its words in lower case, joined by hyphens; "picture" if there are none."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).casefold())
    stem = ""
    for word in words:
        longer = f"{stem}-{word}" if stem else word[:limit]
        if len(longer) > limit:
            break
        stem = longer
    stem = unicodedata.normalize("NFC", stem)
    return f"{stem}-picture" if stem in _RESERVED else stem or "picture"


def next_path(folder: str | Path, stem: str, suffix: str = ".png") -> Path:
    """`folder/stem.png`, or with -2, -3, ... where that is taken, also by a name alike but for case or
    accents' encoding.

    Nothing is created: another process may be faster, so write with `write_next` or be ready for
    UsageError. Raises UsageError for a stem that is no plain name, ResourceError for a folder that cannot
    be read.
    """
    folder = Path(folder)
    if not stem or stem.startswith(".") or any(ord(c) < 32 or c in '/\\:*?"<>|\x7f' for c in stem):
        raise UsageError(f"file name {stem!r}: expected a plain name without separators or wildcards")
    try:
        stem = stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        taken = {name_key(name) for name in os.listdir(folder)}  # noqa: PTH208
    except UnicodeEncodeError:
        raise UsageError(f"file name {stem!r}: holds characters that no file name can") from None
    except OSError as problem:
        raise ResourceError(
            f"{folder}: cannot be read: {(problem.strerror or str(problem)).lower()}"
        ) from None
    name, count = f"{stem}{suffix}", 1
    while name_key(name) in taken:
        count += 1
        name = f"{stem}-{count}{suffix}"
    return folder / name


def name_key(name: str) -> str:
    """Equal for names that some file system holds to be the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
