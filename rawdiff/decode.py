"""Latents to pictures, once more in fp32 where half precision gives NaN, in tiles where memory is short."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import NonFiniteError
from rawdiff.geometry import FACTOR, format_size
from rawdiff.graphs import EAGER, Runner
from rawdiff.in_tiles import whole_or_tiled
from rawdiff.nets import tiles
from rawdiff.nets.calls import DecodePicture
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr

__all__ = ["decode"]


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
    way: dict[str, Any] = {"tiling": tiles.decode_tiled, "size": size, "verb": "decoding", "say": say}
    runner.stage([vae])
    with probe("vae decode"), telling_out_of_memory(f"the VAE, decoding {format_size(size)}", latents.device):
        result = whole_or_tiled(DecodePicture(vae), given=latents.to(dtype), runner=runner, **way)
        if dtype != torch.float32 and not bool(torch.isfinite(result).all()):
            say(f"the VAE gave NaN in {str(dtype).removeprefix('torch.')}: decoding once more in fp32")
            exact = DecodePicture(copy.deepcopy(vae).float())
            result = whole_or_tiled(exact, given=latents.float(), runner=EAGER, tiled=runner.frugal, **way)
    if not bool(torch.isfinite(result).all()):
        raise NonFiniteError("NaN or Inf in the decoded picture: the latents or the VAE's weights are broken")
    return result
