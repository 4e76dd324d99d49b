"""Latents to pictures, once more in fp32 where half precision gives NaN, in tiles where memory is short."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import NonFiniteError
from rawdiff.geometry import FACTOR, format_size
from rawdiff.graphs import EAGER, Runner
from rawdiff.nets import tiles
from rawdiff.nets.calls import DecodePicture
from rawdiff.nets.memory import is_out_of_memory, telling_out_of_memory
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr

__all__ = ["decode"]

TILED = "in tiles, approximate where they meet"


@torch.no_grad()
def decode(
    vae: Any,
    latents: Tensor,
    *,
    runner: Runner = EAGER,
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> Tensor:
    """Pictures [B,3,8h,8w] in the VAE's dtype, about -1..1, of latents [B,4,h,w], one at a time.

    NaN or Inf in half precision: decoded once more in fp32, and said. Memory that gives out, or a frugal `runner`:
    in tiles, and said, for that is approximate. NonFiniteError, ResourceError if that does not help.
    """
    dtype = vae.decoder.conv_in.weight.dtype
    size = FACTOR * latents.shape[2], FACTOR * latents.shape[3]
    runner.stage([vae])
    with probe("vae decode"), telling_out_of_memory(f"the VAE, decoding {format_size(size)}", latents.device):
        result = _whole_or_tiled(vae, latents.to(dtype), runner, say)
        if dtype != torch.float32 and not bool(torch.isfinite(result).all()):
            say(f"the VAE gave NaN in {str(dtype).removeprefix('torch.')}: decoding once more in fp32")
            result = _whole_or_tiled(copy.deepcopy(vae).float(), latents.float(), EAGER, say, runner.frugal)
    if not bool(torch.isfinite(result).all()):
        raise NonFiniteError("NaN or Inf in the decoded picture: the latents or the VAE's weights are broken")
    return result


def _whole_or_tiled(vae: Any, latents: Tensor, runner: Runner, say: Say, tiled: bool = False) -> Tensor:
    call, size = DecodePicture(vae), format_size((FACTOR * latents.shape[2], FACTOR * latents.shape[3]))
    is_larger = max(latents.shape[2:]) > tiles.TILE

    def one(x: Tensor) -> Tensor:
        found: Tensor = runner(call, x)
        return found.clone() if runner.overwrites else found

    if not (is_larger and (tiled or runner.frugal)):
        try:
            return torch.cat([one(x[None]) for x in latents.unbind()])
        except (RuntimeError, MemoryError) as error:
            if not (is_larger and is_out_of_memory(error)):
                raise
        runner.drop()  # outside the handler, where what failed is no longer held
        if latents.device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"out of memory in the VAE, decoding {size} whole: decoding {TILED}")
    else:
        say(f"decoding {size} {TILED}")
    return torch.cat(
        [tiles.decode_tiled(lambda piece: one(piece.contiguous()), x[None]) for x in latents.unbind()]
    )
