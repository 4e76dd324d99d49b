"""One file of tensors, opened after its content: safetensors, or an old pickle read without running code.

Tensors are read one at a time into memory of their own. A mapping would be no faster (the bytes are in the
page cache either way), would show every later change of the file in the running network, and would kill the
process if the file were cut while mapped.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rawdiff.errors import ResourceError, WeightsError
from rawdiff.weights.header import DTYPES, MAX_HEADER_BYTES, Entry, parse_header
from rawdiff.weights.sniff import open_checked, say_kind

__all__ = ["PickleFile", "SafetensorsFile", "TensorFile", "open_tensors", "read_pickle"]

_READ_BYTES = 2**30  # Linux reads at most 2 GiB - 4 KiB at once


class TensorFile(Protocol):
    """Named tensors in a file: shapes and dtypes at once, values when asked for."""

    path: Path

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by name."""

    def dtypes(self) -> Mapping[str, str]:
        """Dtype of each tensor by name, as safetensors names them (F32, BF16, I64, F8_E4M3, ...)."""

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in memory of its own."""

    def close(self) -> None:
        """Give back the file."""


class SafetensorsFile:
    """A safetensors file whose header has been checked; raises WeightsError for whatever is wrong with it."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self._descriptor = descriptor
        prefix = _read_exactly(descriptor, 8, 0, path).numpy().tobytes() if size_bytes >= 8 else b""
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size_bytes - 8:
            raise WeightsError(
                f"{path}: truncated at {size_bytes} bytes, inside its header; download it again"
            )
        if length > MAX_HEADER_BYTES:
            raise WeightsError(f"{path}: header of {length} bytes, expected at most {MAX_HEADER_BYTES}")
        self._data_start = 8 + length
        raw = _read_exactly(descriptor, length, 8, path).numpy().tobytes()
        self.entries, self.metadata = parse_header(raw, size_bytes - self._data_start, str(path))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def dtypes(self) -> Mapping[str, str]:
        """Dtype of each tensor by name, as safetensors names them."""
        return {name: entry.dtype for name, entry in self.entries.items()}

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in memory of its own; raises WeightsError, ResourceError."""
        entry: Entry = self.entries[name]
        dtype = DTYPES[entry.dtype][0]
        if dtype is None:
            raise WeightsError(f"{self.path}: {name!a} has dtype {entry.dtype}, which is not read here")
        if math.prod(entry.shape) == 0:
            return torch.empty(entry.shape, dtype=dtype)
        size_bytes = entry.end - entry.begin
        data = _read_exactly(self._descriptor, size_bytes, self._data_start + entry.begin, self.path)
        return data.view(dtype).reshape(entry.shape)

    def close(self) -> None:
        """Give back the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_exactly(descriptor: int, size_bytes: int, offset: int, path: Path) -> Tensor:
    """`size_bytes` bytes from `offset`, as a uint8 tensor in torch's own (aligned) memory."""
    try:
        buffer = torch.empty(size_bytes, dtype=torch.uint8)
    except (MemoryError, RuntimeError) as error:
        raise ResourceError(f"{path}: no memory for a tensor of {size_bytes} bytes") from error
    view, done = memoryview(buffer.numpy().data), 0
    while done < size_bytes:
        chunk = view[done : done + _READ_BYTES]
        try:
            if hasattr(os, "preadv"):
                count = os.preadv(descriptor, [chunk], offset + done)
            else:
                os.lseek(descriptor, offset + done, os.SEEK_SET)
                piece = os.read(descriptor, len(chunk))
                count = len(piece)
                chunk[:count] = piece
        except OSError as error:
            raise WeightsError(
                f"{path}: reading failed at byte {offset + done} ({error.strerror})"
            ) from error
        if count == 0:
            raise WeightsError(f"{path}: was cut at byte {offset + done} while being read; download it again")
        done += count
    return buffer


def read_pickle(path: Path, remedy: str, known: Sequence[type] = ()) -> Any:
    """What an old PyTorch file holds, read with `weights_only=True`: no code in it is ever run.

    `known` are inert classes that it may use beside tensors, lists and dicts; `remedy` ends the error's line.
    Raises WeightsError, ResourceError.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(known)):
            warnings.simplefilter("ignore")  # torch's notes on its own old formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise ResourceError(f"{path}: no memory to load it") from error
    except Exception as error:  # torch.load lets a dozen kinds escape from a damaged file
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"{path}: not a readable PyTorch file of tensors ({type(error).__name__}: {reason}); {remedy}"
        ) from error


class PickleFile:
    """An old `.bin` of named tensors, opened with `weights_only=True`: no code in it is ever run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table = read_pickle(path, "get the safetensors file of this model")
        if not isinstance(table, dict) or not table:
            raise WeightsError(f"{path}: holds {type(table).__name__}, expected named tensors")
        for name, value in table.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise WeightsError(f"{path}: {str(name)[:80]!a} is {type(value).__name__}, expected a tensor")
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise WeightsError(f"{path}: {name!a} is not a plain dense tensor")
        self._table: dict[str, Tensor] = table

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        return {name: tuple(value.shape) for name, value in self._table.items()}

    def dtypes(self) -> Mapping[str, str]:
        """Dtype of each tensor by name, as safetensors names them."""
        names = {dtype: name for name, (dtype, _) in DTYPES.items() if dtype is not None}
        return {name: names.get(value.dtype, str(value.dtype)) for name, value in self._table.items()}

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in memory of its own."""
        # A copy: tensors of one pickle may be views of one large storage.
        return self._table[name].detach().clone(memory_format=torch.contiguous_format)

    def close(self) -> None:
        """Give back the file."""
        self._table = {}


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors, its kind told by its content; raises WeightsError that names file and fault."""
    descriptor, size_bytes, kind = open_checked(path)
    if kind in ("zip", "pickle") and path.suffix != ".safetensors":
        os.close(descriptor)
        return PickleFile(path)
    try:
        if kind != "safetensors":
            raise WeightsError(f"{path}: is {say_kind(kind)}; expected safetensors")
        return SafetensorsFile(path, descriptor, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
