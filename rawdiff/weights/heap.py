"""What the C library does with memory that is let go of, on a CPU.

Left alone it gives large blocks back to the system, which an operation later has to find and clear them again, page
after page: an eighth of the time of a picture of 768x512 by the embedded model.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch

__all__ = ["give_back", "keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_SIZES = (2**31 - 1, 2**25)  # the most that an int says, and what older versions take
_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


def keep_freed_memory(device: torch.device) -> bool:
    """Let freed memory be used again without the system's help, on a CPU with glibc; whether that was done.

    Whoever has set how memory is allocated is taken at their word. For whole programs: the setting is the process's.
    """
    library = _glibc()
    if device.type != "cpu" or library is None or any(os.environ.get(name) for name in _SETTINGS):
        return False
    return all(
        any(library.mallopt(what, size) for size in _SIZES) for what in (_MMAP_THRESHOLD, _TRIM_THRESHOLD)
    )


def give_back() -> None:
    """Give the system what is free in the heap, where the library is glibc: it counts as taken until then."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    try:
        os.confstr("CS_GNU_LIBC_VERSION")  # an error elsewhere
        return ctypes.CDLL(None)
    except (AttributeError, ValueError, OSError):
        return None
