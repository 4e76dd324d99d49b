"""How a run begins: from noise alone, or from a picture and noise; and what a mask makes of it.

Draws are taken in diffusers' order, so that a seed gives the same picture: the latents of the picture, noise, the
latents of what lies outside the mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rawdiff.blend import Blend
from rawdiff.encode import encode
from rawdiff.errors import UsageError
from rawdiff.geometry import FACTOR
from rawdiff.graphs import Runner
from rawdiff.images import InitImage
from rawdiff.nets.unet import INPAINT_CHANNELS
from rawdiff.noise import Noise
from rawdiff.plan import Plan
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.sampler import Sampler, count_steps, renoise
from rawdiff.say import Say
from rawdiff.state import RunState, start

__all__ = ["Beginning", "begin_from", "is_extra", "part_way"]


@dataclass(frozen=True, eq=False)
class Beginning:
    """The state before row 0, and what a mask adds to the run."""

    state: RunState
    inpaint: Tensor | None = None
    """[B,5,h,w] fp32, for an inpainting UNet; see `Conditions`."""
    blend: Blend | None = None
    """For any other UNet, and where it is asked for."""
    tiled: bool = False
    """Whether the picture was encoded in tiles, which is approximate."""


def part_way(sampler: Sampler, strength: float) -> Sampler:
    """The last `strength` (0 to 1) of a sampler's steps, rounded down as diffusers does; raises UsageError for none."""
    if not all(math.isfinite(row.signal) and math.isfinite(row.sigma) for row in sampler.rows):
        raise UsageError(
            f"{sampler.name}: its levels of noise are not known, so it cannot begin from an image"
        )
    steps = count_steps(sampler)
    left = int(steps * strength)
    if left < 1:
        raise UsageError(
            f"strength {strength:g}: leaves none of {steps} steps: take at least {1 / steps:.3g}, or more steps"
        )
    return sampler if left == steps else sampler.restarted((steps - left) * sampler.order)


def is_extra(blend: bool | None, channels: int) -> bool:
    """Whether what stays is put back by choice: a UNet of so many channels would run without.

    Raises UsageError for one that cannot.
    """
    if channels != INPAINT_CHANNELS and blend is False:
        raise UsageError(
            "blend: the model has no inpainting UNet, and another keeps what the mask leaves only by having it put "
            "back after each step: leave it out, or take a model for inpainting"
        )
    return channels == INPAINT_CHANNELS and blend is True


@torch.no_grad()
def begin_from(
    image: InitImage,
    plan: Plan,
    noise: Noise,
    vae: Any,
    *,
    strength: float,
    channels: int,
    dtype: torch.dtype,
    runner: Runner,
    say: Say,
    extra: bool = False,
    probe: ProbeLike = NO_PROBE,
) -> Beginning:
    """Begin from a picture, `plan` being what its strength left; `channels` are those that the UNet takes.

    With a mask and a strength of 1 the run begins from noise alone. `dtype` is the state's. With `extra` an inpainting
    UNet too has what stays put back after each step. Raises NonFiniteError, ResourceError.
    """
    hole, draws = image.hole, 0
    inpainting, from_noise = channels == INPAINT_CHANNELS, hole is not None and strength == 1.0
    latents: Tensor | None = None
    tiled = False
    if not (inpainting and from_noise):
        posterior = encode(vae, image.normalised, runner=runner, say=say, probe=probe)
        latents, draws, tiled = posterior.sample(noise.draw(draws)), draws + 1, posterior.tiled
    first, draws = noise.draw(draws), draws + 1
    if latents is None or from_noise:
        state = start(plan, first.to(dtype), draws=draws)
    else:
        x = renoise(plan.sampler, 0, latents, first).to(dtype)
        state = RunState(x, plan.sampler.start(x), draws=draws)
    if hole is None:
        return Beginning(state, tiled=tiled)
    small = hole[..., ::FACTOR, ::FACTOR].to(noise.device)  # [1,1,h,w], the nearest pixel
    if not inpainting:
        assert latents is not None
        # The third draw is for an inpainting UNet, and made for every other.
        blend = Blend(latents.to(dtype), first.to(dtype), small)
        return Beginning(replace(state, draws=draws + 1), blend=blend, tiled=tiled)
    posterior = encode(vae, image.normalised * (hole < 0.5), runner=runner, say=say, probe=probe)
    kept = posterior.sample(noise.draw(draws)).float()
    seen = torch.cat([small.expand(len(kept), -1, -1, -1), kept], dim=1)
    begun = Beginning(replace(state, draws=draws + 1), inpaint=seen, tiled=tiled or posterior.tiled)
    if not extra:
        return begun
    if latents is None:  # no draw for it, so that a seed means the same noise without
        whole = encode(vae, image.normalised, runner=runner, say=say, probe=probe)
        latents, tiled = whole.mean.expand(len(kept), -1, -1, -1), whole.tiled
    blend = Blend(latents.to(dtype), first.to(dtype), small)
    return replace(begun, blend=blend, tiled=begun.tiled or tiled)
