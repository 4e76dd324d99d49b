"""Work done once instead of at each step: every step is that of diffusers' modules, with it and without."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from rawdiff.conditions import Conditions
from rawdiff.loop import advance
from rawdiff.noise import Noise
from rawdiff.predict import Exact
from rawdiff.state import start
from tests.exact_cases import BOUND, EVERYTHING, NAMES, NOTHING, SHAPES, Case, diffused, error

ONE_OFF = {f"without {name}": replace(EVERYTHING, **{name: False}) for name in NAMES}
ONE_ON = {f"only {name}": replace(NOTHING, **{name: True}) for name in NAMES}
FEWER = {"everything": EVERYTHING, "nothing": NOTHING, **ONE_ON}
WAYS = {**FEWER, **ONE_OFF}

CASES: dict[str, dict[str, Any]] = {
    "no nets": {},
    "one net": {"nets": 1},
    "two nets": {"nets": 2},
    "guess": {"nets": 2, "guess": True},
    "guess without guidance": {"nets": 1, "guess": True, "guidance": [1.0]},
    "pooled": {"nets": 2, "pooled": True},
    "batch": {"nets": 2, "guidance": [3.0, 1.0, 7.5]},
    "batch of hints": {"nets": 1, "guidance": [3.0, 5.0, 7.5], "hints": 3},
    "batch guessed": {"nets": 1, "guidance": [3.0, 5.0, 7.5], "guess": True},
    "no guidance": {"nets": 2, "guidance": [1.0, 1.0, 0.5]},
    "odd": {"nets": 1, "size": (9, 7)},
    **{name: {"nets": 1, **SHAPES[name]} for name in SHAPES},
    "v": {"nets": 1, "shape": "linear", "prediction_type": "v_prediction"},
    "cross at the top, batch": {"nets": 2, **SHAPES["cross at the top"], "guidance": [3.0, 5.0, 7.5]},
    "no text at the top, batch": {"nets": 2, "shape": "topless", "guidance": [3.0, 5.0, 7.5]},
}


def trajectory(case: Case) -> list[Tensor]:
    """The latents of diffusers' loop, from noise on."""
    scheduler = copy.deepcopy(case.scheduler)
    scheduler.set_timesteps(len(case.plan))
    x = [Noise(range(case.batch), case.size).draw(0)]
    for i, t in enumerate(scheduler.timesteps):
        x.append(scheduler.step(diffused(case, x[i], i), t, x[i], return_dict=False)[0])
    return x


def worst(case: Case, exact: Exact, xs: Sequence[Tensor]) -> float:
    """The largest relative error of a step, each taken from the reference's latents."""
    predict, noise = case.prepared(exact), Noise(range(case.batch), case.size)
    state, errors = start(case.plan, xs[0], draws=1), []
    for i, expected in enumerate(xs[1:]):
        state, step = advance(state.changed(xs[i], case.plan), case.plan, predict, noise, watch=("guided",))
        errors += [error(step.guided, diffused(case, xs[i], i)), error(state.x, expected)]
    assert len(errors) == 2 * len(case.plan)
    return max(errors)


@pytest.mark.parametrize("name", CASES)
def test_each_step_is_that_of_diffusers(name: str) -> None:
    case = Case(**CASES[name])
    xs = trajectory(case)
    ways = WAYS if name in ("two nets", "batch") else FEWER
    found = {way: worst(case, exact, xs) for way, exact in ways.items()}
    assert max(found.values()) <= BOUND, found
    if case.nets:  # and the comparison would notice
        case.given = Conditions(case.given.contexts, tuple(hint.flip(-1) for hint in case.given.hints))
        assert worst(case, EVERYTHING, xs) > 100 * BOUND


@pytest.mark.parametrize("way", ["everything", "nothing"])
def test_520x392(way: str) -> None:
    case = Case(nets=1, size=(49, 65), steps=1)
    assert worst(case, WAYS[way], trajectory(case)) <= BOUND
