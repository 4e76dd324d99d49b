"""The proposals: the user's own request with one thing changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rawdiff.errors import UsageError
from rawdiff.jobs.job import Job
from rawdiff.jobs.request import ControlRequest, Request
from rawdiff.sampler import count_steps
from rawdiff.weights.scheduler_names import find

__all__ = ["Arm", "chosen", "proposals"]

STEPS = (50, 30, 20, 10)
SAMPLERS = ("euler", "dpm++ 2m", "unipc")
SHORT = "dpm++ 2m"
"""The sampler that is also tried with half of the steps: of the second order, at one evaluation a step."""
ENDS = (0.75, 0.5)
EVERY = (2, 3)
TRICKS = {
    "kv": "the text's keys and values at every step",
    "time": "the time embedding at every step",
    "prefix": "both halves of guidance from the first convolution on",
    "scale": "divisions by one",
}
"""What `Exact` spares, each by its name there."""


@dataclass(frozen=True)
class Arm:
    """One way of drawing the picture."""

    name: str
    group: str
    what: str
    """In a few words."""
    request: Request
    exact: bool = False
    """Whether the picture is the same but for rounding."""
    dtype: str | None = None
    reuse: int = 1
    """At every how many-th evaluation the first halves of the networks are run."""


def proposals(request: Request, job: Job, dtype: str, *, frugal: bool) -> list[Arm]:
    """Everything there is to try for this request, planned as `job`, computed in `dtype`; `frugal`: with memory low."""
    own = count_steps(job.sampler)
    found = [*_schedules(request, job, own)]
    if dtype != "bfloat16":
        found.append(Arm("bf16", "bf16", "weights and networks in bf16", request, dtype="bf16"))
    found += _exact(request)
    guided = job.options["guidance"] > 1.0
    ends = [end for end in ENDS if guided and end < job.options["guidance_end"]]
    for end in ends:
        changed = replace(request, guidance_end=end)
        found.append(
            Arm(f"guidance-end-{end:g}", "guidance", f"no guidance after {end:.0%} of the run", changed)
        )
    if job.controls:
        for end in ENDS:
            what = f"ControlNets off after {end:.0%} of their windows"
            found.append(Arm(f"control-end-{end:g}", "control", what, _shortened(request, end)))
    for every in () if frugal else EVERY:
        what = f"UNet encoder and ControlNets at every {'second' if every == 2 else 'third'} evaluation"
        found.append(Arm(f"reuse-{every}", "reuse", what, request, reuse=every))
    return found


def chosen(arms: Sequence[Arm], names: Sequence[str]) -> list[Arm]:
    """Those of these names or groups, all where none is named; raises UsageError for one that is not there."""
    for name in names:
        if not any(name in (arm.name, arm.group) for arm in arms):
            known = ", ".join(arm.name for arm in arms)
            raise UsageError(f"only {name[:60]!r}: no proposal for this command; it has {known}")
    return [arm for arm in arms if not names or arm.name in names or arm.group in names]


def _schedules(request: Request, job: Job, own: int) -> Iterator[Arm]:
    """Other numbers of steps, and other samplers."""
    for steps in STEPS:
        if steps != own:
            yield Arm(f"steps-{steps}", "steps", f"{steps} steps for {own}", _scheduled(request, steps=steps))
    now = job.picture["sampler"]["class"]
    for name in SAMPLERS:
        if find(name)[0].scheduler != now:
            changed = _scheduled(request, sampler=name, steps=own)
            yield Arm(f"sampler-{name.replace(' ', '-')}", "sampler", f"{name}, {own} steps", changed)
    if own > 1:
        half = own // 2
        changed = _scheduled(request, sampler=SHORT, steps=half)
        yield Arm(f"sampler-{SHORT.replace(' ', '-')}-half", "sampler", f"{SHORT}, {half} steps", changed)


def _scheduled(request: Request, **said: Any) -> Request:
    return replace(request, timesteps=None, sigmas=None, **said)


def _exact(request: Request) -> Iterator[Arm]:
    """What is done once instead of at each step, each of it taken away."""
    once = [name for name in TRICKS if name not in request.repeats]
    for name in once:
        repeats = (*request.repeats, name)
        yield Arm(f"without-{name}", "exact", TRICKS[name], replace(request, repeats=repeats), exact=True)
    if len(once) > 1:
        every = replace(request, repeats=tuple(TRICKS))
        yield Arm("without-exact", "exact", "all of these", every, exact=True)


def _shortened(request: Request, share: float) -> Request:
    """The request with every ControlNet's window cut to this share of itself."""

    def cut(control: ControlRequest) -> ControlRequest:
        _, start, end = control.window
        return replace(control, start=start, end=start + share * (end - start))

    return replace(request, controls=tuple(map(cut, request.resolved())), derive=())
