"""A scheduler as a recipe holds it, by its class and every setting, and built again from that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rawdiff import recipe
from rawdiff.errors import InputError, UsageError
from rawdiff.weights.schedulers import SCHEDULER_CLASSES, scheduler_from_name

__all__ = ["described", "recorded_scheduler"]

MAX_TIMESTEPS = 100_000


def described(scheduler: Any) -> dict[str, Any]:
    """The class and config of a diffusers scheduler as plain values."""
    config = {key: _plain(value) for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"class": type(scheduler).__name__, "config": config}


def recorded_scheduler(recorded: Mapping[str, Any], likely: Iterable[Any]) -> Any:
    """The scheduler that `described` described: one of `likely` if it is the same, else built; InputError."""
    wanted = {"class": recorded["class"], "config": recorded["config"]}
    for scheduler in likely:
        if not recipe.differences(wanted, described(scheduler)):
            return scheduler
    name, config = wanted["class"], wanted["config"]
    if name not in SCHEDULER_CLASSES:
        raise InputError(f"the recipe's sampler is a {str(name)[:60]!a}, which is none that rawdiff knows")
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_TIMESTEPS:
        raise InputError(
            f"the recipe's sampler has num_train_timesteps {str(steps)[:40]}; expected 1 to {MAX_TIMESTEPS}"
        )
    try:
        return scheduler_from_name(name, {}, settings={key: _number(value) for key, value in config.items()})
    except UsageError as error:
        raise InputError(f"the recipe's sampler cannot be built here: {error}") from None


def _plain(value: Any) -> Any:
    """A config's value as JSON knows it: infinities (`lambda_min_clipped`) become words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _number(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf", "nan") else value
