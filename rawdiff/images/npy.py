"""NumPy's .npy, read without trust: its header must agree with the file's size before memory is taken.

Source: NumPy enhancement proposal 1, "A Simple File Format for NumPy Arrays", versions 1.0 to 3.0.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rawdiff.errors import InputError

__all__ = ["read_npy"]

MAX_HEADER_BYTES = 10_000
MAX_DIMENSIONS = 8
_PLAIN = re.compile(r"[<>|=](?:b1|[iu][1248]|f[248])")


def read_npy(data: bytes, name: str) -> NDArray[Any]:
    """The array in `data`, in native byte order; InputError for object arrays and lying headers."""
    if len(data) < 10 or data[:6] != b"\x93NUMPY":
        raise InputError(f"{name}: .npy is truncated after {len(data)} bytes; save or fetch it again")
    version = data[6]
    if version not in (1, 2, 3):
        raise InputError(f"{name}: .npy of version {version}, expected 1, 2 or 3")
    width = 2 if version == 1 else 4
    if len(data) < 8 + width:
        raise InputError(f"{name}: .npy is truncated in its header; save or fetch it again")
    header_bytes = struct.unpack("<H" if width == 2 else "<I", data[8 : 8 + width])[0]
    start = 8 + width + header_bytes
    if header_bytes > MAX_HEADER_BYTES or start > len(data):
        raise InputError(f"{name}: .npy header claims {header_bytes} bytes; the file is damaged or truncated")
    dtype, fortran, shape = _parse(data[8 + width : start], name)
    count = math.prod(shape)
    if count == 0:
        raise InputError(f"{name}: .npy of shape {shape} is empty; expected (height, width)")
    found, expected = len(data) - start, count * dtype.itemsize
    if found != expected:
        raise InputError(
            f"{name}: .npy claims shape {shape} of {dtype.name}, {expected} bytes, but holds {found}; "
            "it is truncated, damaged or more than one array"
        )
    array = np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype.newbyteorder("="))


def _parse(header: bytes, name: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """(dtype, Fortran order, shape) of the dictionary that a header is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd literals make the parser warn
            fields = ast.literal_eval(header.decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise InputError(f"{name}: .npy header cannot be understood; the file is damaged") from None
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise InputError(f"{name}: .npy header lacks dtype, order or shape; the file is damaged")
    descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if isinstance(descr, str) and descr.lstrip("<>|=").startswith("O"):
        raise InputError(f"{name}: is an object array, which can hold code; save it as plain numbers")
    if not isinstance(descr, str) or not _PLAIN.fullmatch(descr):
        found = repr(descr[:20]) if isinstance(descr, str) else "a structure"
        raise InputError(f"{name}: is an array of {found}; expected whole numbers or floats")
    sides = shape if isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS else (-1,)
    if not isinstance(fortran, bool) or not all(type(side) is int and 0 <= side < 2**63 for side in sides):
        raise InputError(f"{name}: .npy header claims an impossible shape or order; the file is damaged")
    return np.dtype(descr), fortran, sides
