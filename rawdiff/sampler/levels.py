"""The level of signal and noise that a scheduler's step uses at an evaluation.

Not that of `scheduler.add_noise`, which is wrong at the half-steps of KDPM2 and DPM++ SDE. It is read before
`step` is called, after `scale_model_input`.
"""

from __future__ import annotations

import math
from typing import Any

from rawdiff.sampler.rows import prediction_type, x0_formula

__all__ = ["level", "x0_weights"]

BY_TIMESTEP = frozenset({"DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler"})
"""Variance preserving, alpha_bar looked up at the timestep."""

BY_ALPHA_SIGMA = frozenset(
    {
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
        "SASolverScheduler",
    }
)
"""Variance preserving, from the list of sigmas."""

BY_SIGMA = frozenset(
    {
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "EDMEulerScheduler",
    }
)
"""Variance exploding, the list of sigmas as it stands (Heun's second half is already at the next one)."""


def level(scheduler: Any, index: int, t: float, in_scale: float) -> tuple[float, float]:
    """`(signal, sigma)` with `x = signal*x0 + sigma*noise` at position `index` of the schedule.

    For a scheduler of an unknown class the level is read from `in_scale` (variance exploding) or from
    alpha_bar at the timestep, and is NaN where neither can tell.
    """
    kinds = {c.__name__ for c in type(scheduler).__mro__}
    if kinds & BY_TIMESTEP:
        return _by_timestep(scheduler, t)
    if kinds & BY_ALPHA_SIGMA:
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index].double())
        return float(alpha), float(sigma)
    if kinds & BY_SIGMA:
        return 1.0, float(scheduler.sigmas[index])
    if "KDPM2DiscreteScheduler" in kinds:
        half = not scheduler.state_in_first_order
        return 1.0, float(scheduler.sigmas_interpol[index] if half else scheduler.sigmas[index])
    if "KDPM2AncestralDiscreteScheduler" in kinds:
        half = not scheduler.state_in_first_order
        return 1.0, float(scheduler.sigmas_interpol[index - 1] if half else scheduler.sigmas[index])
    if "DPMSolverSDEScheduler" in kinds:
        half = not scheduler.state_in_first_order
        return 1.0, float(scheduler.mid_point_sigma if half else scheduler.sigmas[index])
    if in_scale != 1.0:
        return 1.0, math.sqrt(max(0.0, 1 / in_scale**2 - 1))
    if hasattr(scheduler, "alphas_cumprod") and t == int(t) and 0 <= t < len(scheduler.alphas_cumprod):
        return _by_timestep(scheduler, t)
    return math.nan, math.nan


def x0_weights(scheduler: Any, signal: float, sigma: float) -> tuple[float, float]:
    """`(a, b)` of `x0 = a*x + b*out` at that level, for what the scheduler takes the network's output for."""
    if hasattr(scheduler, "precondition_outputs"):  # EDM (Karras et al., 2022, arXiv 2206.00364)
        a = scheduler.precondition_outputs(1.0, 0.0, sigma)
        return float(a), float(scheduler.precondition_outputs(0.0, 1.0, sigma))
    return x0_formula(prediction_type(scheduler), signal, sigma)


def _by_timestep(scheduler: Any, t: float) -> tuple[float, float]:
    alpha_bar = float(scheduler.alphas_cumprod[int(t)])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
