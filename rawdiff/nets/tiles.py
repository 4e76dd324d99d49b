"""A picture decoded, or encoded, in overlapping tiles: less memory, and approximate.

The VAE's norms and attention see a tile and not the picture, so that brightness may differ a little from tile to
tile; over the overlap one fades into the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rawdiff.geometry import FACTOR

__all__ = ["OVERLAP", "TILE", "decode_tiled", "encode_tiled", "starts"]

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
    return _tiled(decode, latents, 1, FACTOR, tile, overlap)


def encode_tiled(
    encode: Callable[[Tensor], Tensor], picture: Tensor, tile: int = TILE, overlap: int = OVERLAP
) -> Tensor:
    """What `encode` says [B,C,h,w] of a `picture` [B,3,8h,8w], tile by tile; of no more than one tile it is exact."""
    return _tiled(encode, picture, FACTOR, 1, tile, overlap)


def _tiled(
    work: Callable[[Tensor], Tensor], given: Tensor, before: int, after: int, tile: int, overlap: int
) -> Tensor:
    """`work` tile by tile; a latent is `before` pixels wide in what is given, and `after` in what comes of it."""
    height, width = (side // before for side in given.shape[2:])
    if max(height, width) <= tile:
        return work(given)
    total = weight = torch.empty(0)
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    for top in rows:
        for left in columns:
            piece = work(
                given[:, :, *_window(top, left, tile, before)]
            ).float()  # [B,C,after*tile,after*tile]
            if not weight.numel():
                total = piece.new_zeros(len(given), piece.shape[1], after * height, after * width)
                weight = piece.new_zeros(after * height, after * width)
            fade = _ramp(piece.shape[2], after * overlap, top > 0, top + tile < height)[:, None].to(piece)
            fade = fade * _ramp(piece.shape[3], after * overlap, left > 0, left + tile < width).to(piece)
            place = _window(top, left, tile, after)
            total[:, :, *place] += piece * fade
            weight[*place] += fade
    return (total / weight).to(given.dtype)


def _window(top: int, left: int, tile: int, scale: int) -> tuple[slice, slice]:
    """A tile, given in latents, where a latent is `scale` pixels wide; shorter where the picture ends before it."""
    return slice(scale * top, scale * (top + tile)), slice(scale * left, scale * (left + tile))


def _ramp(length: int, overlap: int, before: bool, after: bool) -> Tensor:
    """A tile's weight along one side: up where it has a neighbour before it, down where it has one after it."""
    steps = (torch.arange(overlap) + 0.5) / overlap
    ramp = torch.ones(length)
    if before:
        ramp[: len(steps)] = steps
    if after:
        ramp[length - len(steps) :] = ramp[length - len(steps) :].minimum(steps.flip(0))
    return ramp
