"""The header of a safetensors file, read with suspicion.

A safetensors file is eight bytes of little-endian header length, a JSON header, and the tensors' bytes. The
header names each tensor's dtype, shape and byte range. Here every promise of the format is checked before a
byte of data is read: sizes within limits, no duplicate names, ranges that tile the file exactly, shapes that
fill their ranges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from rawdiff import strict_json
from rawdiff.errors import WeightsError

__all__ = ["DTYPES", "MAX_HEADER_BYTES", "MAX_TENSORS", "Entry", "parse_header"]

MAX_HEADER_BYTES = 16 * 2**20
"""The format allows 100 MB; the largest model of this family needs 0.3 MB."""

MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 16

DTYPES: dict[str, tuple[torch.dtype | None, int]] = {
    "F64": (torch.float64, 8),
    "F32": (torch.float32, 4),
    "F16": (torch.float16, 2),
    "BF16": (torch.bfloat16, 2),
    "I64": (torch.int64, 8),
    "I32": (torch.int32, 4),
    "I16": (torch.int16, 2),
    "I8": (torch.int8, 1),
    "U8": (torch.uint8, 1),
    "BOOL": (torch.bool, 1),
    "U64": (None, 8),
    "U32": (None, 4),
    "U16": (None, 2),
    "C64": (None, 8),
    "F8_E4M3": (None, 1),
    "F8_E5M2": (None, 1),
    "F8_E4M3FNUZ": (None, 1),
    "F8_E5M2FNUZ": (None, 1),
    "F8_E8M0": (None, 1),
}
"""Each dtype name of the format: the torch dtype we read it as (None: known, never read), and its bytes."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: its dtype's name, shape, and byte range counted from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _HeaderError(ValueError):
    """What is wrong with a header; becomes a WeightsError that names the file."""


def parse_header(raw: bytes, data_bytes: int, where: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries by name, and the free-form metadata, of a header's JSON text.

    `raw` is the header alone, `data_bytes` the number of bytes that follow it, `where` the file's name for
    messages. Raises WeightsError.
    """
    try:
        return _parse(raw, data_bytes)
    except _HeaderError as bad:
        raise WeightsError(f"{where}: {bad}; the file is damaged or was not made by safetensors") from None


def _parse(raw: bytes, data_bytes: int) -> tuple[dict[str, Entry], dict[str, str]]:
    # Counting brackets bounds what the JSON parser can be made to build: a tensor has one { and two [.
    if raw.count(b"{") > MAX_TENSORS + 2 or raw.count(b"[") > 2 * MAX_TENSORS + 2:
        raise _HeaderError(f"header names more than {MAX_TENSORS} tensors")
    try:
        table = strict_json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise _HeaderError(f"header is not valid JSON ({str(error)[:120]})") from None
    if not isinstance(table, dict):
        raise _HeaderError(f"header is a JSON {type(table).__name__}, expected an object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _HeaderError("__metadata__ does not map text to text")
    entries = {name: _entry(name, value) for name, value in table.items()}
    _check_tiling(entries, data_bytes)
    return entries, metadata


def _quote(name: str) -> str:
    """A tensor's name fit for one line of a message."""
    return ascii(name if len(name) <= 120 else name[:117] + "...")


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _HeaderError(f"tensor {_quote(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _HeaderError(
            f"tensor {_quote(name)} has dtype {str(dtype)[:40]!a}, which the format does not know"
        )
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(_is_count(n) for n in shape):
        raise _HeaderError(f"tensor {_quote(name)} has no valid shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise _HeaderError(f"tensor {_quote(name)} has no valid data_offsets")
    begin, end = offsets
    expected = math.prod(shape) * DTYPES[dtype][1]
    if end - begin != expected:
        raise _HeaderError(
            f"tensor {_quote(name)} spans {end - begin} bytes, expected {expected} for {dtype} {tuple(shape)}"
        )
    return Entry(dtype, tuple(shape), begin, end)


def _is_count(n: Any) -> bool:
    return type(n) is int and 0 <= n < 2**62


def _check_tiling(entries: dict[str, Entry], data_bytes: int) -> None:
    """The ranges must cover the data without gap or overlap: no two tensors share bytes, none is cut."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise _HeaderError(f"tensor {_quote(name)} at byte {entry.begin} {kind}, expected {position}")
        position = entry.end
    if position != data_bytes:
        kind = "is cut short" if data_bytes < position else "has bytes that no tensor owns"
        raise _HeaderError(f"file {kind}: {data_bytes} bytes of data, expected {position}")
