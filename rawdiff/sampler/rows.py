"""What the loop needs of a sampler: rows of host numbers, and a pure update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from rawdiff.errors import UsageError

__all__ = ["Sampler", "SamplerRow", "count_steps", "number_steps", "prediction_type", "renoise", "x0_formula"]


@dataclass(frozen=True, eq=False)
class SamplerRow:
    """One network evaluation, as host numbers (float64).

    `x = signal * x0 + sigma * noise` holds at this row for the level that the step really uses, and `x0 =
    x0_a * x + x0_b * out`. `weights` is W: `[x_next; s_next] = W @ [x; out; noise; s]`, shape [1+k, 3+k]; a
    sampler that has no table leaves it empty, [0, 0].
    """

    index: int
    t: float
    """The timestep handed to the network; may be fractional."""
    in_scale: float
    """The network sees `in_scale * x`."""
    signal: float
    sigma: float
    x0_a: float
    x0_b: float
    draws: int
    """Noise draws that this row consumes."""
    weights: np.ndarray


class Sampler(Protocol):
    """What SamplerTable and SchedulerSampler both are.

    `x`, `out` and `noise` are [B, 4, h, w]; `x` and the sampler's state are fp32, `out` any floating dtype.
    """

    @property
    def rows(self) -> Sequence[SamplerRow]:
        """One for each evaluation of the network."""
        ...

    @property
    def order(self) -> int:
        """Evaluations that a timestep takes: 1, or 2 for Heun and its kin."""
        ...

    @property
    def init_scale(self) -> float:
        """What unit noise is multiplied by before row 0."""
        ...

    @property
    def state_size(self) -> int:
        """Tensors like x that the state holds; 0 where it is an object of the sampler's own."""
        ...

    @property
    def prediction_type(self) -> str:
        """What the network's output is: "epsilon", "v_prediction", "sample"."""
        ...

    @property
    def name(self) -> str:
        """As it was asked for, or the scheduler's class."""
        ...

    def start(self, x: torch.Tensor) -> Any:
        """The sampler's state before the first row."""
        ...

    def scale_input(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """What the network sees of `x` at row `i`."""
        ...

    def update(
        self, i: int, x: torch.Tensor, out: torch.Tensor, noise: torch.Tensor | None, s: Any
    ) -> tuple[torch.Tensor, Any]:
        """`(x_next, s_next)`; its arguments are left as they were. `noise` is None where the row draws
        nothing.
        """
        ...

    def restarted(self, i: int) -> Sampler:
        """The rest of the run from row `i`, with the history forgotten; its row 0 is this one's row `i`."""
        ...


def prediction_type(scheduler: Any) -> str:
    """What the scheduler takes the network's output for; epsilon where it does not say."""
    return str(getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon"))


def x0_formula(prediction_type: str, signal: float, sigma: float) -> tuple[float, float]:
    """`(a, b)` of `x0 = a*x + b*out`, for `x = signal*x0 + sigma*noise`.

    For v the network's v belongs to the unit-variance latent x/|(signal, sigma)| (Salimans and Ho, 2022,
    arXiv 2202.00512), which makes one formula of the variance-preserving and the exploding form.
    """
    norm = math.hypot(signal, sigma)
    match prediction_type:
        case "epsilon":
            return (1 / signal, -sigma / signal) if signal else (math.inf, -math.inf)
        case "v_prediction":
            return signal / norm**2, -sigma / norm
        case "sample" | "original_sample":
            return 0.0, 1.0
        case "flow_prediction":
            return 1.0, -sigma
        case _:
            return math.nan, math.nan


def count_steps(sampler: Sampler) -> int:
    """How many steps its evaluations make: two each for Heun and its kin, and PNDM takes its second level twice.

    Raises UsageError for PNDM's Runge-Kutta warm-up, whose evaluations are no equal parts of a run.
    """
    repeats, warms_up = _repeated(sampler)
    if warms_up:
        raise UsageError(
            f"{sampler.name}: warms up by Runge-Kutta steps, of which none can be left out: set skip_prk_steps"
        )
    return -(-(len(sampler.rows) - repeats) // sampler.order)


def number_steps(sampler: Sampler) -> tuple[int, ...]:
    """The step that each evaluation belongs to, counted from 0.

    Of PNDM's Runge-Kutta warm-up, whose evaluations are no equal parts of a run, each counts as a step.
    """
    repeats, warms_up = _repeated(sampler)
    shift = repeats and not warms_up
    return tuple((i - (shift and i > 1)) // sampler.order for i in range(len(sampler.rows)))


def _repeated(sampler: Sampler) -> tuple[bool, bool]:
    """Whether the second level is taken twice (PNDM), and whether later ones are too (its warm-up)."""
    levels = [row.sigma for row in sampler.rows]
    repeats = sampler.order == 1 and len(levels) > 2 and levels[1] == levels[2]
    return repeats, repeats and len(levels) > 4 and levels[3] == levels[4]


def renoise(sampler: Sampler, i: int, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Clean latents brought to the level of row `i`: `signal * x0 + sigma * noise`, fp32.

    `i` may be `len(sampler.rows)`: the run's end, where `x0` comes back as it is.
    """
    if i == len(sampler.rows):
        return x0.float()
    if not 0 <= i < len(sampler.rows):
        raise UsageError(f"row {i}: this sampler's rows are 0 to {len(sampler.rows) - 1}")
    row = sampler.rows[i]
    return row.signal * x0.float() + row.sigma * noise.float()
