"""Memory: how much a picture takes at the least, and memory that gives out while the networks run, in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from rawdiff.errors import ResourceError, SizeError
from rawdiff.geometry import FACTOR, Size
from rawdiff.nets.tiles import TILE

__all__ = ["OutOfMemory", "TooLarge", "is_out_of_memory", "least_bytes", "telling_out_of_memory"]

SAYINGS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
)
"""What torch's allocators, OpenVINO's, and the libraries below them, say in a RuntimeError of no class of its own."""


class OutOfMemory(ResourceError, MemoryError):
    """Memory gave out; a MemoryError too, so that whoever tries again with less finds it as one."""


class TooLarge(SizeError, MemoryError):
    """Memory would give out; a MemoryError too, as OutOfMemory is."""


def least_bytes(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    size: Size,
    batch: int,
    itemsize: int,
    *,
    guided: bool = True,
    low: bool = False,
) -> int:
    """Bytes of activations that cannot be done without, from the two configs: the larger of two moments.

    In the VAE, decoding one picture: the last level's convolution reads the second widest and writes the widest
    map at full size. In the UNet, on both halves where it is `guided`: its skips, kept until they are joined, and
    two working copies. In `low` memory the halves come in turn, and the VAE decodes a tile.
    """
    height, width = size
    channels = _counts(vae.get("block_out_channels")) or [1]
    pixels = min(height, FACTOR * TILE) * min(width, FACTOR * TILE) if low else height * width
    decode = pixels * (channels[min(1, len(channels) - 1)] + channels[0]) * itemsize
    area = height * width // FACTOR**2
    levels = _counts(unet.get("block_out_channels")) or [1]
    layers = unet.get("layers_per_block", 2)
    per_level = [layers] * len(levels) if isinstance(layers, int) else _counts(layers)
    skips = sum((n + 1) * c * area // 4**k for k, (c, n) in enumerate(zip(levels, per_level, strict=False)))
    denoise = (2 if guided and not low else 1) * batch * (skips + 2 * levels[0] * area) * itemsize
    return int(max(decode, denoise))


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


def _counts(found: object) -> list[int]:
    """A config's list of whole numbers; none where it holds anything else: configs are other people's."""
    is_list = isinstance(found, (list, tuple)) and all(type(count) is int and count > 0 for count in found)
    return list(found) if is_list else []  # type: ignore[call-overload]
