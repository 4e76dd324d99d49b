"""Arguments of `Model.prepare`, checked and spread over the images of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import InputError, UsageError
from rawdiff.noise import Noise
from rawdiff.prompts import check_prompt
from rawdiff.sampler import Sampler, make_sampler
from rawdiff.weights.schedulers import scheduler_from_name

__all__ = ["STEPS", "build_sampler", "count_prompts", "given_latents", "spread_prompts", "spread_scales"]

STEPS = 20
"""Steps where neither a number nor a schedule is given."""


def count_prompts(prompt: str | Sequence[str], count: int) -> int:
    """How many prompts there are; raises UsageError for none, or for a `count` of images that is no count."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(f"count {count!r}: expected a whole number of images for each prompt, 1 or more")
    if isinstance(prompt, str):
        return 1
    if not isinstance(prompt, Sequence) or not prompt:
        raise UsageError(f"prompt {prompt!r}: expected text, or a list of texts")
    return len(prompt)


def spread_prompts(what: str, given: str | Sequence[str], prompts: int, count: int) -> list[str]:
    """One text for each image: a single one for all, one for each of `prompts`, or one for each image."""
    texts = [given] if isinstance(given, str) else list(given)
    return [check_prompt(text) for text in _spread(what, texts, prompts, count)]


def spread_scales(given: float | Sequence[float], prompts: int, count: int) -> list[float]:
    """One guidance scale for each image."""
    scales = list(given) if isinstance(given, (Sequence, Tensor)) and not isinstance(given, str) else [given]
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
            raise UsageError(f"guidance {scale!r}: expected a finite number, 7.5 say, 1 or less for none")
    return [float(scale) for scale in _spread("guidance", scales, prompts, count)]


def _spread(what: str, values: list[Any], prompts: int, count: int) -> list[Any]:
    total = prompts * count
    if len(values) == 1:
        return values * total
    if len(values) == prompts:
        return [value for value in values for _ in range(count)]
    if len(values) == total:
        return values
    raise UsageError(f"{what}: {len(values)} given for {total} images; expected 1 or {total}")


def build_sampler(
    given: Any,
    default: Any,
    *,
    steps: int | None,
    timesteps: Sequence[int] | None,
    sigmas: Sequence[float] | None,
    eta: float,
) -> tuple[Sampler, dict[str, Any]]:
    """The sampler that is asked for, and what a recipe says of it.

    `given` is a name, a diffusers scheduler, a Sampler (its schedule is its own), or None for the model's
    `default` scheduler. Raises UsageError.
    """
    if not math.isfinite(eta):
        raise UsageError(f"eta {eta}: expected a number from 0 to 1")
    named: Mapping[str, Any] = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    if hasattr(given, "rows") and hasattr(given, "update"):
        extra = [name for name, value in named.items() if value is not None] + (["eta"] if eta else [])
        if extra:
            raise UsageError(f"{' and '.join(extra)}: a Sampler brings its own schedule; make it with that")
        sampler: Sampler = given
        return sampler, {"name": sampler.name, "given": "sampler"}
    if steps is None and timesteps is None and sigmas is None:
        steps = STEPS
    if given is None or isinstance(given, str):
        scheduler = default if given is None else scheduler_from_name(given, default.config)
    elif hasattr(given, "set_timesteps") and hasattr(given, "step"):
        scheduler = given
    else:
        raise UsageError(f"sampler {given!r}: expected a name, a diffusers scheduler or a Sampler")
    made = make_sampler(
        scheduler,
        steps=steps,
        timesteps=timesteps,
        sigmas=sigmas,
        eta=eta,
        name=given if isinstance(given, str) else None,
    )
    spec = {
        "name": made.name,
        "given": "name" if isinstance(given, str) else "default" if given is None else "scheduler",
        "steps": steps,
        "timesteps": None if timesteps is None else [int(t) for t in timesteps],
        "sigmas": None if sigmas is None else [float(sigma) for sigma in sigmas],
        "eta": float(eta),
    }
    return made, spec


def given_latents(latents: Tensor, noise: Noise) -> Tensor:
    """Latents given in place of the first draw, [B,4,h,w] or [4,h,w], as [B,4,h,w] fp32 on the device."""
    expected = [len(noise.seeds), 4, *noise.size]
    if not isinstance(latents, Tensor) or not latents.dtype.is_floating_point:
        raise UsageError("latents: expected a floating point tensor [B,4,h,w]")
    if list(latents.shape) not in (expected, expected[1:]):
        raise UsageError(f"latents of shape {list(latents.shape)}: expected {expected}")
    if not bool(torch.isfinite(latents).all()):
        raise InputError("latents: they hold NaN or Inf")
    return latents.detach().to(noise.device, torch.float32).expand(expected).clone()
