"""The VAE's calls, whole, or in tiles where memory is short."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rawdiff.geometry import FACTOR, Size, format_size
from rawdiff.graphs import Runner
from rawdiff.graphs.runner import Call
from rawdiff.nets import tiles
from rawdiff.nets.memory import is_out_of_memory
from rawdiff.say import Say

__all__ = ["whole_or_tiled"]

TILED = "in tiles, approximate where they meet"

Tiling = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""`tiles.decode_tiled` or `tiles.encode_tiled`."""


def whole_or_tiled(
    call: Call,
    tiling: Tiling,
    given: Tensor,
    size: Size,
    *,
    verb: str,
    runner: Runner,
    say: Say,
    tiled: bool = False,
) -> Tensor:
    """`call` of each of `given` [B,...] by itself, in memory of its own; pictures are of `size` in pixels.

    In tiles, and said, for that is approximate: if `tiled`, for a frugal `runner`, or where memory gives out.
    """
    is_larger = max(size) > FACTOR * tiles.TILE

    def one(x: Tensor) -> Tensor:
        found: Tensor = runner(call, x)
        return found.clone() if runner.overwrites else found

    if not (is_larger and (tiled or runner.frugal)):
        try:
            return torch.cat([one(x[None]) for x in given.unbind()])
        except (RuntimeError, MemoryError) as error:
            if not (is_larger and is_out_of_memory(error)):
                raise
        runner.drop()  # outside the handler, where what failed is no longer held
        if given.device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"out of memory in the VAE, {verb} {format_size(size)} whole: {verb} {TILED}")
    else:
        say(f"{verb} {format_size(size)} {TILED}")
    return torch.cat([tiling(lambda piece: one(piece.contiguous()), x[None]) for x in given.unbind()])
