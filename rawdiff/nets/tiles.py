"""A picture decoded in overlapping tiles: less memory, and approximate.

The VAE's norms and attention see a tile and not the picture, so that brightness may differ a little from tile to
tile; over the overlap one fades into the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rawdiff.geometry import FACTOR

__all__ = ["OVERLAP", "TILE", "decode_tiled", "starts"]

TILE = 64
"""Side of a tile, in latents."""
OVERLAP = 16
"""What neighbours share, in latents."""


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side; the last ends with it."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def decode_tiled(
    decode: Callable[[Tensor], Tensor], latents: Tensor, tile: int = TILE, overlap: int = OVERLAP
) -> Tensor:
    """The picture [B,3,8h,8w] of `latents` [B,4,h,w], tile by tile; of no more than one tile it is exact."""
    height, width = latents.shape[2:]
    if max(height, width) <= tile:
        return decode(latents)
    total = weight = torch.empty(0)
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    for top in rows:
        for left in columns:
            piece = decode(latents[:, :, top : top + tile, left : left + tile]).float()  # [B,3,8*tile,8*tile]
            if not weight.numel():
                total = piece.new_zeros(len(latents), piece.shape[1], FACTOR * height, FACTOR * width)
                weight = piece.new_zeros(FACTOR * height, FACTOR * width)
            fade = _ramp(piece.shape[2], overlap, top > 0, top + tile < height)[:, None].to(piece)
            fade = fade * _ramp(piece.shape[3], overlap, left > 0, left + tile < width).to(piece)
            place = (
                slice(FACTOR * top, FACTOR * top + piece.shape[2]),
                slice(FACTOR * left, FACTOR * left + piece.shape[3]),
            )
            total[:, :, *place] += piece * fade
            weight[*place] += fade
    return (total / weight).to(latents.dtype)


def _ramp(length: int, overlap: int, before: bool, after: bool) -> Tensor:
    """A tile's weight along one side: up where it has a neighbour before it, down where it has one after it."""
    steps = (torch.arange(FACTOR * overlap) + 0.5) / (FACTOR * overlap)
    ramp = torch.ones(length)
    if before:
        ramp[: len(steps)] = steps
    if after:
        ramp[length - len(steps) :] = ramp[length - len(steps) :].minimum(steps.flip(0))
    return ramp
