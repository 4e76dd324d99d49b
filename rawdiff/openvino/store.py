"""What was converted, on disk: whole files or none, the least recently used deleted beyond a limit.

A file is its digest, the length of its first part, and two parts: the operations (XML) and their constants. The
digest covers the key by which the file is found: what is torn, foreign or renamed counts as not there. Processes may
share a folder, since a file takes its name when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from rawdiff import paths
from rawdiff.images.durable import check_writable, publish

__all__ = ["LIMIT_BYTES", "Store", "cache_folder"]

MAGIC = b"rawdiff-openvino\n"
ENDING = ".converted"
LIMIT_BYTES = 2**28


def cache_folder() -> Path:
    """`openvino` in rawdiff's cache folder; ResourceError for a user without a home."""
    return paths.cache_folder() / "openvino"


class Store:
    """The files of one folder, which is made when the first is written."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = cache_folder() if folder is None else folder
        self.limit_bytes = limit_bytes

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    def get(self, key: str) -> tuple[bytes, bytes] | None:
        """Both parts of what was put under this key; None where they are not there, or not whole."""
        path = self._path(key)
        try:
            found = path.read_bytes()
        except OSError:
            return None
        start = len(MAGIC) + 32
        digest, body = found[len(MAGIC) : start], found[start:]
        if found[: len(MAGIC)] != MAGIC or digest != _digest(key, body):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the last to be deleted
        length = int.from_bytes(body[:8], "little")
        return body[8 : 8 + length], body[8 + length :]

    def put(self, key: str, operations: bytes, constants: bytes) -> None:
        """Keep both parts under a key, in the place of what was there; ResourceError where writing fails."""
        check_writable(self.folder)
        body = len(operations).to_bytes(8, "little") + operations + constants
        publish(self._path(key), MAGIC + _digest(key, body) + body, overwrite=True)
        self._shrink(self._path(key))

    def sizes(self) -> dict[Path, int]:
        """Bytes of every file, the least recently used first."""
        found: list[tuple[float, Path, int]] = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"*{ENDING}"):
                with contextlib.suppress(OSError):  # another process may have deleted it
                    status = path.stat()
                    found.append((status.st_mtime, path, status.st_size))
        return {path: size for _, path, size in sorted(found)}

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{ENDING}"

    def _shrink(self, newest: Path) -> None:
        sizes = self.sizes()
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self.limit_bytes:
                return
            if path != newest:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + body).digest()
