"""Schedulers by the names people know, and from a model's folder.

A name is a sampler, by the spelling of A1111, ComfyUI or diffusers, and may end in a way of spacing the
noise levels: "dpm++ 2m", "DPM++ 2M SDE Karras", "dpmpp_2m", "euler a", "EulerAncestralDiscreteScheduler".
What belongs to the model (its betas, what its network predicts, spacing and offset of its timesteps, zero
terminal SNR) is kept when the class changes; what belongs to a sampler is not carried from one to another.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rawdiff.errors import UsageError, WeightsError
from rawdiff.sampler.drive import hush

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

SPACINGS = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}


@dataclass(frozen=True)
class Entry:
    """A sampler people know: diffusers' class, settings, other spellings, modules needed beside torch."""

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


_MULTI, _SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_SDE = {"algorithm_type": "sde-dpmsolver++"}

NAMES: dict[str, Entry] = {
    "ddim": Entry("DDIMScheduler"),
    "ddpm": Entry("DDPMScheduler"),
    "pndm": Entry("PNDMScheduler", {"skip_prk_steps": True}, ("plms",)),
    "pndm prk": Entry("PNDMScheduler", {"skip_prk_steps": False}, ("pndm warmup", "pndm runge kutta")),
    "euler": Entry("EulerDiscreteScheduler"),
    "euler a": Entry("EulerAncestralDiscreteScheduler", also=("euler ancestral",)),
    "heun": Entry("HeunDiscreteScheduler"),
    "dpm2": Entry("KDPM2DiscreteScheduler", also=("kdpm2", "kdpm 2", "k dpm 2")),
    "dpm2 a": Entry(
        "KDPM2AncestralDiscreteScheduler", also=("kdpm2 a", "dpm2 ancestral", "kdpm2 ancestral", "k dpm 2 a")
    ),
    "lms": Entry("LMSDiscreteScheduler", needs=("scipy",)),
    "dpm++ 2m": Entry(_MULTI, {"solver_order": 2}, ("dpm solver++", "dpm solver multistep", "dpm++")),
    "dpm++ 2m sde": Entry(_MULTI, {"solver_order": 2} | _SDE),
    "dpm++ 2m sde heun": Entry(_MULTI, {"solver_order": 2, "solver_type": "heun"} | _SDE),
    "dpm++ 3m": Entry(_MULTI, {"solver_order": 3}),
    "dpm++ 3m sde": Entry(_MULTI, {"solver_order": 3} | _SDE),
    "dpm++ 2s": Entry(_SINGLE, {"solver_order": 2, "lower_order_final": True}, ("dpm solver singlestep",)),
    "dpm++ 2s sde": Entry(_SINGLE, {"solver_order": 2, "lower_order_final": True} | _SDE),
    "dpm++ 3s": Entry(_SINGLE, {"solver_order": 3, "lower_order_final": True}),
    "dpm++ sde": Entry("DPMSolverSDEScheduler", needs=("torchsde", "scipy")),
    "deis": Entry("DEISMultistepScheduler", {"solver_order": 2}, ("deis 2", "deis 2m")),
    "deis 3": Entry("DEISMultistepScheduler", {"solver_order": 3}, ("deis 3m",)),
    "unipc": Entry("UniPCMultistepScheduler", {"solver_order": 2}, ("unipc 2", "unipc bh2", "unipc 2m")),
    "unipc 3": Entry("UniPCMultistepScheduler", {"solver_order": 3}, ("unipc 3m",)),
    "unipc bh1": Entry(
        "UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}
    ),
    "sa-solver": Entry("SASolverScheduler", also=("sa",)),
    "lcm": Entry("LCMScheduler"),
    "tcd": Entry("TCDScheduler"),
}

MAX_CONFIG_BYTES = 10_000_000

SCHEDULER_CLASSES = frozenset(entry.scheduler for entry in NAMES.values()) | {"EDMEulerScheduler"}
"""The only classes that a model folder's config may name."""


