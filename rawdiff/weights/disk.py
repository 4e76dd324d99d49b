"""Bytes of a file, read into memory of torch's own: all of them, or an error that says where it broke off.

At once, or block after block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rawdiff.errors import ResourceError, WeightsError

__all__ = ["in_blocks", "read_blocks", "read_exactly"]

_READ_BYTES = 2**30  # Linux reads at most 2 GiB - 4 KiB at once


def read_exactly(descriptor: int, size_bytes: int, offset: int, path: Path) -> Tensor:
    """`size_bytes` bytes from `offset`, as a uint8 tensor in torch's own (aligned) memory."""
    buffer = _memory(size_bytes, path)
    _read_into(memoryview(buffer.numpy().data), descriptor, offset, path)
    return buffer


def read_blocks(
    descriptor: int, size_bytes: int, offset: int, path: Path, dtype: torch.dtype, count: int
) -> Iterator[Tensor]:
    """The same bytes as flat tensors of `count` values and a last one of the rest, in memory that is used again."""
    block_bytes = count * dtype.itemsize
    buffer = _memory(min(block_bytes, size_bytes), path)
    view, block = memoryview(buffer.numpy().data), buffer.view(dtype)
    for done in range(0, size_bytes, block_bytes):
        left = size_bytes - done
        if left < len(view):
            view, block = view[:left], block[: left // dtype.itemsize]
        _read_into(view, descriptor, offset + done, path)
        yield block


def in_blocks(tensor: Tensor, count: int) -> Iterator[Tensor]:
    """The values of a contiguous tensor that is read already, as `read_blocks` gives them."""
    return iter(torch.split(tensor.view(-1), count))


def _memory(size_bytes: int, path: Path) -> Tensor:
    try:
        return torch.empty(size_bytes, dtype=torch.uint8)
    except (MemoryError, RuntimeError) as error:
        raise ResourceError(f"{path}: no memory for a tensor of {size_bytes} bytes") from error


def _read_into(view: memoryview, descriptor: int, offset: int, path: Path) -> None:
    done = 0
    while done < len(view):
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
