"""A table is made once for the same scheduler and settings, and anew for any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from rawdiff.sampler import SamplerTable, kept, make_sampler, set_schedule, tabulate
from rawdiff.weights.schedulers import known_names, scheduler_from_name
from tests.sampler_cases import BY_ID, Reference, walk
from tests.small_models import small_scheduler

ARRAYS = ("P", "Q", "R", "weights")


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    kept._tables.clear()
    yield
    kept._tables.clear()


def scheduler(**options: Any) -> Any:
    made = small_scheduler("DPMSolverMultistepScheduler")
    return type(made).from_config(made.config, **options)


def table(scheduler: Any, **settings: Any) -> SamplerTable:
    made = make_sampler(scheduler, **settings)
    assert isinstance(made, SamplerTable), made.why
    return made


def is_same(one: SamplerTable, other: SamplerTable) -> bool:
    """Whether the two are one reading of a scheduler."""
    return one.P is other.P


def assert_equal(one: SamplerTable, other: SamplerTable) -> None:
    """All that tables hold is equal."""
    for name in ARRAYS:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("name", "prediction_type", "order", "init_scale", "state_size"):
        assert getattr(one, name) == getattr(other, name), name
    for row, same in zip(one.rows, other.rows, strict=True):
        np.testing.assert_equal(asdict(row), asdict(same))  # NaN is NaN


@pytest.mark.parametrize("name", known_names())
def test_the_same_is_made_once_and_is_as_a_fresh_one(name: str) -> None:
    config = small_scheduler("DDIMScheduler").config
    first = table(scheduler_from_name(name, config), steps=4)
    again = table(scheduler_from_name(name, config), steps=4)
    assert is_same(first, again) == (not name.startswith("sa-solver"))  # which holds a function, its tau_func
    assert_equal(again, tabulate(set_schedule(scheduler_from_name(name, config), steps=4)))


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {"steps": 7}),
        ({}, {"steps": 6, "begin": 2}),
        ({}, {"steps": 6, "name": "another"}),
        ({"solver_order": 3}, {"steps": 6}),
        ({"use_karras_sigmas": True}, {"steps": 6}),
        ({"prediction_type": "v_prediction"}, {"steps": 6}),
    ],
)
def test_any_other_is_made_anew(options: dict[str, Any], settings: dict[str, Any]) -> None:
    first = table(scheduler(), steps=6)
    other = table(scheduler(**options), **settings)
    assert not is_same(other, first)
    same = other.P.shape == first.P.shape and np.array_equal(other.Q, first.Q)
    assert not same or other.name == "another"


@pytest.mark.parametrize(
    ("id", "one", "other"),
    [
        ("ddim eta", {"eta": 0.0}, {"eta": 1.0}),
        ("lms", {"begin": 2}, {"begin": 2, "as_diffusers": True}),
        ("plms", {"begin": 3}, {"begin": 3, "as_diffusers": True}),
        ("euler churn", {"arguments": {"s_churn": 2.0}}, {"arguments": {"s_churn": 1.0}}),
        ("euler churn", {"arguments": {"s_churn": 2.0}}, {"arguments": {"s_churn": 2.0, "s_noise": 1.01}}),
        ("euler churn", {"arguments": {"s_churn": 2.0}}, {}),
    ],
)
def test_every_setting_counts(id: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Each is a table of its own, whatever was made before, and the right one."""
    for settings in (one, other, one):
        made = table(BY_ID[id].make(), steps=6, **settings)
        assert_equal(made, tabulate(set_schedule(BY_ID[id].make(), steps=6), **settings))
    assert len(kept._tables) == 2


@pytest.mark.parametrize("name", ["sigmas", "alphas_cumprod"])
def test_a_tensor_of_the_scheduler_counts_to_the_last_bit(name: str) -> None:
    plain, other = (set_schedule(BY_ID["euler"].make(), steps=6) for _ in range(2))
    value = getattr(other, name)[-2]
    value.copy_(torch.nextafter(value, value + 1))
    assert not is_same(table(plain), table(other))


def test_values_are_keys_by_bits_type_and_shape() -> None:
    nan = float("nan")
    number = torch.tensor([1.0, nan])
    for value in (number, number.bfloat16(), number.numpy(), nan, -0.0, torch.zeros(0), torch.tensor(True)):
        again = float("nan") if value is nan else value
        again = value.clone() if isinstance(value, torch.Tensor) else again
        key = kept._frozen(value)
        assert key == kept._frozen(again)
        assert hash(key) == hash(kept._frozen(again))
    others = [
        number, number.double(), number[None], torch.zeros(2), torch.zeros(2).int(), number.numpy(),
        number.numpy()[None], number.double().numpy(), [1.0, nan], 1, 1.0, True, 0.0, -0.0, "1", None,
        torch.zeros(2).numpy(), torch.zeros(2).int().numpy(), {"a": 1}, {"a": 1.0}, torch.float32, torch.device("cpu"),
    ]  # fmt: skip
    assert len({kept._frozen(value) for value in others}) == len(others)


class Own(diffusers.DDIMScheduler):  # type: ignore[misc]
    """A class of one's own, with an attribute that its step reads."""

    factor = 1.0

    def _get_variance(self, *given: Any) -> Any:
        return self.factor * super()._get_variance(*given)


