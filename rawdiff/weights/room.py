"""Memory for all of a network's weights at once, come by in the quickest way that the system has.

Half of what loading takes is the kernel's work of finding new memory. Pages of 2 MiB are five hundred times fewer than
those of 4 KiB, and quicker where they are at hand; where the host of a virtual machine has to find them, or memory is
in pieces, they are slower. So a few of each are tried. And whoever is about to write to many pages can ask for them
at once, instead of stopping at each one that is not there yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import median

import torch
from torch import Tensor

from rawdiff.errors import ResourceError
from rawdiff.weights.heap import give_back

__all__ = ["come_by", "room_for"]

_ALIGNED = 64
"""Bytes; what torch's own memory begins at."""
_HUGE = 2**21
_TRIES = 3
_WORTH_TRYING = 64 * _HUGE
"""From here on a few milliseconds are little."""
_WORTH_ASKING = 2**16
_POPULATE_WRITE = 23
"""Of Linux 5.14 and later: have these pages there, as if they had been written to."""


def room_for(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> dict[str, Tensor]:
    """An empty tensor on the CPU for each name, all in one stretch of memory that goes when the last of them does.

    Raises ResourceError.
    """
    places: dict[str, tuple[int, int]] = {}  # where each begins, and how many numbers it holds
    end = 0
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        places[name] = end, count
        end += -(-count * dtype.itemsize // _ALIGNED) * _ALIGNED
    if end == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return {name: torch.empty(tuple(shape), dtype=dtype) for name, shape in shapes.items()}
    give_back()  # else what the heap keeps free counts beside this
    try:
        stretch = mmap.mmap(-1, end, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ResourceError(f"no memory for weights of {end} bytes") from error
    with contextlib.suppress(OSError):  # a kernel without huge pages
        huge = end < _WORTH_TRYING or _huge_are_quick(stretch)
        stretch.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return {
        name: torch.frombuffer(stretch, dtype=dtype, count=count, offset=at).view(shapes[name])
        if count
        else torch.empty(tuple(shapes[name]), dtype=dtype)
        for name, (at, count) in places.items()
    }


def come_by(tensor: Tensor) -> None:
    """Have the memory of a contiguous tensor on the CPU there, all of it, since it is about to be written to.

    Only time depends on it: where the system cannot, each page comes when it is touched.
    """
    size_bytes = tensor.numel() * tensor.element_size()
    if size_bytes >= _WORTH_ASKING:
        _populate(tensor.data_ptr(), size_bytes)


def _huge_are_quick(stretch: mmap.mmap) -> bool:
    """Whether 2 MiB come sooner as one page than in small ones, by a few of both at the beginning."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(stretch))
    first = -address % _HUGE
    taken: dict[int, list[float]] = {mmap.MADV_HUGEPAGE: [], mmap.MADV_NOHUGEPAGE: []}
    for k in range(2 * _TRIES):
        way, at = list(taken)[k % 2], first + k * _HUGE
        stretch.madvise(way, at, _HUGE)
        begun = time.perf_counter()
        if not _populate(address + at, _HUGE):
            return True
        taken[way].append(time.perf_counter() - begun)
    huge, small = map(median, taken.values())
    return huge <= small


def _populate(address: int, size_bytes: int) -> bool:
    """Whether the system has put the pages of these bytes there."""
    madvise = _madvise()
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    return madvise is not None and madvise(start, address + size_bytes - start, _POPULATE_WRITE) == 0


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The C library's: mmap's own would keep other threads of Python waiting."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    found: Callable[[int, int, int], int] = madvise
    return found
