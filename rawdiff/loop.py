"""The loop: one evaluation after the other, each a pure function of a state, each there to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rawdiff.errors import NonFiniteError
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.noise import Noise
from rawdiff.plan import Plan, Row
from rawdiff.predict import Predict
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.state import RunState
from rawdiff.step import Step, check_watch

__all__ = ["Constrain", "advance", "denoise"]

Constrain = Callable[[Tensor, Row | None], Tensor]
"""x after a step [B,4,h,w] fp32, and the row that it goes into (None at the end) -> x."""


@torch.no_grad()
def advance(
    state: RunState,
    plan: Plan,
    predict: Predict,
    noise: Noise,
    *,
    watch: Sequence[str] = (),
    blend: Constrain | None = None,
    probe: ProbeLike = NO_PROBE,
) -> tuple[RunState, Step]:
    """One evaluation, and a mask's `blend`: the state after it, and a Step to look at it. Raises ResourceError."""
    row = state.plan(plan).rows[state.i]
    sampler, k = row.sampler, row.step.index
    with telling_out_of_memory(f"step {row.index}", state.x.device):
        prediction = predict(sampler.scale_input(state.x, k), row, probe)
        with probe("sampler"):
            drawn = noise.draw(state.draws) if row.step.draws else None
            x_next, s_next = sampler.update(k, state.x, prediction.guided, drawn, state.s)
    after = state.after(x_next, s_next, row.step.draws)
    after = after if blend is None else after.changed(blend(after.x, after.row(plan)), plan)
    return after, Step(row, state.x, prediction, after, watch)


def denoise(
    state: RunState,
    plan: Plan,
    predict: Predict,
    noise: Noise,
    *,
    watch: Sequence[str] = (),
    blend: Constrain | None = None,
    constrain: Constrain | None = None,
    forget: bool = False,
    probe: ProbeLike = NO_PROBE,
) -> Iterator[Step]:
    """Run from `state` to the end of the plan, handing out each Step; the run goes on from `step.state`.

    `constrain` changes x after each step, by hand; with `forget` the sampler's history is forgotten each time. A Step
    goes stale when the next is asked for. NonFiniteError comes at the end, or at once if anything is watched.
    """
    watch = check_watch(watch)
    while state.row(plan) is not None:
        with probe("step"):
            state, step = advance(state, plan, predict, noise, watch=watch, blend=blend, probe=probe)
        if constrain is not None:
            step.state = state = state.changed(constrain(state.x, state.row(plan)), plan, forget=forget)
        if (watch or state.row(plan) is None) and not bool(torch.isfinite(state.x).all()):
            raise NonFiniteError(
                f"NaN or Inf in the latents after step {step.index}: try fp32 or another sampler"
            )
        yield step
        step.expire()
        state = step.state
