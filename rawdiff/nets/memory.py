"""Memory that gives out while the networks run, told as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rawdiff.errors import ResourceError

__all__ = ["OutOfMemory", "is_out_of_memory", "telling_out_of_memory"]

SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""What torch's allocators, and the libraries below it, say in a RuntimeError of no class of its own."""


class OutOfMemory(ResourceError, MemoryError):
    """Memory gave out; a MemoryError too, so that whoever tries again with less finds it as one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory gave out, on a GPU or on the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SAYINGS)


@contextmanager
def telling_out_of_memory(where: str, device: torch.device) -> Iterator[None]:
    """Turn memory that gives out inside into OutOfMemory; `where` says in what ("the VAE, decoding 64x64")."""
    try:
        yield
    except OutOfMemory:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory on {device} in {where}: take a smaller size or fewer pictures at once, fewer nets, "
            "or half precision"
        ) from error
