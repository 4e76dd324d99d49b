"""What a file is, told by its first bytes and never by its name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rawdiff.errors import WeightsError

__all__ = ["kind_of", "open_checked", "say_kind"]

_HEAD_BYTES = 512

_KINDS = {
    "empty": "an empty file",
    "html": "a web page (a download went wrong, or a login page was saved)",
    "lfs": "a Git LFS pointer, not the file itself",
    "zip": "a zipped PyTorch pickle",
    "pickle": "a PyTorch pickle",
    "gzip": "a gzip archive",
    "json": "a JSON text",
    "gguf": "a GGUF file",
    "safetensors": "a safetensors file",
    "unknown": "no weight file of a known kind",
}

_REMEDIES = {
    "empty": "download it again",
    "html": "download it again, logged in if its page asks for that",
    "lfs": "fetch it with `git lfs pull`",
    "gguf": "get the safetensors file of this model",
}


def kind_of(head: bytes) -> str:
    """`"safetensors"`, `"zip"`, `"pickle"`, `"html"`, `"lfs"`, `"empty"`, ... from a file's first bytes."""
    if not head:
        return "empty"
    if head[4:9] == b"\0\0\0\0{":  # first, since a length may spell anything: 35615 is gzip's magic number
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return "html"
    if head.startswith(b"version https://git-lfs"):
        return "lfs"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[0] == 0x80 and len(head) > 1 and 1 <= head[1] <= 5:
        return "pickle"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"GGUF"):
        return "gguf"
    if head[8:9] == b"{" and not text.startswith((b"{", b"[")):
        return "safetensors"
    if text.startswith((b"{", b"[")):
        return "json"
    return "unknown"


def say_kind(kind: str) -> str:
    """A kind in words: "a Git LFS pointer, not the file itself"."""
    return _KINDS[kind]


def open_checked(path: Path) -> tuple[int, int, str]:
    """Open a regular file for reading: its descriptor, its size in bytes, its kind. The caller closes it.

    Raises WeightsError when it is missing, unreadable, no regular file (a pipe would block), or plainly no
    weights.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise WeightsError(f"{path}: {reason.lower()}; expected a readable weight file") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{path}: not a regular file; expected a weight file")
        kind = kind_of(os.read(descriptor, _HEAD_BYTES))
        os.lseek(descriptor, 0, os.SEEK_SET)
        if kind in _REMEDIES:
            raise WeightsError(f"{path}: is {say_kind(kind)}; {_REMEDIES[kind]}")
    except OSError as error:
        os.close(descriptor)
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    except WeightsError:
        os.close(descriptor)
        raise
    return descriptor, status.st_size, kind
