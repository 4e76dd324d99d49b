"""Tables against the schedulers they were read off: every step, given the same x, outputs and noise."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from rawdiff.sampler import SamplerTable, make_sampler, tabulate
from rawdiff.sampler.drive import hush
from tests.sampler_cases import BY_ID, CASES, Case, Reference, table, walk

BOUND = 1e-5
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@cases
def test_every_step_is_the_schedulers_own(case: Case) -> None:
    for changes in case.variants():
        scheduler = case.make(**changes)
        steps_to_try = (1, 2, 3, 5, 20) if "timestep_spacing" in changes else (2, 20)
        for steps in steps_to_try if changes["prediction_type"] == "epsilon" else (20,):
            if steps >= case.fewest:
                assert walk(*table(case, scheduler, steps)) <= BOUND, (steps, changes)


@cases
def test_the_state_is_minimal_and_needed(case: Case) -> None:
    made, reference = table(case, case.make(), 20, dtype=torch.float32)
    assert made.state_size == case.state
    assert walk(made, reference) <= BOUND
    if case.state:
        made, reference = table(case, case.make(), 20)
        assert walk(made, reference, forgetful=True) >= 100 * BOUND


@pytest.mark.parametrize(
    ("id", "given"),
    [
        ("ddpm", {"timesteps": [999, 700, 500, 200, 40]}),
        ("euler", {"timesteps": [999, 700, 500, 200, 40]}),
        ("heun", {"timesteps": [999, 700, 500, 200, 40]}),
        ("dpm++ 2m", {"timesteps": [999, 700, 500, 200, 40]}),
        ("dpm++ 2s", {"timesteps": [999, 700, 500, 200, 40]}),
        ("lcm", {"timesteps": [999, 759, 499, 259]}),
        ("tcd", {"timesteps": [999, 759, 499, 259]}),
        ("euler", {"sigmas": [14.6, 6.0, 2.0, 0.5, 0.0]}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_schedule_of_ones_own(id: str, given: dict[str, Any]) -> None:
    case = BY_ID[id]
    scheduler = case.make()
    made = make_sampler(scheduler, **given, eta=case.arguments.get("eta", 0.0))
    assert isinstance(made, SamplerTable)
    with hush():
        scheduler.set_timesteps(**given)
    assert walk(made, Reference(scheduler, arguments=case.arguments)) <= BOUND
    if "sigmas" in given:
        assert [row.sigma for row in made.rows] == pytest.approx(given["sigmas"][:-1])
    else:
        assert sorted({row.t for row in made.rows}, reverse=True) == given["timesteps"]


def test_study_form_is_the_running_form() -> None:
    made, _ = table(BY_ID["unipc 3"], BY_ID["unipc 3"].make(), 10)
    for matrix in (made.P, made.Q, made.R):
        assert matrix.shape == (10, 10)
        assert np.array_equal(matrix, np.tril(matrix))
    u = np.random.default_rng(0).normal(size=(3, 10))
    expected = made.P @ u[0] + made.Q @ u[1] + made.R @ u[2]
    s = np.zeros(made.state_size)
    for i in range(10):
        x_next, *s = made.weights[i] @ np.concatenate([u[:, i], s])
        assert x_next == pytest.approx(expected[i], rel=1e-6)


def test_many_steps() -> None:
    made, reference = table(BY_ID["dpm++ 2m"], BY_ID["dpm++ 2m"].make(), 300)
    assert made.state_size == 1
    assert walk(made, reference) <= BOUND


def test_the_scheduler_is_left_as_it_is() -> None:
    scheduler = BY_ID["unipc"].make()
    with hush():
        scheduler.set_timesteps(7)
    before = copy.deepcopy(scheduler.__dict__)
    tabulate(scheduler)
    make_sampler(scheduler, steps=12)
    assert before.keys() == scheduler.__dict__.keys()
    assert len(scheduler.timesteps) == 7
    assert scheduler.model_outputs == [None, None]
    assert scheduler.step_index is None
