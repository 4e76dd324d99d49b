"""Pictures to latents, once more in fp32 where half precision gives NaN, in tiles where memory is short."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.errors import NonFiniteError
from rawdiff.geometry import format_size
from rawdiff.graphs import EAGER, Runner
from rawdiff.in_tiles import whole_or_tiled
from rawdiff.nets import tiles
from rawdiff.nets.calls import EncodePicture
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr

__all__ = ["Posterior", "encode"]


class Posterior(NamedTuple):
    """What the encoder says of a picture's latents, fp32 (fp64 from a VAE in fp64), [1,4,h,w] each."""

    mean: Tensor
    spread: Tensor

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
    way: dict[str, Any] = {"tiling": tiles.encode_tiled, "size": size, "verb": "encoding", "say": say}
    runner.stage([vae])
    weight = vae.encoder.conv_in.weight
    device, dtype = weight.device, weight.dtype
    with probe("vae encode"), telling_out_of_memory(f"the VAE, encoding {format_size(size)}", device):
        result = whole_or_tiled(EncodePicture(vae), given=picture.to(device, dtype), runner=runner, **way)
        if dtype != torch.float32 and not bool(torch.isfinite(result).all()):
            say(f"the VAE gave NaN in {str(dtype).removeprefix('torch.')}: encoding once more in fp32")
            exact, wide = EncodePicture(copy.deepcopy(vae).float()), picture.to(device, torch.float32)
            result = whole_or_tiled(exact, given=wide, runner=EAGER, tiled=runner.frugal, **way)
    if not bool(torch.isfinite(result).all()):
        raise NonFiniteError("NaN or Inf in the encoded picture: the VAE's weights are broken")
    mean, spread = result.to(torch.promote_types(dtype, torch.float32)).chunk(2, dim=1)
    return Posterior(mean, spread)