def known_names() -> list[str]:
    """Every name `scheduler_from_name` lists, with the spacings that each sampler has: "dpm++ 2m", "dpm++
    2m karras", ...
    """
    names = []
    for name, entry in NAMES.items():
        accepted = _accepted(entry.scheduler)
        names += [name] + [f"{name} {word}" for word, flag in SPACINGS.items() if flag in accepted]
    return names


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
    entry, spacing = _find(name)
    accepted = _accepted(entry.scheduler)
    config = _model_part(base_config, entry)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in accepted:
        raise UsageError(
            f"sampler {name!r}: the model was trained with zero terminal SNR, which {entry.scheduler} "
            "does not have; take ddim, ddpm, euler, dpm++ 2m or unipc"
        )
    config = {key: value for key, value in config.items() if key in accepted}
    config |= dict(entry.settings)
    needs = list(entry.needs)
    if spacing:
        flag = SPACINGS[spacing]
        if flag not in accepted:
            raise UsageError(
                f"sampler {name!r}: {entry.scheduler} has no {spacing} spacing of the noise levels"
            )
        config[flag] = True
        needs += ["scipy"] if spacing == "beta" else []
    if "clip_sample" in accepted:
        config["clip_sample"] = False
    for key, value in (settings or {}).items():
        if key not in accepted:
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


def scheduler_from_folder(path: str | Path) -> Any:
    """The scheduler that a `scheduler_config.json` describes, exactly as it says.

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
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{file}: not found; a scheduler's config was expected there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: no readable JSON ({_line(error)})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{file}: expected a JSON object, found {type(config).__name__}")
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
    accepted = _accepted(kind)
    try:
        return _build(kind, {key: value for key, value in config.items() if key in accepted})
    except Exception as error:
        raise WeightsError(f"{file}: {kind} refuses its config ({_line(error)})") from error


def _find(name: str) -> tuple[Entry, str]:
    """The entry for `name` and its spacing, "" for none."""
    spellings = _spellings()
    key = _plain(name)
    for spacing in ("", *SPACINGS):
        if key.endswith(spacing) and key.removesuffix(spacing) in spellings:
            return NAMES[spellings[key.removesuffix(spacing)]], spacing
    near = _near(key)
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else f"known are {', '.join(NAMES)}; most take karras, exponential or beta"
    )
    raise UsageError(f"sampler {name[:100]!r} is not known: {hint}")


def _near(key: str) -> list[str]:
    plain = {_plain(name): name for name in known_names()}
    return [plain[match] for match in difflib.get_close_matches(key, plain, n=4, cutoff=0.5)]


def _plain(name: str) -> str:
    """`name` without case, spaces and punctuation: "DPM++ 2M Karras" and "dpmpp_2m_karras" are both
    dpmpp2mkarras.
    """
    key = re.sub(r"[^a-z0-9]", "", name[:100].lower().replace("++", "pp").replace("+", "p"))
    return key.removesuffix("gpu")


def _spellings() -> dict[str, str]:
    """Every plain spelling of every name, without spacing."""
    known: dict[str, str] = {}
    for name, entry in NAMES.items():
        for spelling in (name, *entry.also):
            plain = _plain(spelling)
            known.setdefault(plain, name)
            known.setdefault(f"k{plain}", name)  # k_euler_a, k_lms
            known.setdefault(f"sample{plain}", name)  # k-diffusion's functions
        if not any(key in ("algorithm_type", "solver_type") for key in entry.settings):
            known.setdefault(_plain(entry.scheduler), name)
            known.setdefault(_plain(entry.scheduler.removesuffix("Scheduler")), name)
    return known


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


def _accepted(scheduler: str) -> set[str]:
    return set(inspect.signature(_class(scheduler).__init__).parameters) - {"self"}


def _class(scheduler: str) -> Any:
    import diffusers

    return getattr(diffusers, scheduler)


def _build(scheduler: str, config: dict[str, Any]) -> Any:
    with hush():
        return _class(scheduler)(**config)


def _check_values(config: Mapping[str, Any], file: Path) -> None:
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
