"""Paths as they are typed: none makes looking for it fail. One that no system could hold is not there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rawdiff.errors import ResourceError, UsageError

__all__ = [
    "absent",
    "cache_folder",
    "check_name",
    "expanded",
    "is_file",
    "is_folder",
    "is_there",
    "leads_inside",
    "remove_empty",
]


MAX_NAME_BYTES = 255


def check_name(what: str, path: str | Path) -> None:
    """Raise UsageError for a file to be written whose name is longer than names can be."""
    if len(os.fsencode(Path(path).name)) > MAX_NAME_BYTES:
        raise UsageError(
            f"{what} {str(path)[:60]!r}...: the name is too long: expected at most {MAX_NAME_BYTES} bytes"
        )


def expanded(path: str | Path) -> Path:
    """With the home folder for `~`; as it stands where there is no such user, so that it is not there."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def cache_folder() -> Path:
    """Where the platform keeps what can be made again: `rawdiff` in XDG_CACHE_HOME, if that is set.

    Raises ResourceError for a user without a home.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    if named and Path(named).is_absolute():
        base = Path(named)
    elif sys.platform == "darwin":
        base = _home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local")
    else:
        base = _home() / ".cache"
    return base / "rawdiff"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a container's user that no table knows, say
        raise ResourceError(
            "this user has no home folder for a cache: set XDG_CACHE_HOME to a folder"
        ) from None


def absent(folder: Path) -> tuple[Path, ...]:
    """Which folders would have to be made to have this one, the innermost first."""
    found = []
    for one in (folder, *folder.parents):
        if is_there(one):
            break
        found.append(one)
    return tuple(found)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove these folders, as far as they are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def leads_inside(path: Path, folder: Path) -> bool | None:
    """Whether it lies in the folder, links followed; None for one that cannot be followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself is the second before Python 3.13
        return None


def is_there(path: str | Path) -> bool:
    """Whether anything is; False for a name that is too long or holds a NUL."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: str | Path) -> bool:
    """Whether it is a folder; False likewise."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | Path) -> bool:
    """Whether it is a file; False likewise."""
    return os.path.isfile(path)  # noqa: PTH113
