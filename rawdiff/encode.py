"""Pictures to latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.autoencoder import ENCODE, run_vae
from rawdiff.graphs import EAGER, Runner
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr

__all__ = ["Posterior", "encode"]


class Posterior(NamedTuple):
    """What the encoder says of a picture's latents, fp32 (fp64 from a VAE in fp64), [1,4,h,w] each."""

    mean: Tensor
    spread: Tensor
    tiled: bool = False
    """Whether the picture was encoded in tiles, which is approximate."""

    def sample(self, noise: Tensor) -> Tensor:
        """Latents [B,4,h,w], one for each noise [B,4,h,w]."""
        return self.mean + self.spread * noise


@torch.no_grad()
def encode(
    vae: Any,
    picture: Tensor,
    *,
    runner: Runner = EAGER,
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> Posterior:
    """The latents of a picture [1,3,8h,8w] in -1..1, at the loop's scale.

    NaN or Inf in half precision: encoded once more in fp32, and said. Memory that gives out, or a frugal `runner`: in
    tiles, and said, for that is approximate. NonFiniteError, ResourceError if that does not help.
    """
    size = picture.shape[2], picture.shape[3]
    result, tiled = run_vae(ENCODE, vae, picture, size, runner=runner, say=say, probe=probe)
    mean, spread = result.to(torch.promote_types(vae.dtype, torch.float32)).chunk(2, dim=1)
    return Posterior(mean, spread, tiled)
