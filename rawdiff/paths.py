"""Paths as they are typed: none makes looking for it fail. One that no system could hold is not there."""

from __future__ import annotations

import os
from pathlib import Path

from rawdiff.errors import UsageError

__all__ = ["check_name", "expanded", "is_file", "is_folder", "is_there"]


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


def is_there(path: str | Path) -> bool:
    """Whether anything is; False for a name that is too long or holds a NUL."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: str | Path) -> bool:
    """Whether it is a folder; False likewise."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | Path) -> bool:
    """Whether it is a file; False likewise."""
    return os.path.isfile(path)  # noqa: PTH113
