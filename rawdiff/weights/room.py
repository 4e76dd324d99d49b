"""Memory for all of a network's weights at once, in huge pages where the system gives them.

Half of what loading takes is the kernel's work of finding new memory, page after page of 4 KiB. Asked for pages of
2 MiB it finds five hundred times fewer, and a network that computes with them misses its translations less.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rawdiff.errors import ResourceError
from rawdiff.weights.heap import give_back

__all__ = ["room_for"]

_ALIGNED = 64
"""Bytes; what torch's own memory begins at."""


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
        stretch.madvise(mmap.MADV_HUGEPAGE)
    return {
        name: torch.frombuffer(stretch, dtype=dtype, count=count, offset=at).view(shapes[name])
        if count
        else torch.empty(tuple(shapes[name]), dtype=dtype)
        for name, (at, count) in places.items()
    }
