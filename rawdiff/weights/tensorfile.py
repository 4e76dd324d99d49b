"""One file of tensors, opened after its content: safetensors, or an old pickle read without running code.

Tensors are read one at a time, whole into memory of their own or by blocks. A mapping would be no faster (the bytes
are in the page cache either way), would show every later change of the file in the running network, and would kill
the process if the file were cut while mapped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rawdiff.errors import WeightsError
from rawdiff.weights.disk import read_blocks, read_exactly
from rawdiff.weights.header import DTYPES, MAX_HEADER_BYTES, Entry, parse_header
from rawdiff.weights.sniff import open_checked, say_kind
from rawdiff.weights.torchfile import PickleFile, ZippedFile

__all__ = ["SafetensorsFile", "StoredFile", "TensorFile", "open_tensors"]


class TensorFile(Protocol):
    """Named tensors in a file: shapes and dtypes at once, values when asked for."""

    path: Path

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by name."""

    def dtypes(self) -> Mapping[str, str]:
        """Dtype of each tensor by name, as safetensors names them (F32, BF16, I64, F8_E4M3, ...)."""

    def key(self, name: str) -> str:
        """How messages call a tensor, there or missing: by its name in the file."""

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in memory of its own."""

    def blocks(self, name: str, count: int) -> Iterator[Tensor]:
        """The values of what `read` gives, in their order, as flat tensors of `count` and a last one of the rest.

        Each may lie in memory that the next one uses again.
        """

    def close(self) -> None:
        """Give back the file."""


class StoredFile(TensorFile, Protocol):
    """A file as it is stored, of whose tensors some rows can be read: from one to before another."""

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """One tensor, or its rows, on the CPU, in memory of its own."""

    def blocks(self, name: str, count: int, rows: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """The values of what `read` gives, as `TensorFile.blocks` has them."""


class SafetensorsFile:
    """A safetensors file whose header has been checked; raises WeightsError for whatever is wrong with it."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self._descriptor = descriptor
        prefix = read_exactly(descriptor, 8, 0, path).numpy().tobytes() if size_bytes >= 8 else b""
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size_bytes - 8:
            raise WeightsError(
                f"{path}: truncated at {size_bytes} bytes, inside its header; download it again"
            )
        if length > MAX_HEADER_BYTES:
            raise WeightsError(f"{path}: header of {length} bytes, expected at most {MAX_HEADER_BYTES}")
        self._data_start = 8 + length
        raw = read_exactly(descriptor, length, 8, path).numpy().tobytes()
        self.entries, self.metadata = parse_header(raw, size_bytes - self._data_start, str(path))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def dtypes(self) -> Mapping[str, str]:
        """Dtype of each tensor by name, as safetensors names them."""
        return {name: entry.dtype for name, entry in self.entries.items()}

    def key(self, name: str) -> str:
        """How messages call a tensor."""
        return name

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """One tensor, or its rows from one to before another, on the CPU, in memory of its own.

        Raises WeightsError, ResourceError.
        """
        entry, dtype = self._found(name, rows)
        if math.prod(entry.shape) == 0:
            return torch.empty(entry.shape, dtype=dtype)
        size_bytes = entry.end - entry.begin
        data = read_exactly(self._descriptor, size_bytes, self._data_start + entry.begin, self.path)
        return data.view(dtype).reshape(entry.shape)

    def blocks(self, name: str, count: int, rows: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """The values of one tensor, or of its rows, `count` at a time, in memory that is used again.

        Raises WeightsError, ResourceError.
        """
        entry, dtype = self._found(name, rows)
        size_bytes, begin = entry.end - entry.begin, self._data_start + entry.begin
        return read_blocks(self._descriptor, size_bytes, begin, self.path, dtype, count)

    def _found(self, name: str, rows: tuple[int, int] | None) -> tuple[Entry, torch.dtype]:
        entry = self.entries[name] if rows is None else _rows(self.entries[name], *rows)
        dtype = DTYPES[entry.dtype][0]
        if dtype is None:
            raise WeightsError(f"{self.path}: {name!a} has dtype {entry.dtype}, which is not read here")
        return entry, dtype

    def close(self) -> None:
        """Give back the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _rows(entry: Entry, first: int, end: int) -> Entry:
    """The part of an entry that holds rows `first` to before `end`."""
    row_bytes = (entry.end - entry.begin) // max(entry.shape[0], 1)
    shape = (end - first, *entry.shape[1:])
    return Entry(entry.dtype, shape, entry.begin + first * row_bytes, entry.begin + end * row_bytes)


def open_tensors(path: Path) -> StoredFile:
    """Open a file of tensors, its kind told by its content; raises WeightsError that names file and fault."""
    descriptor, size_bytes, kind = open_checked(path)
    try:
        if kind == "zip" and path.suffix != ".safetensors":
            return ZippedFile(path, descriptor)
        if kind == "pickle" and path.suffix != ".safetensors":
            read = PickleFile(path)
            os.close(descriptor)
            return read
        if kind != "safetensors":
            raise WeightsError(f"{path}: is {say_kind(kind)}; expected safetensors")
        return SafetensorsFile(path, descriptor, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
