"""The plan of a run: one row for each evaluation of the networks, all known before the loop starts.

A Row holds host numbers, to look at and to branch on, and those that the networks need packed in one row on
the device, to compute with: the loop never moves a number between the two, so the host never waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from rawdiff.errors import UsageError
from rawdiff.sampler import Sampler, SamplerRow

__all__ = ["Plan", "Row", "Window", "check_guidance_end", "is_number", "make_plan"]


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is an int or a float, finite, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Window:
    """A ControlNet's weight, and the part of the run where it takes part, from `start` to `end` in 0..1."""

    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.weight):
            raise UsageError(f"control weight {self.weight!r}: expected a finite number, such as 1.0")
        if not (is_number(self.start) and is_number(self.end) and 0.0 <= self.start < self.end <= 1.0):
            raise UsageError(f"control window {self.start!r}-{self.end!r}: expected 0 <= start < end <= 1")

    def weight_at(self, i: int, count: int) -> float:
        """The weight at evaluation `i` of `count`: 0 unless all of it lies inside the window."""
        outside = i / count < self.start or (i + 1) / count > self.end
        return 0.0 if outside else self.weight


@dataclass(frozen=True, eq=False)
class Row:
    """One evaluation of the networks: the sampler's row, joined by guidance and the ControlNets' weights."""

    index: int
    step: SamplerRow
    """What the sampler says of this evaluation; its own index may differ, after a restart."""
    sampler: Sampler
    guidance: tuple[float, ...]
    """One scale for each image; 1 means that its guidance is off (or, of `distilled` networks, what they are told)."""
    rescale: float
    control: tuple[float, ...]
    """One weight for each ControlNet; one with weight 0 is not run."""
    context: int
    """Number of the text context."""
    packed: Tensor
    """[2+B+n] fp32 on the device: t, rescale, guidance, control."""
    distilled: bool = False
    """Whether the networks are told the guidance, and run on the cond half alone."""

    @property
    def t(self) -> float:
        """The timestep that the networks see; may be fractional."""
        return self.step.t

    @property
    def in_scale(self) -> float:
        """The networks see `in_scale * x`."""
        return self.step.in_scale

    @property
    def signal(self) -> float:
        """`x = signal*x0 + sigma*noise` at this row."""
        return self.step.signal

    @property
    def sigma(self) -> float:
        """`x = signal*x0 + sigma*noise` at this row."""
        return self.step.sigma

    @property
    def weights(self) -> np.ndarray:
        """The sampler's W: `[x_next; s_next] = W @ [x; out; noise; s]`, float64 [1+k,3+k]."""
        return self.step.weights

    @property
    def guided(self) -> bool:
        """Whether the networks run on both halves, uncond and cond."""
        return not self.distilled and any(scale > 1.0 for scale in self.guidance)

    def t_device(self) -> Tensor:
        """The timestep [1] fp32, on the device."""
        return self.packed[0:1]

    def rescale_device(self) -> Tensor:
        """The rescale factor, without dimensions, on the device."""
        return self.packed[1]

    def guidance_device(self) -> Tensor:
        """Guidance [B,1,1,1] fp32, on the device."""
        return self.packed[2 : 2 + len(self.guidance)].view(-1, 1, 1, 1)

    def control_device(self, k: int) -> Tensor:
        """ControlNet `k`'s weight, without dimensions, on the device."""
        return self.packed[2 + len(self.guidance) + k]


