"""The state of a run: a value. Copy it, save it, fork it, resume it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import UsageError
from rawdiff.plan import Plan, Row

__all__ = ["RunState", "set_by_hand", "start"]


@dataclass(frozen=True, eq=False)
class RunState:
    """Where a run stands. Nothing changes it: the loop makes another, so that an old one is a way back."""

    x: Tensor
    """The latents, [B,4,h,w] fp32 (fp64 where the networks are)."""
    s: Any
    """What the sampler carries beside them: [k,B,4,h,w] fp32 from a table, else an object of its own."""
    i: int = 0
    """The row that comes next."""
    draws: int = 0
    """Draws of noise consumed so far."""
    restarts: tuple[int, ...] = ()
    """Rows at which the sampler's history was forgotten."""
    by_hand: bool = False
    """Whether it, or one before it, was set by somebody: then no recipe tells what the run comes to."""

    def plan(self, plan: Plan) -> Plan:
        """The plan that this state runs on: `plan`, restarted where its history was forgotten."""
        for i in self.restarts:
            plan = plan.restarted(i)
        return plan

    def row(self, plan: Plan) -> Row | None:
        """The row that comes next, or None at the end."""
        rows = self.plan(plan).rows
        return rows[self.i] if self.i < len(rows) else None

    def after(self, x: Tensor, s: Any, draws: int) -> RunState:
        """The state one evaluation later."""
        return replace(self, x=x, s=s, i=self.i + 1, draws=self.draws + draws)

    def changed(self, x: Tensor, plan: Plan, *, forget: bool = False) -> RunState:
        """This state with other latents.

        By default the sampler keeps its history: its next step still leans on the outputs from before the
        change (UniPC most of all). With `forget` it starts anew from this row, or raises UsageError.
        """
        if not isinstance(x, Tensor):
            raise UsageError(
                f"latents: found a {type(x).__name__}, expected a tensor {list(self.x.shape)}; a constraint has "
                "to return it"
            )
        if x.shape != self.x.shape or not x.dtype.is_floating_point:
            found = f"{list(x.shape)} {x.dtype}"
            raise UsageError(f"latents of {found}: expected {list(self.x.shape)} of floating point")
        x = x.detach().to(self.x)
        if not forget or self.row(plan) is None:
            return replace(self, x=x)
        restarts = (*self.restarts, self.i)
        sampler = replace(self, restarts=restarts).plan(plan).sampler
        return replace(self, x=x, s=sampler.start(x), restarts=restarts)

    def copy(self) -> RunState:
        """The same state in memory of its own."""
        s = self.s.clone() if isinstance(self.s, Tensor) else copy.deepcopy(self.s)
        return replace(self, x=self.x.clone(), s=s)


def set_by_hand(state: object, shape: torch.Size) -> RunState:
    """`state`, marked as `by_hand`, if it is one of a run whose latents have this shape; raises UsageError."""
    if not isinstance(state, RunState):
        raise UsageError(f"state: found a {type(state).__name__}, expected a RunState, such as run.state was")
    if state.x.shape != shape:
        raise UsageError(f"a state of {list(state.x.shape)}: expected {list(shape)}")
    return replace(state, by_hand=True)


def start(plan: Plan, noise: Tensor, *, draws: int) -> RunState:
    """The state before row 0, from unit noise [B,4,h,w]; `draws`: how many of the run's draws that took."""
    x = noise.to(plan.device, torch.promote_types(noise.dtype, torch.float32)) * plan.sampler.init_scale
    return RunState(x, plan.sampler.start(x), draws=draws)
