"""The VAE's two ways: once more in fp32 where half precision gives NaN, in tiles where memory is short."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import NonFiniteError
from rawdiff.geometry import FACTOR, Size, format_size
from rawdiff.graphs import EAGER, Runner
from rawdiff.graphs.runner import Call
from rawdiff.nets import tiles
from rawdiff.nets.calls import DecodePicture, EncodePicture, kind
from rawdiff.nets.memory import is_out_of_memory, telling_out_of_memory
from rawdiff.probes import ProbeLike
from rawdiff.say import Say

__all__ = ["DECODE", "ENCODE", "Way", "run_vae"]

TILED = "in tiles, approximate where they meet"

Tiling = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""`tiles.decode_tiled` or `tiles.encode_tiled`."""


@dataclass(frozen=True)
class Way:
    """One way through a VAE."""

    call: Callable[[Any], Call]
    tiling: Tiling
    name: str
    verb: str
    fault: str
    """What to say of a result that is not finite in fp32 either."""


DECODE = Way(
    DecodePicture,
    tiles.decode_tiled,
    "vae decode",
    "decoding",
    "NaN or Inf in the decoded picture: the latents or the VAE's weights are broken",
)
ENCODE = Way(
    EncodePicture,
    tiles.encode_tiled,
    "vae encode",
    "encoding",
    "NaN or Inf in the encoded picture: the VAE's weights are broken",
)


def run_vae(
    way: Way, vae: Any, given: Tensor, size: Size, *, runner: Runner, say: Say, probe: ProbeLike
) -> tuple[Tensor, bool]:
    """`given` [B,...] the one way or the other, in the VAE's dtype, and whether in tiles; `size` is in pixels.

    NaN or Inf in half precision: once more in fp32, and said. NonFiniteError, ResourceError if that does not help.
    """
    runner.stage([vae])
    weight = vae.decoder.conv_in.weight
    device, dtype = weight.device, weight.dtype
    with probe(way.name), telling_out_of_memory(f"the VAE, {way.verb} {format_size(size)}", device):
        frugal = runner.frugal
        result, tiled = _whole_or_tiled(way, vae, given.to(device, dtype), size, runner, say, tiled=frugal)
        if dtype != torch.float32 and not bool(torch.isfinite(result).all()):
            say(f"the VAE gave NaN in {str(dtype).removeprefix('torch.')}: {way.verb} once more in fp32")
            wide, exact = given.to(device, torch.float32), copy.deepcopy(vae).float()
            result, tiled = _whole_or_tiled(way, exact, wide, size, EAGER, say, tiled=frugal)
    if not bool(torch.isfinite(result).all()):
        raise NonFiniteError(way.fault)
    return result, tiled


def _whole_or_tiled(
    way: Way, vae: Any, given: Tensor, size: Size, runner: Runner, say: Say, *, tiled: bool
) -> tuple[Tensor, bool]:
    """Each of `given` by itself, in memory of its own; if `tiled`, or where memory gives out, in tiles, and said.

    And whether it was.
    """
    call, is_larger = way.call(vae), max(size) > FACTOR * tiles.TILE
    question = (way.name, kind(vae), given.dtype)

    def one(x: Tensor) -> Tensor:
        runner.settle([vae], lambda: runner(call, x), (*question, tuple(x.shape)))
        found: Tensor = runner(call, x)
        return found.clone() if runner.overwrites else found

    if not (is_larger and tiled):
        try:
            return torch.cat([one(x[None]) for x in given.unbind()]), False
        except (RuntimeError, MemoryError) as error:
            if not (is_larger and is_out_of_memory(error)):
                raise
        runner.drop()  # outside the handler, where what failed is no longer held
        if given.device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"out of memory in the VAE, {way.verb} {format_size(size)} whole: {way.verb} {TILED}")
    else:
        say(f"{way.verb} {format_size(size)} {TILED}")
    tiling = [way.tiling(lambda piece: one(piece.contiguous()), x[None]) for x in given.unbind()]
    return torch.cat(tiling), True
