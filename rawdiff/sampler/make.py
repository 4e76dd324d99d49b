"""From a scheduler and a number of steps to a sampler."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rawdiff.errors import NotTabular, UsageError
from rawdiff.sampler.drive import hush
from rawdiff.sampler.kept import kept
from rawdiff.sampler.scheduler import SchedulerSampler
from rawdiff.sampler.table import SamplerTable, tabulate

__all__ = ["make_sampler", "set_schedule"]


def make_sampler(
    scheduler: Any,
    *,
    steps: int | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    begin: int = 0,
    eta: float = 0.0,
    arguments: Mapping[str, Any] | None = None,
    as_diffusers: bool = False,
    name: str | None = None,
) -> SamplerTable | SchedulerSampler:
    """A sampler for `scheduler`: a table where its step is linear, else its own step.

    One of `steps`, `timesteps` (whole numbers, descending) and `sigmas` (descending, the last being where
    the run ends) sets the schedule; with none of them the scheduler's own `set_timesteps` must have been
    called. `begin` starts part-way, at that place in the scheduler's list of timesteps, a multiple of its
    order. `eta` is for DDIM and TCD, `arguments` for anything else its `step` takes. `as_diffusers` keeps
    diffusers' faults of part-way starts. The scheduler itself is left as it is. Raises UsageError.
    """
    scheduler = set_schedule(scheduler, steps=steps, timesteps=timesteps, sigmas=sigmas)
    try:
        return kept(
            scheduler,
            (begin, eta, arguments, as_diffusers, name),
            lambda: tabulate(
                scheduler, begin=begin, eta=eta, arguments=arguments, as_diffusers=as_diffusers, name=name
            ),
        )
    except NotTabular as reason:
        return SchedulerSampler(
            scheduler,
            begin=begin,
            eta=eta,
            arguments=arguments,
            as_diffusers=as_diffusers,
            name=name,
            why=str(reason),
        )


def set_schedule(
    scheduler: Any,
    *,
    steps: int | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Any:
    """A copy of `scheduler` with its schedule set; raises UsageError for what its class cannot do."""
    scheduler = copy.deepcopy(scheduler)
    name = type(scheduler).__name__
    given = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    named = [key for key, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} were given: the schedule is set by one of them")
    if not named:
        return scheduler
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    try:
        with hush():
            if steps is not None:
                if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
                    raise UsageError(f"steps {steps!r}: expected a whole number of at least 1")
                if steps < 4 and not getattr(getattr(scheduler, "config", None), "skip_prk_steps", True):
                    raise UsageError(
                        f"steps {steps}: {name} warms up over 4 Runge-Kutta steps; "
                        "take more, or set skip_prk_steps"
                    )
                scheduler.set_timesteps(steps)
            else:
                values = _descending(timesteps if sigmas is None else sigmas, named[0])
                limit = getattr(getattr(scheduler, "config", None), "num_train_timesteps", math.inf)
                if sigmas is None and values[0] >= limit:
                    raise UsageError(f"timesteps: {values[0]:g} is beyond the model's last, {limit - 1}")
                if named[0] not in accepted:
                    raise UsageError(f"{name} takes no {named[0]} of one's own, only a number of steps")
                scheduler.set_timesteps(**{named[0]: values})
    except UsageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{name}: its schedule cannot be set ({reason})") from error
    if getattr(scheduler, "num_inference_steps", 0) is None:
        scheduler.num_inference_steps = len(scheduler.timesteps)
    if timesteps is not None:
        taken = {float(t) for t in scheduler.timesteps}
        lost = [t for t in timesteps if float(t) not in taken]
        if lost:
            raise UsageError(f"timesteps {lost}: {name} takes whole numbers")
    return scheduler


def _descending(values: Sequence[float] | None, what: str) -> list[float]:
    numbers = list(values or ())
    if not numbers:
        raise UsageError(f"{what}: expected at least one number")
    for number in numbers:
        if not math.isfinite(number) or number < 0:
            raise UsageError(f"{what}: {number!r} is not a finite number of at least 0")
    if any(a <= b for a, b in itertools.pairwise(numbers)):
        raise UsageError(f"{what} {numbers}: expected descending numbers")
    return numbers