class Plan:
    """The rows of a run, in order. A value: a restart is another plan."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        guidance: Sequence[float],
        rescale: float,
        windows: Sequence[Window],
        device: torch.device,
        guidance_end: float = 1.0,
        contexts: Sequence[int] = (),
        distilled: bool = False,
        done: Sequence[Row] = (),
    ) -> None:
        self.sampler = sampler
        self.guidance = tuple(guidance)
        self.guidance_end = guidance_end
        self.rescale = rescale
        self.windows = tuple(windows)
        self.contexts = tuple(contexts)
        self.distilled = distilled
        self.device = device
        self.begin = len(done)
        """The row at which the sampler began: 0, or where its history was last forgotten."""
        count = self.begin + len(sampler.rows)
        rows = [self._row(self.begin + k, step, count) for k, step in enumerate(sampler.rows)]
        packed = torch.tensor(
            [[row.t, row.rescale, *row.guidance, *row.control] for row in rows], dtype=torch.float32
        ).to(device)
        self.rows = (
            *done,
            *(replace(row, packed=line) for row, line in zip(rows, packed.unbind(), strict=True)),
        )
        self._restarts: dict[int, Plan] = {}

    def _row(self, i: int, step: SamplerRow, count: int) -> Row:
        control = tuple(window.weight_at(i, count) for window in self.windows)
        context = 0
        if self.contexts:  # a restart may add a row (PNDM): what is left keeps its distance to the end
            context = self.contexts[max(self.begin, i + len(self.contexts) - count)]
        ends = (i + 1) / count > self.guidance_end
        guidance = tuple(1.0 for _ in self.guidance) if ends else self.guidance
        return Row(
            i, step, self.sampler, guidance, self.rescale, control, context, torch.empty(0), self.distilled
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.guidance)

    @property
    def guided(self) -> bool:
        """Whether any row uses the uncond half."""
        return any(row.guided for row in self.rows)

    def active(self, k: int) -> bool:
        """Whether ControlNet `k` is run at any row."""
        return any(row.control[k] != 0.0 for row in self.rows)

    def restarted(self, i: int) -> Plan:
        """The plan whose sampler forgets at row `i` all that was before; rows before `i` stay as they were.

        Raises UsageError inside a pair of evaluations (Heun, KDPM2).
        """
        if not self.begin <= i < len(self.rows):
            raise UsageError(f"row {i}: a restart is possible from row {self.begin} to {len(self.rows) - 1}")
        if i not in self._restarts:
            self._restarts[i] = Plan(
                self.sampler.restarted(i - self.begin),
                guidance=self.guidance,
                rescale=self.rescale,
                windows=self.windows,
                device=self.device,
                guidance_end=self.guidance_end,
                contexts=self.contexts,
                distilled=self.distilled,
                done=self.rows[:i],
            )
        return self._restarts[i]


def check_guidance_end(end: object, *, distilled: bool) -> None:
    """Raise UsageError for an end of guidance that is none, or that these networks cannot have."""
    if not is_number(end) or not 0.0 <= end <= 1.0:
        raise UsageError(f"guidance end {end!r}: expected a number from 0 to 1")
    if distilled and end < 1.0:
        raise UsageError(
            f"guidance end {end:g}: this model is told its guidance, which ends with the run: leave it out"
        )


def make_plan(
    sampler: Sampler,
    *,
    guidance: Sequence[float],
    rescale: float = 0.0,
    windows: Sequence[Window] = (),
    device: torch.device | str = "cpu",
    guidance_end: float = 1.0,
    contexts: Sequence[int] = (),
    distilled: bool = False,
) -> Plan:
    """Join a sampler, one guidance scale an image, and the ControlNets' windows; raises UsageError.

    Guidance of 1 or less is off (Ho and Salimans 2022, arXiv 2207.12598). `rescale` in 0..1 brings the guided
    output's spread back towards the cond output's (Lin et al. 2023, arXiv 2305.08891). After the share `guidance_end`
    of the run guidance is off, and its rows are run on the cond half alone (Kynkäänniemi et al. 2024, arXiv
    2404.07724, on the part of a run where guidance is worth having). `contexts` is the number of each row's text
    context; all have the first where nothing is said. `distilled` is for networks that are told their guidance: it is
    then none of the loop's work, and what is 1 or less is told as it is.
    """
    for scale in guidance:
        if not is_number(scale) or scale < 0.0:
            raise UsageError(f"guidance {scale!r}: expected a finite number, 1 or less for none, 7.5 say")
    if not is_number(rescale) or not 0.0 <= rescale <= 1.0:
        raise UsageError(f"rescale {rescale!r}: expected a number from 0 to 1")
    check_guidance_end(guidance_end, distilled=distilled)
    scales = [float(scale) if distilled else max(1.0, float(scale)) for scale in guidance]
    if contexts and len(contexts) != len(sampler.rows):
        raise UsageError(f"{len(contexts)} contexts given: expected {len(sampler.rows)}, one for each row")
    return Plan(
        sampler,
        guidance=scales,
        rescale=rescale,
        windows=windows,
        device=torch.device(device),
        guidance_end=float(guidance_end),
        contexts=contexts,
        distilled=distilled,
    )
