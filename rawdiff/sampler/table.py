"""SamplerTable: a sampler as one small matrix per network evaluation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rawdiff.errors import UsageError
from rawdiff.sampler.drive import Drive, step_arguments
from rawdiff.sampler.levels import x0_weights
from rawdiff.sampler.probe import probe
from rawdiff.sampler.realise import realise
from rawdiff.sampler.rows import SamplerRow, prediction_type

__all__ = ["SamplerTable", "tabulate"]


class SamplerTable:
    """A sampler read off a scheduler; `[x_next; s_next] = W_i @ [x; out; noise; s]`.

    `P`, `Q`, `R` (float64 [M, M], lower triangular) are the study form: row i says how x after evaluation i
    depends on every x, output and noise so far. `weights` (float64 [M, 1+k, 3+k]) is the running form of
    the same map. Make one with `tabulate` or `make_sampler`.
    """

    def __init__(
        self,
        *,
        name: str,
        prediction_type: str,
        order: int,
        init_scale: float,
        rows: Sequence[SamplerRow],
        P: np.ndarray,
        Q: np.ndarray,
        R: np.ndarray,
        source: _Source,
    ) -> None:
        self.name = name
        self.prediction_type = prediction_type
        self.order = order
        self.init_scale = init_scale
        self.rows = tuple(rows)
        self.P, self.Q, self.R = P, Q, R
        self.weights = np.stack([row.weights for row in self.rows])  # [M, 1+k, 3+k]
        self.weights.setflags(write=False)
        self.state_size = self.weights.shape[1] - 1
        self._host = self.weights.tolist()
        self._source = source

    def __repr__(self) -> str:
        return f"SamplerTable({self.name}, rows={len(self.rows)}, state_size={self.state_size})"

    def start(self, x: torch.Tensor) -> torch.Tensor:
        """The state before row 0: zeros, [k, *x.shape], fp32 (float64 for a float64 x), on x's device."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.zeros((self.state_size, *x.shape), dtype=dtype, device=x.device)

    def scale_input(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """`in_scale * x` of row `i`; x itself where the scale is 1."""
        scale = self.rows[i].in_scale
        return x if scale == 1.0 else x * scale

    def update(
        self, i: int, x: torch.Tensor, out: torch.Tensor, noise: torch.Tensor | None, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(x_next, s_next)` of row `i`, fp32; arguments are left as they were.

        `x`, `out`, `noise` are [B, 4, h, w], `s` is [k, B, 4, h, w]. `noise` may be None where the row
        draws nothing, else its absence raises UsageError.
        """
        if noise is None and self.rows[i].draws:
            raise UsageError(f"row {i} of {self.name} draws noise: expected a tensor like x, found None")
        dtype = torch.promote_types(x.dtype, torch.float32)
        terms = [x.to(dtype), out.to(dtype), None if noise is None else noise.to(dtype), *s.unbind(0)]
        x_next, *s_next = (_combine(line, terms) for line in self._host[i])
        return x_next, torch.stack(s_next) if s_next else s

    def restarted(self, i: int) -> SamplerTable:
        """The run from row `i` on, its history forgotten; its row 0 is row `i` of this.

        A change made to x by hand keeps the history by default (go on with `update`); restart where the
        change is so large that the history contradicts it. The result is not a slice of this table, and
        PNDM's has a row more. Raises UsageError inside a pair of evaluations (Heun, KDPM2).
        """
        return self._source.tabulate(begin=self._source.drive().origin(i))


def _combine(weights: Sequence[float], terms: Sequence[torch.Tensor | None]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for weight, term in zip(weights, terms, strict=True):
        if weight == 0.0 or term is None:
            continue
        total = term * weight if total is None else torch.add(total, term, alpha=weight)
    return torch.zeros_like(next(t for t in terms if t is not None)) if total is None else total


class _Source:
    """The scheduler and the settings that a table was made of, so that another can be."""

    def __init__(
        self, scheduler: Any, begin: int, arguments: Mapping[str, Any], as_diffusers: bool, name: str | None
    ) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        if hasattr(scheduler, "get_lms_coefficient"):
            # Quadrature over fp32 tensors takes 20 ms a row, over floats 1.
            floats = copy.copy(self.scheduler)
            floats.sigmas = self.scheduler.sigmas.tolist()
            self.scheduler.get_lms_coefficient = floats.get_lms_coefficient
        self.begin = begin
        self.arguments = dict(arguments)
        self.as_diffusers = as_diffusers
        self.name = name or type(scheduler).__name__

    def drive(self, begin: int | None = None) -> Drive:
        return Drive(
            self.scheduler,
            begin=self.begin if begin is None else begin,
            arguments=self.arguments,
            as_diffusers=self.as_diffusers,
        )

    def tabulate(self, begin: int | None = None) -> SamplerTable:
        source = copy.copy(self)
        source.begin = self.begin if begin is None else begin
        drive = source.drive()
        kind = prediction_type(self.scheduler)
        found = probe(drive)
        count = len(found.t)
        sizes = np.array([np.hypot(*pair) for pair in found.level] + [1.0])
        sizes[~np.isfinite(sizes)] = 1.0
        W = realise(found.P, found.Q, found.R, sizes)
        for array in (found.P, found.Q, found.R, W):  # a table may be several runs'
            array.setflags(write=False)
        rows = []
        for i in range(count):
            signal, sigma = found.level[i]
            a, b = found.x0[i] or x0_weights(self.scheduler, signal, sigma)
            rows.append(
                SamplerRow(
                    index=i, t=found.t[i], in_scale=found.in_scale[i], signal=signal, sigma=sigma,
                    x0_a=a, x0_b=b, draws=found.draws[i], weights=W[i],
                )
            )  # fmt: skip
        return SamplerTable(
            name=self.name, prediction_type=kind, order=drive.order,
            init_scale=float(self.scheduler.init_noise_sigma), rows=rows,
            P=found.P, Q=found.Q, R=found.R, source=source,
        )  # fmt: skip


def tabulate(
    scheduler: Any,
    *,
    begin: int = 0,
    eta: float = 0.0,
    arguments: Mapping[str, Any] | None = None,
    as_diffusers: bool = False,
    name: str | None = None,
) -> SamplerTable:
    """The table of a scheduler on which `set_timesteps` has been called; the scheduler is left as it is.

    `begin`, `eta`, `arguments` and `as_diffusers` as in `make_sampler`.

    Raises NotTabular, by name, where the step is not linear or not finite.
    """
    return _Source(scheduler, begin, step_arguments(scheduler, eta, arguments), as_diffusers, name).tabulate()
