"""A table is made once for the same scheduler and settings, and anew for any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rawdiff.sampler import make_sampler
from tests.small_models import small_scheduler


def scheduler(**options: Any) -> Any:
    made = small_scheduler("DPMSolverMultistepScheduler")
    return type(made).from_config(made.config, **options)


def test_the_same_is_made_once() -> None:
    first = make_sampler(scheduler(), steps=6)
    assert make_sampler(scheduler(), steps=6) is first


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {"steps": 7}),
        ({}, {"steps": 6, "begin": 2}),
        ({}, {"steps": 6, "name": "another"}),
        ({"solver_order": 3}, {"steps": 6}),
        ({"use_karras_sigmas": True}, {"steps": 6}),
    ],
)
def test_any_other_is_made_anew(options: dict[str, Any], settings: dict[str, Any]) -> None:
    first = make_sampler(scheduler(), steps=6)
    other = make_sampler(scheduler(**options), **settings)
    assert other is not first
    same = other.P.shape == first.P.shape and np.array_equal(other.P, first.P)
    assert not same or other.name == "another"


def test_a_scheduler_with_code_of_its_own_is_never_mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, own = scheduler(), scheduler()
    own.extra = lambda: None
    assert make_sampler(own, steps=6) is not make_sampler(plain, steps=6)
    first = make_sampler(plain, steps=6)
    step = type(plain).step

    def other(self: Any, *given: Any, **more: Any) -> Any:
        return step(self, *given, **more)

    monkeypatch.setattr(type(plain), "step", other)
    assert make_sampler(plain, steps=6) is not first


def test_a_table_that_may_be_another_runs_too_is_not_written_to() -> None:
    table = make_sampler(scheduler(), steps=6)
    with pytest.raises(ValueError, match="read-only"):
        table.P[0, 0] = 2.0
