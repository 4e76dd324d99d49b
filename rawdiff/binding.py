"""What preparing a run and resuming one share: its networks bound to its plan, and the model's part of its account."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec

from rawdiff import images, predict, recipe
from rawdiff.conditions import Conditions
from rawdiff.controls import Control
from rawdiff.extras import AddedLora
from rawdiff.nets.exact import Exact
from rawdiff.parts import Parts
from rawdiff.plan import Plan
from rawdiff.probes import ProbeLike
from rawdiff.run import Run, Setup
from rawdiff.say import Say

__all__ = ["WATCH", "account_of", "set_up", "undone_on_error"]

P = ParamSpec("P")

WATCH = ("x", "uncond", "cond", "guided", "x0")
"""What a run prepared from Python keeps of each step."""


def undone_on_error(work: Callable[Concatenate[Parts, P], Run]) -> Callable[Concatenate[Parts, P], Run]:
    """What makes a run, leaving no LoRA in the weights where none comes of it."""

    @wraps(work)
    def undone(self: Parts, /, *arguments: P.args, **options: P.kwargs) -> Run:
        with self.undone_on_error():
            return work(self, *arguments, **options)

    return undone


def account_of(model: Parts, *, masked: bool) -> dict[str, Any]:
    """What of an account is the model's, in a run with a mask or without one."""
    return recipe.of_model(model.source, model.hashes(masked=masked), model.dtype)


def set_up(
    model: Parts,
    plan: Plan,
    conditions: Conditions,
    controls: Sequence[Control],
    hints: tuple[images.Hint, ...],
    account: Mapping[str, Any],
    origin: Mapping[str, Any],
    added: Sequence[AddedLora],
    exact: Exact,
    *,
    say: Say,
    probe: ProbeLike,
    **keeping: Any,
) -> Setup:
    """All of a run that no step changes, its networks bound to it; `keeping` are the Setup's `blend` and `paste`."""
    loaded = [model.net(control.kind, control.net, probe=probe) for control in controls]
    unet = model.unet_for(masked=recipe.is_masked(account), probe=probe)
    networks = predict.prepare(
        plan,
        conditions,
        unet,
        loaded,
        names=[control.kind for control in controls],
        guess=bool(account["guess"]),
        exact=exact,
        runner=model.runner,
        hold=partial(model.hold, model.runner, unet, added),
        probe=probe,
    )
    return Setup(
        plan, conditions, networks, model.vae, model.runner, account, origin, hints, say, probe, **keeping
    )
