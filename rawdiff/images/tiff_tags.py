"""The tags of a TIFF that decide how its samples must be read; classic and BigTIFF, both byte orders.

Pillow reads 8-bit signed samples as unsigned and 32-bit unsigned ones as signed, drops 16-bit colour to 8
and does not open float64; OpenCV reads those. To know which to ask, the tags are read here, and the
orientation is set to "upright" in a copy, because decoders differ in whether they apply it.

Source: TIFF revision 6.0 (Adobe, 1992); BigTIFF (libtiff).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rawdiff.errors import InputError
from rawdiff.images.files import check_pixels

__all__ = ["TiffTags", "read_tiff_tags"]

MAX_ENTRIES = 4096
MAX_DECODED_BYTES = 2**29
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, FORMAT = 256, 257, 258, 262, 274, 277, 339


@dataclass(frozen=True)
class TiffTags:
    """Of the first picture in the file."""

    width: int
    height: int
    bits: int  # per sample
    samples: int  # per pixel
    format: str  # "uint", "int", "float"
    photometric: int  # 0 white is zero, 1 black is zero, 2 RGB, 3 palette, ...
    orientation: int  # 1..8 as in EXIF; 1 where it says something else
    pages: int  # 1, or 2 meaning more
    upright: bytes  # the file with its orientation set to 1


def read_tiff_tags(data: bytes, name: str) -> TiffTags:
    """Read the tags; InputError when they are damaged or describe a picture that is too large."""
    try:
        return _read(data, name)
    except (struct.error, OverflowError, KeyError):
        raise InputError(f"{name}: TIFF is truncated or damaged; make or fetch it again") from None


def _read(data: bytes, name: str) -> TiffTags:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset_format, count_format = ("Q", "Q") if big else ("I", "H")
    entry_bytes, inline_bytes = (20, 8) if big else (12, 4)
    (at,) = struct.unpack_from(order + offset_format, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_format, data, at)
    at += struct.calcsize(order + count_format)
    if not 0 < count <= MAX_ENTRIES:
        raise InputError(f"{name}: TIFF claims {count} tags; the file is damaged")
    tags: dict[int, tuple[int, ...]] = {}
    upright = bytearray(data)
    for entry in range(at, at + count * entry_bytes, entry_bytes):
        tag, kind, values = struct.unpack_from(order + "HH" + offset_format, data, entry)
        if tag not in (WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, FORMAT):
            continue
        value_at = entry + entry_bytes - inline_bytes
        if not 0 < values <= 64 or tag in tags:
            raise InputError(f"{name}: TIFF tag {tag} is damaged")
        code = f"{order}{values}{_TYPES[kind]}"
        if struct.calcsize(code) > inline_bytes:
            (value_at,) = struct.unpack_from(order + offset_format, data, value_at)
        tags[tag] = struct.unpack_from(code, data, value_at)
        if tag == ORIENTATION:
            struct.pack_into(order + _TYPES[kind], upright, value_at, 1)
    (next_page,) = struct.unpack_from(order + offset_format, data, at + count * entry_bytes)
    width, height = tags[WIDTH][0], tags[HEIGHT][0]
    check_pixels(height, width, name)
    samples = tags.get(SAMPLES, (1,))[0]
    orientation = tags.get(ORIENTATION, (1,))[0]
    bits = tags.get(BITS, (1,))
    formats = tags.get(FORMAT, (1,))
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise InputError(f"{name}: TIFF mixes samples of different kinds; save all channels alike")
    if formats[0] not in (1, 2, 3, 4):
        raise InputError(f"{name}: TIFF has complex samples; expected whole numbers or floats")
    if width * height * samples * max(1, bits[0] // 8) > MAX_DECODED_BYTES:
        raise InputError(
            f"{name}: TIFF would take more than {MAX_DECODED_BYTES // 2**20} MiB; make it smaller"
        )
    return TiffTags(
        width=width,
        height=height,
        bits=bits[0],
        samples=samples,
        format={1: "uint", 2: "int", 3: "float", 4: "uint"}[formats[0]],
        photometric=tags.get(PHOTOMETRIC, (1,))[0],
        orientation=orientation if 1 <= orientation <= 8 else 1,
        pages=2 if next_page else 1,
        upright=bytes(upright),
    )
