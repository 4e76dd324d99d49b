"""The loop over a predictor that is a formula: states, steps, watching, changes by hand, NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff.errors import NonFiniteError, StaleStep, UsageError
from rawdiff.loop import advance, denoise
from rawdiff.noise import Noise
from rawdiff.plan import Plan, Row, Window, make_plan
from rawdiff.predict import Prediction
from rawdiff.probes import NO_PROBE, Probe, ProbeLike
from rawdiff.sampler import make_sampler
from rawdiff.state import RunState, start
from rawdiff.step import Step
from tests.small_models import small_scheduler

SEEDS, SIZE = (3, 4), (5, 6)


def formula(x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
    """Something smooth that depends on x, t and guidance."""
    cond = torch.sin(x * 1.3 + row.t_device() / 500)
    uncond = torch.cos(x)
    return Prediction(uncond + row.guidance_device() * (cond - uncond), uncond, cond, ())


def plan_of(name: str = "DDIMScheduler", steps: int = 6, guidance: float = 2.0, **config: Any) -> Plan:
    return make_plan(make_sampler(small_scheduler(name, **config), steps=steps), guidance=[guidance] * 2)


def begun(plan: Plan) -> tuple[RunState, Noise]:
    noise = Noise(SEEDS, SIZE)
    return start(plan, noise.draw(0), draws=1), noise


def end(plan: Plan, state: RunState | None = None, predict: Any = formula, **options: Any) -> Tensor:
    first, noise = begun(plan)
    for step in denoise(first if state is None else state, plan, predict, noise, **options):
        x = step.state.x
    return x


STOCHASTIC = "EulerAncestralDiscreteScheduler"
SEVERAL = ["DDIMScheduler", STOCHASTIC, "UniPCMultistepScheduler", "HeunDiscreteScheduler", "PNDMScheduler"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' Heun


def test_advance_is_pure() -> None:
    plan = plan_of("UniPCMultistepScheduler")
    state, noise = begun(plan)
    for _ in range(3):
        x, s = state.x.clone(), state.s.clone()
        after, step = advance(state, plan, formula, noise)
        assert torch.equal(state.x, x)
        assert torch.equal(state.s, s)
        again, _ = advance(state, plan, formula, noise)
        assert torch.equal(again.x, after.x)
        assert torch.equal(again.s, after.s)
        assert (after.i, step.index) == (state.i + 1, state.i)
        state = after


@pytest.mark.parametrize("name", SEVERAL)
def test_going_back_and_on_again(name: str) -> None:
    """A state is a value: an old one leads to the same end, draws of noise included."""
    plan = plan_of(name)
    state, noise = begun(plan)
    states = [state]
    for step in denoise(state, plan, formula, noise):
        states.append(step.state)
    for early in (states[3], states[1]):
        for step in denoise(early, plan, formula, noise):
            last = step.state
        assert torch.equal(last.x, states[-1].x)
        assert last.draws == states[-1].draws


def test_draws_are_counted() -> None:
    plan = plan_of(STOCHASTIC)
    state, noise = begun(plan)
    for step in denoise(state, plan, formula, noise):
        assert step.state.draws == step.index + 2
    given = start(plan, torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(0)), draws=0)
    assert given.draws == 0


def test_the_noise_of_a_step_matters() -> None:
    plan = plan_of(STOCHASTIC)
    state, noise = begun(plan)
    one, _ = advance(state, plan, formula, noise)
    other, _ = advance(state, plan, formula, Noise((5, 6), SIZE))
    assert not torch.allclose(one.x, other.x)


def test_a_step_is_stale_when_the_loop_goes_on() -> None:
    plan = plan_of()
    state, noise = begun(plan)
    loop = denoise(state, plan, formula, noise, watch=("x0", "uncond"))
    first = next(loop)
    x0 = first.x0.clone()
    second = next(loop)
    for name in ("x", "x_next", "x0", "uncond"):
        with pytest.raises(StaleStep, match="step 0 was read after the loop went on"):
            getattr(first, name)
    with pytest.raises(StaleStep):
        first.keep()
    assert first.row.index == 0  # numbers stay
    kept = second.keep()
    assert kept is second
    values = {name: getattr(kept, name).clone() for name in ("x", "x_next", "x0", "uncond")}
    list(loop)
    assert all(torch.equal(getattr(kept, name), value) for name, value in values.items())
    assert not torch.equal(x0, values["x0"])


def test_what_a_step_shows() -> None:
    plan = plan_of("EulerDiscreteScheduler")
    state, noise = begun(plan)
    for step in denoise(state, plan, formula, noise, watch=("uncond", "cond", "guided", "x0")):
        row = step.row
        expected = formula(row.in_scale * step.x, row)
        assert torch.allclose(step.uncond, expected.uncond)  # type: ignore[arg-type]
        assert torch.allclose(step.cond, expected.cond)
        assert torch.allclose(step.guided, expected.guided)
        assert torch.allclose(step.x0, step.x - row.sigma * step.guided, atol=1e-5)
        assert torch.equal(step.x_next, step.state.x)


def test_only_what_is_watched() -> None:
    plan = plan_of()
    state, noise = begun(plan)
    step = next(denoise(state, plan, formula, noise, watch=("x0",)))
    assert step.x.shape == step.x_next.shape == step.x0.shape
    with pytest.raises(
        UsageError, match=r"step\.cond is not watched: prepare the run with watch=\('cond', \.\.\.\)"
    ):
        _ = step.cond
    with pytest.raises(UsageError, match="watch 'eps': expected some of x, "):
        next(denoise(state, plan, formula, noise, watch=("eps",)))
    with pytest.raises(UsageError, match="expected several names"):
        next(denoise(state, plan, formula, noise, watch="x0"))


def test_no_uncond_without_guidance() -> None:
    plan = plan_of(guidance=1.0)

    def single(x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        return Prediction(x, None, x, ())

    state, noise = begun(plan)
    step = next(denoise(state, plan, single, noise, watch=("uncond", "cond")))
    with pytest.raises(UsageError, match="guidance is off"):
        _ = step.uncond
    assert step.keep().cond.shape == step.x.shape


def test_a_kept_step_is_a_copy() -> None:
    plan = plan_of()
    straight = end(plan)
    state, noise = begun(plan)
    for step in denoise(state, plan, formula, noise, watch=("x_next", "x0")):
        step.keep()
        step.x_next.zero_()  # not the run's own
    assert torch.equal(step.state.x, straight)


def test_the_run_goes_on_from_the_steps_state() -> None:
    plan = plan_of("DPMSolverMultistepScheduler")
    state, noise = begun(plan)
    for step in denoise(state, plan, formula, noise):
        if step.index == 2:
            step.state = step.state.changed(step.state.x * 0.5, plan)
    by_hand = step.state.x

    def halve(x: Tensor, row: Row | None) -> Tensor:
        return x * 0.5 if row is not None and row.index == 3 else x

    assert torch.equal(by_hand, end(plan, constrain=halve))
    assert not torch.allclose(by_hand, end(plan))


def test_constrain_sees_the_row_that_x_goes_into() -> None:
    plan = plan_of()
    seen: list[int | None] = []

    def look(x: Tensor, row: Row | None) -> Tensor:
        seen.append(None if row is None else row.index)
        return x

    assert torch.equal(end(plan, constrain=look), end(plan))
    assert seen == [1, 2, 3, 4, 5, None]


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"])
def test_forgetting_is_a_fresh_start_from_there(name: str) -> None:
    plan = plan_of(name, steps=8)
    state, noise = begun(plan)
    loop = denoise(state, plan, formula, noise)
    for _ in range(4):
        step = next(loop)
    x = step.state.x * 1.1
    kept, forgotten = step.state.changed(x, plan), step.state.changed(x, plan, forget=True)
    assert kept.restarts == ()
    assert forgotten.restarts == (4,)
    assert forgotten.plan(plan).rows[:4] == plan.rows[:4]

    fresh = make_plan(plan.sampler.restarted(4), guidance=plan.guidance)
    expected = end(fresh, start(fresh, x / fresh.sampler.init_scale, draws=1))
    assert torch.allclose(end(plan, forgotten), expected, atol=1e-6)
    assert not torch.allclose(end(plan, kept), expected, atol=1e-3)
    assert len(forgotten.plan(plan)) == 4 + len(fresh)


def test_forgetting_each_time() -> None:
    """A multistep solver that forgets after every step is the first-order one."""
    plan = plan_of("DPMSolverMultistepScheduler", steps=5, lower_order_final=False)
    first_order = plan_of("DPMSolverMultistepScheduler", steps=5, solver_order=1)
    forgetting = end(plan, constrain=lambda x, row: x.clone(), forget=True)
    assert torch.allclose(forgetting, end(first_order), atol=1e-5)
    assert not torch.allclose(end(plan), end(first_order), atol=1e-3)


def test_no_restart_inside_a_pair() -> None:
    plan = plan_of("HeunDiscreteScheduler")
    state, noise = begun(plan)
    step = next(denoise(state, plan, formula, noise))
    with pytest.raises(UsageError):
        step.state.changed(step.state.x, plan, forget=True)


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 4, 5, 6), torch.zeros(2, 4, 5, 6, dtype=torch.int64), torch.zeros(2, 4, 6, 5)]
)
def test_changes_that_do_not_fit(x: Tensor) -> None:
    plan = plan_of()
    state, _ = begun(plan)
    with pytest.raises(UsageError, match=r"expected \[2, 4, 5, 6\] of floating point"):
        state.changed(x, plan)


@pytest.mark.parametrize(("watch", "steps_seen"), [(("x",), 2), ((), 5)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_stops_the_run(watch: tuple[str, ...], steps_seen: int, poison: float) -> None:
    """At once while something is watched, else at the end: reading the flag costs a GPU run a wait."""
    plan = plan_of()

    def broken(x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        prediction = formula(x, row)
        prediction.guided[0, 0, 0, 0] = poison if row.index == 2 else 0.0
        return prediction

    state, noise = begun(plan)
    seen: list[Step] = []
    with pytest.raises(NonFiniteError, match="NaN or Inf in the latents after step"):
        seen.extend(denoise(state, plan, broken, noise, watch=watch))
    assert len(seen) == steps_seen


def test_no_gradients_and_nothing_leaks() -> None:
    plan = plan_of()
    state, noise = begun(plan)
    state.x.requires_grad_(True)
    for step in denoise(state, plan, formula, noise):
        assert torch.is_grad_enabled()  # the caller's own mode, between the steps
        assert not step.state.x.requires_grad
        assert not step.state.x.is_inference()


def test_the_probe_sees_the_steps_and_not_the_caller() -> None:
    import time

    plan, probe = plan_of(), Probe()
    state, noise = begun(plan)
    for _ in denoise(state, plan, formula, noise, probe=probe):
        time.sleep(0.02)
    tree = probe.tree()
    assert tree.children["step"].count == 6
    assert tree.children["step"].children["sampler"].count == 6
    assert tree.total_ms - tree.children["step"].total_ms > 100  # the caller's, of 120


def test_copying_a_state() -> None:
    plan = plan_of("UniPCMultistepScheduler")
    state, _ = begun(plan)
    other = state.copy()
    other.x.zero_()
    other.s.fill_(1)
    assert state.x.abs().sum() > 0
    assert state.s.abs().sum() == 0


def test_the_packed_row_is_the_row() -> None:
    windows = [Window(0.5, 0.0, 0.5), Window(1.25, 0.4, 1.0)]
    plan = make_plan(
        make_sampler(small_scheduler(), steps=5), guidance=[3.0, 1.0, 0.0], rescale=0.3, windows=windows
    )
    for row in plan.rows:
        assert float(row.t_device()) == row.t
        assert row.guidance == (3.0, 1.0, 1.0)
        assert row.guidance_device().flatten().tolist() == [3.0, 1.0, 1.0]
        assert float(row.rescale_device()) == pytest.approx(0.3)
        assert [float(row.control_device(k)) for k in range(2)] == list(row.control)
    assert [row.control for row in plan.rows] == [
        (0.5, 0.0),
        (0.5, 0.0),
        (0.0, 1.25),
        (0.0, 1.25),
        (0.0, 1.25),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((float("nan"),), "control weight nan"),
        ((1.0, 0.5, 0.5), "control window 0.5-0.5: expected 0 <= start < end <= 1"),
        ((1.0, -0.1, 0.5), "control window"),
        ((1.0, 0.0, 1.1), "control window"),
        ((1.0, float("nan"), 1.0), "control window"),
    ],
)
def test_windows_that_make_no_sense(arguments: tuple[float, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Window(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance": [float("nan")]}, "guidance nan"),
        ({"guidance": [float("inf")]}, "guidance inf"),
        ({"guidance": [-1.0]}, "guidance -1.0"),
        ({"guidance": [2.0], "rescale": 1.5}, "rescale 1.5"),
        ({"guidance": [2.0], "rescale": float("nan")}, "rescale nan"),
    ],
)
def test_plans_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_plan(make_sampler(small_scheduler(), steps=2), **options)
