"""Memory for all of a network's weights at once, in huge pages where the system gives them.

Half of what loading takes is the kernel's work of finding new memory, page after page of 4 KiB. Asked for pages of
2 MiB it finds five hundred times fewer, and a network that computes with them misses its translations less.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rawdiff.errors import ResourceError

__all__ = ["room_for"]

_ALIGNED = 64
"""Bytes; what torch's own memory begins at."""


def room_for(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> dict[str, Tensor]:
    """An empty tensor on the CPU for each name, all in one stretch of memory that goes when the last of them does.

    Raises ResourceError.
    """
    places: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        places[name] = end
        size_bytes = torch.Size(shape).numel() * dtype.itemsize
        end += -(-size_bytes // _ALIGNED) * _ALIGNED
    if end == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return {name: torch.empty(tuple(shape), dtype=dtype) for name, shape in shapes.items()}
    try:
        stretch = mmap.mmap(-1, end, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ResourceError(f"no memory for weights of {end} bytes") from error
    stretch.madvise(mmap.MADV_HUGEPAGE)
    return {
        name: torch.frombuffer(stretch, dtype=dtype, count=torch.Size(shape).numel(), offset=at).view(shape)
        if torch.Size(shape).numel()
        else torch.empty(tuple(shape), dtype=dtype)
        for (name, shape), at in zip(shapes.items(), places.values(), strict=True)
    }
