"""SHA-256 of files, computed once for a file that does not change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rawdiff.errors import WeightsError

__all__ = ["remember", "sha256"]

_Key = tuple[str, int, int]  # path, size in bytes, time of last change in ns

_KNOWN: dict[_Key, str] = {}


def _key(path: Path) -> _Key:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal; raises WeightsError if unreadable or changed meanwhile."""
    try:
        key = _key(path)
        if key not in _KNOWN:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                changed = os.fstat(file.fileno()).st_mtime_ns != key[2] or _key(path) != key
            if changed:
                raise WeightsError(f"{path}: changed while it was read; run again when it is complete")
            _KNOWN[key] = digest
        return _KNOWN[key]
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise WeightsError(f"{path}: {reason}; expected a readable file") from error


def remember(path: Path, digest: str) -> None:
    """Take `digest` for the SHA-256 of `path` as it is now (just computed elsewhere)."""
    _KNOWN[_key(path)] = digest
