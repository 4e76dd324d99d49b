"""Bytes of an input file, bounded, and what kind of file they are by content (never by name)."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from rawdiff.errors import InputError

__all__ = ["MAX_FILE_BYTES", "MAX_PIXELS", "check_pixels", "check_regular", "read_bytes", "sha256", "sniff"]

MAX_PIXELS = 2**26
"""No picture or map has more pixels than this (8192x8192): a small file can claim billions."""

MAX_FILE_BYTES = 2**30
"""No input file is larger than this."""

_WANTED = "expected a PNG, TIFF, JPEG, WEBP or .npy file"

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\x93NUMPY", "npy"),
)

_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"PK\x03\x04", "a zip or .npz archive"),
    (b"Pf", "a PFM map"),
    (b"PF", "a PFM map"),
    (b"\x76\x2f\x31\x01", "an OpenEXR file"),
    (b"%PDF", "a PDF"),
    (b"<", "a web page or SVG"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run `git lfs pull`)"),
    (b"\0\0\0", "an AVIF, HEIC or video file"),
)


def check_regular(path: str | Path) -> Path:
    """`path` as a Path if it is an ordinary file; InputError otherwise (a pipe could block for ever)."""
    try:
        file = Path(path)
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as problem:
        raise InputError(f"{str(path)!r}: cannot be opened ({_reason(problem)})") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not an ordinary file"
        raise InputError(f"{path}: is {what}; {_WANTED}")
    return file


def read_bytes(path: str | Path) -> bytes:
    """The whole file; InputError when it cannot be read, is empty or is larger than MAX_FILE_BYTES."""
    file = check_regular(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({_reason(problem)})") from None
    if not data:
        raise InputError(f"{path}: is empty; {_WANTED}")
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path}: is larger than {MAX_FILE_BYTES // 2**20} MiB; make it smaller")
    return data


def sniff(data: bytes, name: str) -> str:
    """ "PNG", "JPEG", "WEBP", "TIFF" or "npy", told by the first bytes; InputError for anything else."""
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    found = next((what for signature, what in _FOREIGN if data.startswith(signature)), "of an unknown kind")
    raise InputError(f"{name}: is {found}; {_WANTED}")


def check_pixels(height: int, width: int, name: str) -> None:
    """InputError unless a picture of this size is neither empty nor a decompression bomb."""
    if height < 1 or width < 1:
        raise InputError(f"{name}: is {width}x{height} pixels, which is empty; expected at least 1x1")
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{name}: claims {width}x{height} pixels, beyond the limit of {MAX_PIXELS}; make it smaller first"
        )


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _reason(problem: Exception) -> str:
    return (getattr(problem, "strerror", None) or str(problem)).lower()
