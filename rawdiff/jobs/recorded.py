"""A scheduler built again from what a recipe holds of it: its class and every setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rawdiff import recipe
from rawdiff.arguments import describe_scheduler
from rawdiff.errors import InputError, UsageError
from rawdiff.weights.schedulers import SCHEDULER_CLASSES, scheduler_from_name

__all__ = ["recorded_scheduler"]

MAX_TIMESTEPS = 100_000


def recorded_scheduler(recorded: Mapping[str, Any], own: Any) -> Any:
    """The scheduler that `describe_scheduler` told of: the model's `own` if it is the same, else built; InputError."""
    wanted = {"class": recorded["class"], "config": recorded["config"]}
    if not recipe.differences(wanted, describe_scheduler(own)):
        return own
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


def _number(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf", "nan") else value
