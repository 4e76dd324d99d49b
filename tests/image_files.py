"""Pictures and maps written byte by byte, for the tests of rawdiff.images."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of every chunk of a sound PNG."""
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def join(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(chunk(kind, body) for kind, body in chunks)


def png(array: np.ndarray[Any, Any], colour_type: int = 0, extra: bytes = b"") -> bytes:
    """[H,W] or [H,W,C], uint8 or uint16, unfiltered; `extra` chunks stand before the pixels."""
    height, width = array.shape[:2]
    bits = array.dtype.itemsize * 8
    rows = array.reshape(height, -1).astype(array.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def tiff(
    array: np.ndarray[Any, Any],
    *,
    order: str = "<",
    photometric: int | None = None,
    orientation: int = 1,
) -> bytes:
    """[H,W] or [H,W,3] of any dtype, uncompressed, one strip."""
    height, width = array.shape[:2]
    samples = 1 if array.ndim == 2 else array.shape[2]
    body = array.astype(array.dtype.newbyteorder(order)).tobytes()
    bits = array.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    at = 8 + len(body)
    wide = struct.pack(order + "3H", bits, bits, bits) + struct.pack(order + "3H", kind, kind, kind)
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, samples, bits if samples == 1 else at),
        (259, 3, 1, 1), (262, 3, 1, (1 if samples == 1 else 2) if photometric is None else photometric),
        (273, 4, 1, 8),
        (274, 3, 1, orientation), (277, 3, 1, samples), (278, 3, 1, height), (279, 4, 1, len(body)),
        (339, 3, samples, kind if samples == 1 else at + 6),
    ]  # fmt: skip
    ifd = struct.pack(order + "H", len(entries))
    for tag, type_, count, value in entries:
        short = type_ == 3 and count == 1
        ifd += struct.pack(order + "HHI", tag, type_, count)
        ifd += struct.pack(order + ("HH" if short else "I"), *((value, 0) if short else (value,)))
    ifd += struct.pack(order + "I", 0)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", at + 12) + body + wide + ifd


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(text: str, body: bytes = b"") -> bytes:
    """A version 1.0 .npy with this header, whatever it claims."""
    header = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def pil(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