def test_a_class_of_ones_own_is_tabled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Own.from_config(small_scheduler("DDIMScheduler").config)
    first, again = (table(own, steps=6, eta=1.0) for _ in range(2))
    assert not is_same(first, again)
    assert_equal(first, again)
    monkeypatch.setattr(Own, "factor", 0.5)
    assert not np.array_equal(table(own, steps=6, eta=1.0).R, first.R)
    assert not kept._tables


@pytest.mark.parametrize("base", [diffusers.DDIMScheduler, diffusers.SchedulerMixin])
def test_a_method_that_is_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch, base: Any) -> None:
    plain = small_scheduler("DDIMScheduler")
    first = table(plain, steps=6, eta=1.0)
    before = diffusers.DDIMScheduler._get_variance
    with monkeypatch.context() as patch:
        if base is diffusers.DDIMScheduler:
            patch.setattr(base, "_get_variance", lambda self, *given: before(self, *given) / 4)
        else:  # of a class above
            patch.setattr(base, "added", lambda self: None, raising=False)
        other = table(plain, steps=6, eta=1.0)
        assert not is_same(other, first)
        assert np.array_equal(other.R, first.R) == (base is not diffusers.DDIMScheduler)
    assert is_same(table(plain, steps=6, eta=1.0), first)


def test_an_attribute_of_a_class_that_is_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = BY_ID["heun"].make()
    first = table(plain, steps=6)
    monkeypatch.setattr(diffusers.HeunDiscreteScheduler, "order", 1)
    assert not is_same(table(plain, steps=6), first)


class Unhashable:
    """A step that is neither a function nor a key."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, step: Any) -> None:
        self.step = step

    def __get__(self, scheduler: Any, kind: Any) -> Any:
        return self if scheduler is None else self.step.__get__(scheduler, kind)


def test_a_step_that_cannot_be_a_key_is_tabled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(scheduler())
    monkeypatch.setattr(kind, "step", Unhashable(kind.step))
    first, again = (table(scheduler(), steps=6) for _ in range(2))
    assert not is_same(first, again)


class NoKey(int):
    """A number that is no key."""

    __hash__ = None  # type: ignore[assignment]


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "extra", [lambda: None, np.array([object()]), LOOP, torch.zeros(2).to_sparse(), object(), {1, 2}, NoKey()],
    ids=["function", "objects", "loop", "sparse", "object", "set", "no key"],
)  # fmt: skip
def test_a_scheduler_that_holds_what_is_not_known_is_tabled_each_time(extra: Any) -> None:
    own = set_schedule(scheduler(), steps=6)
    own.extra = extra
    first, again = (table(own) for _ in range(2))
    assert not is_same(first, again)
    assert_equal(first, again)
    assert not kept._tables


def test_what_a_caller_does_with_its_table_is_its_own() -> None:
    plain = scheduler()
    mine = table(plain, steps=6)
    fresh = tabulate(set_schedule(plain, steps=6))
    arrays = [getattr(mine, name) for name in ARRAYS] + [row.weights for row in mine.rows]
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2.0
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        mine.rows[0].weights.setflags(write=True)
    mine.init_scale, mine.name, mine.rows = 3.0, "mine", ()
    for _ in range(2):
        again = table(plain, steps=6)
        assert is_same(again, mine)
        assert_equal(again, fresh)
        again.init_scale, again.rows = 3.0, ()


def test_a_tables_constructor_leaves_its_callers_arrays_as_they_are() -> None:
    made = table(scheduler(), steps=6)
    given = {name: getattr(made, name).copy() for name in "PQR"}
    SamplerTable(
        name="own", prediction_type="epsilon", order=1, init_scale=1.0, rows=made.rows, source=made._source, **given
    )  # fmt: skip
    for array in given.values():
        array[0, 0] = 2.0


@pytest.mark.parametrize("id", ["dpm++ 2m", "unipc", "kdpm2 a"])
def test_a_kept_table_is_right_after_it_was_used(id: str) -> None:
    case = BY_ID[id]
    plain = set_schedule(case.make(), steps=6)
    for _ in range(3):
        made = table(case.make(), steps=6)
        assert walk(made, Reference(plain)) <= 1e-5
        again = made.restarted(2)
        assert_equal(again, tabulate(plain, begin=2))
    assert len(kept._tables) == 1
    assert_equal(made, tabulate(plain))


def test_the_last_used_are_kept_and_no_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST", 3)
    monkeypatch.setattr(kept, "_MOST_ROWS", 7)
    two, three, four = (table(scheduler(), steps=steps) for steps in (2, 3, 4))
    for steps in (8, 8):
        assert not is_same(table(scheduler(), steps=steps), table(scheduler(), steps=steps))
    assert is_same(table(scheduler(), steps=2), two)  # now the last used
    table(scheduler(), steps=7)
    assert len(kept._tables) == 3
    assert is_same(table(scheduler(), steps=2), two)
    assert is_same(table(scheduler(), steps=4), four)
    assert not is_same(table(scheduler(), steps=3), three)


def test_all_that_is_kept_is_small() -> None:
    most = table(BY_ID["unipc 3"].make(), steps=kept._MOST_ROWS)
    assert len(kept._tables) == 1
    size = 2 * most.weights.nbytes + sum(getattr(most, name).nbytes for name in "PQR")
    assert kept._MOST * size <= 40e6
    table(BY_ID["unipc 3"].make(), steps=kept._MOST_ROWS + 1)
    assert len(kept._tables) == 1
