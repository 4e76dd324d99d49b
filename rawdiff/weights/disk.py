"""Bytes of a file, read into memory of torch's own: all of them, or an error that says where it broke off."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from rawdiff.errors import ResourceError, WeightsError

__all__ = ["read_exactly"]

_READ_BYTES = 2**30  # Linux reads at most 2 GiB - 4 KiB at once


def read_exactly(descriptor: int, size_bytes: int, offset: int, path: Path) -> Tensor:
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
