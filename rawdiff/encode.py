"""Pictures to latents, once more in fp32 where half precision gives NaN."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.errors import NonFiniteError
from rawdiff.geometry import format_size
from rawdiff.nets import vae as nets_vae
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
def encode(vae: Any, picture: Tensor, *, say: Say = say_on_stderr, probe: ProbeLike = NO_PROBE) -> Posterior:
    """The latents of a picture [1,3,8h,8w] in -1..1, at the loop's scale.

    NaN or Inf in half precision: encoded once more in fp32, and said. NonFiniteError if that does not help,
    ResourceError where memory gives out.
    """
    weight = vae.encoder.conv_in.weight
    height, width = picture.shape[2:]
    where = f"the VAE, encoding {format_size((height, width))}"
    with probe("vae encode"), telling_out_of_memory(where, weight.device):
        found = nets_vae.encode(vae, picture.to(weight.device, weight.dtype))
        if weight.dtype != torch.float32 and not _is_finite(found):
            say(f"the VAE gave NaN in {str(weight.dtype).removeprefix('torch.')}: encoding once more in fp32")
            found = nets_vae.encode(copy.deepcopy(vae).float(), picture.to(weight.device, torch.float32))
    if not _is_finite(found):
        raise NonFiniteError("NaN or Inf in the encoded picture: the VAE's weights are broken")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return Posterior(*(part.to(dtype) for part in found))


def _is_finite(found: tuple[Tensor, Tensor]) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in found)
