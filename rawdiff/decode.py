"""Latents to pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rawdiff.autoencoder import DECODE, run_vae
from rawdiff.geometry import FACTOR
from rawdiff.graphs import EAGER, Runner
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr

__all__ = ["decode", "decode_telling"]


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
    return decode_telling(vae, latents, runner=runner, say=say, probe=probe)[0]


@torch.no_grad()
def decode_telling(
    vae: Any, latents: Tensor, *, runner: Runner, say: Say, probe: ProbeLike
) -> tuple[Tensor, bool]:
    """What `decode` gives, and whether it was in tiles."""
    size = FACTOR * latents.shape[2], FACTOR * latents.shape[3]
    return run_vae(DECODE, vae, latents, size, runner=runner, say=say, probe=probe)
