"""Latents to pictures, once more in fp32 where half precision gives NaN."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import NonFiniteError
from rawdiff.geometry import FACTOR, format_size
from rawdiff.nets import vae as nets_vae
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr

__all__ = ["decode"]


@torch.no_grad()
def decode(vae: Any, latents: Tensor, *, say: Say = say_on_stderr, probe: ProbeLike = NO_PROBE) -> Tensor:
    """Pictures [B,3,8h,8w] in the VAE's dtype, about -1..1, of latents [B,4,h,w], one at a time.

    NaN or Inf in half precision: decoded once more in fp32, and said. NonFiniteError if that does not help,
    ResourceError where memory gives out.
    """
    dtype = vae.decoder.conv_in.weight.dtype
    size = FACTOR * latents.shape[2], FACTOR * latents.shape[3]
    where = f"the VAE, decoding {format_size(size)}"
    with probe("vae decode"), telling_out_of_memory(where, latents.device):
        pictures = [nets_vae.decode(vae, x[None]) for x in latents.to(dtype).unbind()]
        if dtype != torch.float32 and not all(bool(torch.isfinite(p).all()) for p in pictures):
            say(f"the VAE gave NaN in {str(dtype).removeprefix('torch.')}: decoding once more in fp32")
            exact = copy.deepcopy(vae).float()
            pictures = [nets_vae.decode(exact, x[None]) for x in latents.float().unbind()]
        result = torch.cat(pictures)
    if not bool(torch.isfinite(result).all()):
        raise NonFiniteError("NaN or Inf in the decoded picture: the latents or the VAE's weights are broken")
    return result
