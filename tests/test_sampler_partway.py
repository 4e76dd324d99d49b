"""Part-way starts: diffusers' own as they are, its two faults put right, and restarts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rawdiff.errors import UsageError
from rawdiff.sampler import (
    Sampler,
    SamplerTable,
    SchedulerSampler,
    count_steps,
    make_sampler,
    renoise,
    tabulate,
)
from rawdiff.sampler.drive import hush
from tests.sampler_cases import BY_ID, CASES, SD, Case, Reference, table, walk

BOUND = 1e-5
FAULTY = ("PNDMScheduler", "LMSDiscreteScheduler")


def prepared(case: Case, steps: int, **changes: Any) -> Any:
    scheduler = case.make(**changes)
    with hush():
        scheduler.set_timesteps(steps)
    return scheduler


def settings(case: Case) -> dict[str, Any]:
    arguments = dict(case.arguments)
    return {"eta": arguments.pop("eta", 0.0), "arguments": arguments}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("faults", ["as diffusers", "corrected"])
def test_part_way_as_diffusers_does_it(case: Case, faults: str) -> None:
    if faults == "corrected" and case.scheduler in FAULTY:
        pytest.skip("tested below: diffusers' own is wrong")
    scheduler = prepared(case, 12)
    extra = {"eta": 0.0} if "eta" in scheduler.step.__code__.co_varnames else {}
    for begin in (2, 6, 10):
        as_diffusers = faults == "as diffusers"
        made = tabulate(scheduler, begin=begin, as_diffusers=as_diffusers, **settings(case))
        assert len(made.rows) == len(scheduler.timesteps) - begin
        assert walk(made, Reference(scheduler, begin, extra | case.arguments)) <= BOUND


@pytest.mark.parametrize("id", ["plms", "pndm prk"])
def test_pndm_part_way_is_a_fresh_run_over_the_levels_that_remain(id: str) -> None:
    """The last 10 of 20 levels are all those of a model with half the training steps, run afresh."""
    scheduler = prepared(BY_ID[id], 20, timestep_spacing="leading", steps_offset=1)
    half = BY_ID[id].make(
        timestep_spacing="leading",
        steps_offset=1,
        num_train_timesteps=500,
        trained_betas=scheduler.betas[:500].tolist(),
    )
    fresh = make_sampler(half, steps=10)
    begin = [int(t) for t in scheduler.timesteps].index(451)
    made = tabulate(scheduler, begin=begin)
    assert isinstance(fresh, SamplerTable)
    assert [row.t for row in made.rows] == [row.t for row in fresh.rows]
    np.testing.assert_allclose(made.weights, fresh.weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.P, fresh.P, rtol=1e-4, atol=1e-6)
    faulty = tabulate(scheduler, begin=begin, as_diffusers=True)
    assert len(faulty.rows) != len(made.rows) or not np.allclose(faulty.P, made.P, atol=1e-3)


def left_over(made: Sampler) -> float:
    """The noise left at the end of a part-way run with a network that says which noise went in."""
    g = torch.Generator().manual_seed(0)
    x0, n = torch.randn(1, 4, 32, 32, generator=g), torch.randn(1, 4, 32, 32, generator=g)
    x = renoise(made, 0, x0, n)
    s = made.start(x)
    for i in range(len(made.rows)):
        x, s = made.update(i, x, n, None, s)
    return float((x - x0).std())


def test_pndm_part_way_leaves_no_more_noise_than_from_the_start() -> None:
    scheduler = prepared(BY_ID["plms"], 20, timestep_spacing="leading", steps_offset=1)
    whole = left_over(tabulate(scheduler))
    assert left_over(tabulate(scheduler, begin=10)) == pytest.approx(whole, rel=0.02)
    faulty = left_over(tabulate(scheduler, begin=10, as_diffusers=True))
    assert faulty > 3 * whole


def test_lms_part_way_is_a_fresh_run_over_the_sigmas_that_remain() -> None:
    scheduler = prepared(BY_ID["lms"], 12)
    for begin in (3, 8):
        shorter = prepared(BY_ID["lms"], 12)
        shorter.sigmas, shorter.timesteps = shorter.sigmas[begin:], shorter.timesteps[begin:]
        made = tabulate(scheduler, begin=begin)
        assert walk(made, Reference(shorter)) <= BOUND
        faulty = tabulate(scheduler, begin=begin, as_diffusers=True)
        assert walk(faulty, Reference(shorter)) >= 100 * BOUND
        assert left_over(made) < 1e-3
        assert left_over(faulty) > 0.1


def test_a_part_way_table_is_not_a_slice() -> None:
    scheduler = prepared(BY_ID["dpm++ 2m"], 12)
    whole, part = tabulate(scheduler), tabulate(scheduler, begin=4)
    assert [row.t for row in part.rows] == [row.t for row in whole.rows[4:]]
    assert [row.sigma for row in part.rows] == [row.sigma for row in whole.rows[4:]]
    assert not np.allclose(part.weights[0, 0, :2], whole.weights[4, 0, :2])
    assert np.allclose(part.P[2:, 2:], whole.P[6:, 6:])


def test_restarting_forgets_the_history() -> None:
    for id in ("dpm++ 2m", "heun", "lms", "unipc"):
        scheduler = prepared(BY_ID[id], 12)
        made = tabulate(scheduler)
        for again in (made.restarted(4), made.restarted(2).restarted(2)):
            assert np.array_equal(again.weights, tabulate(scheduler, begin=4).weights)
            assert again.rows[0].t == made.rows[4].t
        own = SchedulerSampler(scheduler).restarted(4)
        assert [row.t for row in own.rows] == [row.t for row in made.rows[4:]]
        assert walk(own, Reference(scheduler, 4)) <= BOUND or id == "lms"


def test_restarting_pndm_finds_its_level() -> None:
    scheduler = prepared(BY_ID["plms"], 12)
    made = tabulate(scheduler)
    for i in range(2, 12):
        again = made.restarted(i)
        assert again.rows[0].t == made.rows[i].t
        assert len(again.rows) == len(made.rows) - i + (i < 12)
        twice = again.restarted(3) if len(again.rows) > 3 else again
        assert twice.rows[0].t == (again.rows[3] if len(again.rows) > 3 else again.rows[0]).t
    assert len(made.restarted(0).rows) == len(made.rows)


@pytest.mark.parametrize("id", ["heun", "kdpm2", "kdpm2 a"])
def test_no_start_inside_a_pair(id: str) -> None:
    scheduler = prepared(BY_ID[id], 12)
    with pytest.raises(UsageError, match=r"begin 3: expected a multiple of 2 .* from 0 to 22"):
        tabulate(scheduler, begin=3)
    with pytest.raises(UsageError, match="multiple of 2"):
        tabulate(scheduler).restarted(5)


@pytest.mark.parametrize("begin", [-1, 12, 100])
def test_begin_outside_the_schedule(begin: int) -> None:
    with pytest.raises(UsageError, match=f"begin {begin}: expected a multiple of 1 .* from 0 to 11"):
        make_sampler(BY_ID["euler"].make(), steps=12, begin=begin)


def test_pndm_part_way_through_its_warm_up() -> None:
    scheduler = prepared(BY_ID["pndm prk"], 20)
    with pytest.raises(UsageError, match="lies inside a Runge-Kutta step"):
        tabulate(scheduler, begin=2)
    with pytest.raises(UsageError, match="3 levels remain, PNDMScheduler warms up over 4"):
        tabulate(scheduler, begin=len(scheduler.timesteps) - 3)


def test_renoise_is_the_level_of_the_row() -> None:
    made, _ = table(BY_ID["kdpm2"], BY_ID["kdpm2"].make(**SD), 6)
    x0, n = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert torch.allclose(renoise(made, 3, x0, n), x0 + made.rows[3].sigma * n)
    assert torch.equal(renoise(made, len(made.rows), x0, n), x0)
    with pytest.raises(UsageError, match="row 12: this sampler's rows are 0 to 10"):
        renoise(made, 12, x0, n)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_steps_are_counted_from_the_rows(case: Case) -> None:
    for steps in (4, 7):
        made = make_sampler(case.make(), steps=steps, **settings(case))
        if case.id == "pndm prk":
            with pytest.raises(UsageError, match="warms up by Runge-Kutta steps"):
                count_steps(made)
        else:
            assert count_steps(made) == steps
