"""SHA-256 of files, computed once for a file that does not change, and whether what was read is still theirs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from rawdiff.errors import WeightsError

__all__ = ["States", "check_unchanged", "read_from", "remember", "sha256", "states"]

States = Mapping[Path, "_Key | None"]
"""Files as they are at some time; None for one that cannot be looked at."""

_Key = tuple[str, int, int]  # path, size in bytes, time of last change in ns

_KNOWN: dict[_Key, str] = {}
_READ: WeakKeyDictionary[Any, States] = WeakKeyDictionary()


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


def states(paths: Iterable[Path]) -> States:
    """The files as they are now."""
    return {path: _state(path) for path in paths}


def _state(path: Path) -> _Key | None:
    try:
        return _key(path)
    except OSError:
        return None


def read_from(thing: Any, found: States) -> None:
    """Say that `thing` is read from these files, which were looked at before."""
    _READ[thing] = found


def check_unchanged(thing: Any) -> None:
    """Raise WeightsError where a file is another now than the one that `thing` was read from.

    The hashes of what lies there now would tell of other weights than those that compute. Of what was read from no file
    nothing is known.
    """
    for path, found in _READ.get(thing, {}).items():
        now = _state(path)
        if now == found or (found in _KNOWN and now is not None and sha256(path) == _KNOWN[found]):
            continue  # touched at most
        what = "is gone" if now is None else "changed"
        raise WeightsError(f"{path}: {what} since it was loaded: run again, or load the model again")
