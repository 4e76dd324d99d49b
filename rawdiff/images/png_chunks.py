"""PNG at the level of chunks: walked within bounds, checksums verified, the pixel stream complete.

Decoders differ in what they let through: one returns nothing for a wrong checksum, another fills what is
missing with zeros. What leaves here is complete, and holds only the chunks that decide the pixels.

Source: Portable Network Graphics Specification, W3C, third edition.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rawdiff.errors import InputError
from rawdiff.images.files import check_pixels

__all__ = ["PNG_SIGNATURE", "PngHeader", "read_chunk", "strip_png", "walk_chunks"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 1_000_000
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class PngHeader:
    """What a PNG says of itself, and the PNG reduced to the chunks that decide its pixels."""

    width: int
    height: int
    bits: int  # per sample
    colour_type: int  # 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA
    exif: bytes | None
    stripped: bytes

    @property
    def channels(self) -> int:
        return _CHANNELS[self.colour_type]


def walk_chunks(stream: BinaryIO, name: str) -> Iterator[tuple[bytes, int]]:
    """(kind, length in bytes) of every chunk, the stream standing at its data; InputError if not whole."""
    end_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if stream.read(8) != PNG_SIGNATURE:
        raise InputError(f"{name}: is not a PNG (its first eight bytes say otherwise)")
    at, kind = 8, b""
    for count in range(MAX_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            raise InputError(
                f"{name}: PNG is truncated after {at} bytes (no IEND chunk); make or fetch it again"
            )
        length, kind = struct.unpack(">I4s", head)
        if not kind.isalpha() or not kind.isascii():
            raise InputError(f"{name}: PNG is damaged at byte {at} (a chunk has no proper name)")
        if at + 12 + length > end_bytes:
            raise InputError(
                f"{name}: PNG is truncated: chunk {kind.decode()} at byte {at} goes beyond the end"
            )
        if (count == 0) != (kind == b"IHDR"):
            raise InputError(f"{name}: PNG is damaged: chunk {kind.decode()} at byte {at} is out of place")
        yield kind, length
        at += 12 + length
        stream.seek(at)
        if kind == b"IEND":
            return
    raise InputError(f"{name}: PNG has more than {MAX_CHUNKS} chunks")


def read_chunk(stream: BinaryIO, kind: bytes, length: int, name: str) -> bytes:
    """The data of the chunk at which the stream stands, its checksum verified; InputError."""
    at = stream.tell() - 8
    data = stream.read(length)
    (checksum,) = struct.unpack(">I", stream.read(4))
    if zlib.crc32(data, zlib.crc32(kind)) != checksum:
        raise InputError(f"{name}: PNG is damaged: wrong checksum in chunk {kind.decode()} at byte {at}")
    return data


def strip_png(data: bytes, name: str) -> PngHeader:
    """Check every chunk of a PNG and its pixel stream; keep the chunks that decide pixels. InputError."""
    stream = io.BytesIO(data)
    header: tuple[int, ...] = ()
    exif: bytes | None = None
    kept: list[bytes] = []
    pixels: list[bytes] = []
    seen: set[bytes] = set()
    for kind, length in walk_chunks(stream, name):
        body = read_chunk(stream, kind, length, name)
        if kind in (b"IHDR", b"PLTE", b"tRNS") and kind in seen:
            raise InputError(f"{name}: PNG is damaged: two chunks {kind.decode()}")
        seen.add(kind)
        if kind == b"IHDR":
            if length != 13:
                raise InputError(f"{name}: PNG is damaged: its header has {length} bytes, expected 13")
            header = struct.unpack(">IIBBBBB", body)
            _check_header(header, name)
        elif kind == b"IDAT":
            pixels.append(body)
        elif kind == b"eXIf":
            exif = body
        elif kind == b"acTL":
            raise InputError(f"{name}: is an animated PNG; expected a single picture")
        if kind in (b"IHDR", b"PLTE", b"tRNS"):
            kept.append(_chunk(kind, body))
    width, height, bits, colour_type, _, _, interlaced = header
    if colour_type == 3 and b"PLTE" not in seen:
        raise InputError(f"{name}: PNG is damaged: it has no palette")
    stream_bytes = b"".join(pixels)
    passes = _passes(width, height, _CHANNELS[colour_type] * bits, interlaced)
    _check_pixel_stream(stream_bytes, passes, name)
    kept += [_chunk(b"IDAT", stream_bytes[i : i + 2**24]) for i in range(0, len(stream_bytes), 2**24)]
    stripped = PNG_SIGNATURE + b"".join(kept) + _chunk(b"IEND", b"")
    return PngHeader(width, height, bits, colour_type, exif, stripped)


def _check_header(header: tuple[int, ...], name: str) -> None:
    width, height, bits, colour_type, compression, filtering, interlaced = header
    if bits not in _DEPTHS.get(colour_type, ()) or compression or filtering or interlaced > 1:
        raise InputError(
            f"{name}: PNG is damaged: {bits} bits of colour type {colour_type} is no valid header"
        )
    check_pixels(height, width, name)


def _passes(width: int, height: int, pixel_bits: int, interlaced: int) -> list[tuple[int, int]]:
    """(rows, bytes a row) of each pass; a row is a filter byte and its pixels, padded to bytes."""
    grids = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    passes = []
    for x, y, step_x, step_y in grids:
        columns = (width - x + step_x - 1) // step_x
        rows = (height - y + step_y - 1) // step_y
        if columns > 0 and rows > 0:
            passes.append((rows, 1 + (columns * pixel_bits + 7) // 8))
    return passes


def _check_pixel_stream(compressed: bytes, passes: list[tuple[int, int]], name: str) -> None:
    """InputError unless `compressed` inflates to all rows, each with a valid filter; nothing is kept."""
    raw_bytes = sum(rows * row_bytes for rows, row_bytes in passes)
    inflate = zlib.decompressobj()
    found, rest = 0, compressed
    try:
        while found < raw_bytes and not inflate.eof:
            part = inflate.decompress(rest, 2**20)
            if not part and not inflate.eof:
                break
            _check_filters(part, found, passes, name)
            found, rest = found + len(part), inflate.unconsumed_tail
        if found == raw_bytes:
            inflate.decompress(rest, 1)  # reads the stream's own checksum
    except zlib.error:
        raise InputError(f"{name}: PNG is damaged: its pixels do not decompress") from None
    if found < raw_bytes:
        raise InputError(
            f"{name}: PNG is truncated: its pixels end at {found} of {raw_bytes} bytes; fetch it again"
        )


def _check_filters(part: bytes, at: int, passes: list[tuple[int, int]], name: str) -> None:
    """InputError if a row that begins in `part`, the bytes from `at` on, has a filter that does not exist."""
    start = 0
    for rows, row_bytes in passes:
        end = start + rows * row_bytes
        first = start if at <= start else at + (start - at) % row_bytes
        if max(part[first - at : max(0, end - at) : row_bytes], default=0) > 4:
            raise InputError(f"{name}: PNG is damaged: a row of pixels has an unknown filter")
        start = end


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
