"""Paths as they are typed: none makes looking for it fail. One that no system could hold is not there."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["expanded", "is_file", "is_folder", "is_there"]


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
