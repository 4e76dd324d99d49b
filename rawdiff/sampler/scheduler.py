"""SchedulerSampler: any scheduler's own step behind the sampler's interface, and the oracle of the tables."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rawdiff.errors import UsageError
from rawdiff.sampler.drive import Brownian, Drive, hush, step_arguments
from rawdiff.sampler.levels import level, x0_weights
from rawdiff.sampler.rows import SamplerRow, prediction_type

__all__ = ["SchedulerSampler"]

State = dict[str, Any]
"""What a scheduler has changed of itself, by attribute: tensors, lists, numbers, None. torch.save takes it."""

BROWNIAN = "noise_sampler"


class SchedulerSampler:
    """A sampler that runs a deep-copied scheduler's `step`, eagerly.

    For what has no table (clipping, dynamic thresholding, a scheduler of one's own). The state `s` is a
    dictionary of what the scheduler remembers; each update works on a copy of it, so that runs may be
    saved, forked and rewound. A trial run with random numbers finds the rows' input scales, levels and
    draws, and whether the scheduler runs at all.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        begin: int = 0,
        eta: float = 0.0,
        arguments: Mapping[str, Any] | None = None,
        as_diffusers: bool = False,
        name: str | None = None,
        why: str = "",
    ) -> None:
        arguments = step_arguments(scheduler, eta, arguments)
        self._settings: dict[str, Any] = {"arguments": arguments, "as_diffusers": as_diffusers}
        self._scheduler = copy.deepcopy(scheduler)
        self._drive = Drive(scheduler, begin=begin, **self._settings)
        self.name = name or type(scheduler).__name__
        self.why = why
        """Why there is no table, if one was tried."""
        self.order = self._drive.order
        self.init_scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
        self.prediction_type = prediction_type(scheduler)
        self.state_size = 0
        with hush():
            self.rows = tuple(self._trial())

    def __repr__(self) -> str:
        return f"SchedulerSampler({self.name}, rows={len(self.rows)})"

    def start(self, x: torch.Tensor) -> State:
        """The scheduler's memory before row 0."""
        return {}

    def scale_input(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """`in_scale * x` of row `i`; x itself where the scale is 1."""
        scale = self.rows[i].in_scale
        return x if scale == 1.0 else x * scale

    def update(
        self, i: int, x: torch.Tensor, out: torch.Tensor, noise: torch.Tensor | None, s: State
    ) -> tuple[torch.Tensor, State]:
        """`(x_next, s_next)` by the scheduler's own step, at least fp32; arguments are left as they were."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, out = x.to(dtype, copy=True), out.to(dtype, copy=True)
        draws = 0

        def draw() -> torch.Tensor:
            nonlocal draws
            draws += 1
            if noise is None:
                raise UsageError(f"row {i} of {self.name} draws noise: expected a tensor like x, found None")
            if draws > 1:
                raise UsageError(f"row {i} of {self.name} draws noise {draws} times; a row has one noise")
            return noise.to(dtype)

        drive = self._drive_from(s)
        with hush():
            drive.scale_input(i, x)
            x_next, _ = drive.step(i, x, out, draw)
        return x_next, self._memory(drive.scheduler)

    def restarted(self, i: int) -> SchedulerSampler:
        """The run from row `i` on, its history forgotten; its row 0 is row `i` of this."""
        begin = self._drive.origin(i)
        again = copy.copy(self)
        again._drive = Drive(self._scheduler, begin=begin, **self._settings)
        with hush():
            again.rows = tuple(again._trial())
        return again

    def _drive_from(self, s: State) -> Drive:
        drive = copy.copy(self._drive)
        drive.scheduler = copy.copy(self._drive.scheduler)
        memory = copy.deepcopy(self._memory(self._drive.scheduler) | s)
        if drive.brownian:
            memory[BROWNIAN] = Brownian(_no_draw, memory[BROWNIAN])
        drive.scheduler.__dict__.update(memory)
        return drive

    def _memory(self, scheduler: Any) -> State:
        """All that the scheduler may change.

        That is everything but its config, its functions, and the tensors and arrays it was set up with.
        """
        before = self._drive.scheduler.__dict__
        memory: State = {}
        for key, value in scheduler.__dict__.items():
            if isinstance(value, Brownian):
                memory[key] = value.last
            elif key == "_internal_dict" or callable(value):
                continue
            elif value is not before.get(key) or not isinstance(value, (torch.Tensor, np.ndarray)):
                memory[key] = value
        return memory

    def _trial(self) -> list[SamplerRow]:
        random = torch.Generator().manual_seed(0)
        shape = (1, 4, 8, 8)
        x = torch.randn(shape, generator=random)
        drive = self._drive_from({})
        rows = []
        for i, t in enumerate(drive.timesteps):
            noise = torch.randn(shape, generator=random)
            draws = 0

            def draw(noise: torch.Tensor = noise) -> torch.Tensor:
                nonlocal draws
                draws += 1
                return noise

            ones = torch.ones(shape, dtype=torch.float64)
            in_scale = float(drive.scale_input(i, ones).double().mean())
            signal, sigma = level(drive.scheduler, drive.begin + i, float(t), in_scale)
            out = torch.randn(shape, generator=random)
            x, _ = drive.step(i, x, out, draw)
            if not torch.isfinite(x).all():
                raise UsageError(
                    f"{self.name}: its own step gives NaN or infinity at row {i} (t {float(t):g}); "
                    "take other settings"
                )
            a, b = x0_weights(drive.scheduler, signal, sigma)
            rows.append(
                SamplerRow(
                    index=i, t=float(t), in_scale=in_scale, signal=signal, sigma=sigma,
                    x0_a=a, x0_b=b, draws=draws, weights=np.zeros((0, 0)),
                )
            )  # fmt: skip
        return rows


def _no_draw() -> torch.Tensor:
    raise UsageError("noise was asked for outside a step")
