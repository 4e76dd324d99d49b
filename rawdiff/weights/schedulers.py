"""Schedulers by the names people know, and from a model's folder.

What belongs to the model (its betas, what its network predicts, spacing and offset of its timesteps, zero
terminal SNR) is kept when the class changes; what belongs to a sampler is not carried from one to another.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rawdiff.errors import UsageError, WeightsError
from rawdiff.sampler.drive import hush
from rawdiff.weights.scheduler_names import (
    NAMES,
    SPACINGS,
    Entry,
    accepted,
    find,
    known_names,
    scheduler_class,
)

__all__ = ["SCHEDULER_CLASSES", "known_names", "scheduler_from_folder", "scheduler_from_name"]

MODEL_KEYS = frozenset(
    {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"}
    | {"timestep_spacing", "steps_offset", "set_alpha_to_one", "rescale_betas_zero_snr"}
)
"""What a config says of the model rather than of the sampler."""

CHOICES = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}

SAMPLER_KEYS = frozenset(
    {"algorithm_type", "solver_type", "solver_order", "skip_prk_steps", "use_lu_lambdas"}
    | {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
)
"""What a name decides, even where the model's config is of the same class."""

MAX_CONFIG_BYTES = 10_000_000
_MAX_INT = 2**20

SCHEDULER_CLASSES = frozenset(entry.scheduler for entry in NAMES.values()) | {"EDMEulerScheduler"}
"""The only classes that a model folder's config may name."""


def scheduler_from_name(
    name: str, base_config: Mapping[str, Any], *, settings: Mapping[str, Any] | None = None
) -> Any:
    """The diffusers scheduler that people call `name`, for the model whose scheduler config is `base_config`.

    `base_config` is a `scheduler.config` or what a scheduler_config.json holds. `settings` are further
    config entries that the class must have. Latents are not clipped, whatever the config says:
    `clip_sample` is for pixels. Raises UsageError for an unknown name (with near ones), a spacing or
    setting that the class lacks, a model with zero terminal SNR under a class that has none, and a missing
    module of the extra `samplers`.
    """
    entry, spacing = find(name)
    known = accepted(entry.scheduler)
    config = _model_part(base_config, entry)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        raise UsageError(
            f"sampler {name!r}: the model was trained with zero terminal SNR, which {entry.scheduler} "
            "does not have; take ddim, ddpm, euler, dpm++ 2m or unipc"
        )
    config = {key: value for key, value in config.items() if key in known}
    config |= dict(entry.settings)
    needs = list(entry.needs)
    if spacing:
        flag = SPACINGS[spacing]
        if flag not in known:
            raise UsageError(
                f"sampler {name!r}: {entry.scheduler} has no {spacing} spacing of the noise levels"
            )
        config[flag] = True
        needs += ["scipy"] if spacing == "beta" else []
    if "clip_sample" in known:
        config["clip_sample"] = False
    for key, value in (settings or {}).items():
        if key not in known:
            raise UsageError(f"sampler {name!r}: {entry.scheduler} has no setting {key!r}")
        config[key] = value
        needs += ["scipy"] if key == "use_beta_sigmas" and value else []
    for module in needs:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"sampler {name!r} needs {module}, which is not installed: pip install 'rawdiff[samplers]'"
            ) from error
    try:
        return _build(entry.scheduler, config)
    except Exception as error:
        raise UsageError(f"sampler {name!r}: {entry.scheduler} refuses ({_line(error)})") from error


def scheduler_from_folder(path: str | Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The scheduler that a `scheduler_config.json` describes, exactly as it says but for `changes`.

    `path` is the file or its folder. Keys that the class does not know are left out, as diffusers does. Raises
    WeightsError for a file that is missing or no config, a class outside SCHEDULER_CLASSES, and values that
    the class refuses.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "scheduler_config.json"
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise WeightsError(
                f"{file}: {file.stat().st_size} bytes; a scheduler's config has a few thousand"
            )
        config = json.loads(file.read_text(encoding="utf-8"))  # not strictly: diffusers writes -Infinity
    except FileNotFoundError as error:
        raise WeightsError(f"{file}: not found; a scheduler's config was expected there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: no readable JSON ({_line(error)})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{file}: expected a JSON object, found {type(config).__name__}")
    config.update(changes or {})
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in SCHEDULER_CLASSES:
        raise WeightsError(
            f"{file}: scheduler class {kind!r} is not one of {', '.join(sorted(SCHEDULER_CLASSES))}"
        )
    _check_values(config, file)
    needs = {entry.scheduler: entry.needs for entry in NAMES.values()}.get(kind, ())
    needs += ("scipy",) if config.get("use_beta_sigmas") else ()
    for module in needs:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"{file}: {kind} needs {module}, which is not installed: pip install 'rawdiff[samplers]'"
            ) from error
    known = accepted(kind)
    try:
        return _build(kind, {key: value for key, value in config.items() if key in known})
    except Exception as error:
        raise WeightsError(f"{file}: {kind} refuses its config ({_line(error)})") from error


def _model_part(base_config: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """What of `base_config` holds for `entry`: the model's keys; all but the name's where classes agree.

    A value that the base's own class merely defaulted to is left to the new class, as diffusers'
    from_config does.
    """
    defaulted = set(base_config.get("_use_default_values") or ())
    same = base_config.get("_class_name") == entry.scheduler
    return {
        key: value
        for key, value in base_config.items()
        if key not in defaulted
        and not key.startswith("_")
        and (key in MODEL_KEYS or (same and key not in SAMPLER_KEYS))
    }


def _build(scheduler: str, config: dict[str, Any]) -> Any:
    with hush():
        return scheduler_class(scheduler)(**config)


def _check_values(config: Mapping[str, Any], file: Path) -> None:
    for key, value in config.items():
        if isinstance(value, int) and abs(value) > _MAX_INT:
            raise WeightsError(f"{file}: {str(key)[:80]!a} is {value}, expected -{_MAX_INT} to {_MAX_INT}")
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 100_000:
        raise WeightsError(f"{file}: num_train_timesteps {steps!r}: expected a whole number from 1 to 100000")
    for key in ("beta_start", "beta_end"):
        beta = config.get(key, 0.01)
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 < beta < 1:
            raise WeightsError(f"{file}: {key} {beta!r}: expected a number between 0 and 1")
    for key, values in CHOICES.items():
        if config.get(key, values[0]) not in values:
            raise WeightsError(f"{file}: {key} {config[key]!r}: expected one of {', '.join(values)}")
    betas = config.get("trained_betas")
    if betas is not None and not (
        isinstance(betas, list)
        and len(betas) == steps
        and all(isinstance(b, (int, float)) and math.isfinite(b) and 0 <= b <= 1 for b in betas)
    ):
        raise WeightsError(f"{file}: trained_betas: expected {steps} numbers from 0 to 1, or null")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
