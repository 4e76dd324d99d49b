"""Arguments of the Python door, checked and spread over the images of a batch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rawdiff.conditions import SizeIds
from rawdiff.errors import InputError, UsageError
from rawdiff.limits import FITS, check_text
from rawdiff.noise import Noise
from rawdiff.plan import is_number
from rawdiff.sampler import Sampler, make_sampler
from rawdiff.weights import Source
from rawdiff.weights.schedulers import scheduler_from_name

__all__ = [
    "STEPS",
    "build_sampler",
    "check_callables",
    "check_fit",
    "check_flags",
    "check_nets",
    "check_number",
    "check_path",
    "check_second",
    "check_size_ids",
    "check_whole",
    "count_prompts",
    "describe_scheduler",
    "given_latents",
    "rebuild_sampler",
    "second_prompts",
    "shown",
    "spread_prompts",
    "spread_scales",
]

STEPS = 20
"""Steps where neither a number nor a schedule is given."""


def shown(value: object) -> str:
    """`value` as an error's line shows it: on one line, and not without end."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_number(what: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float if it is a finite number from `low` to `high`; raises UsageError."""
    if not is_number(value) or not low <= value <= high:
        limits = "" if math.inf in (-low, high) else f" from {low:g} to {high:g}"
        raise UsageError(f"{what} {shown(value)}: expected a {'' if limits else 'finite '}number{limits}")
    return float(value)


def check_whole(what: str, value: object, low: int = 0) -> int:
    """`value` if it is a whole number of at least `low`; raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(f"{what} {shown(value)}: expected a whole number, {low} or more")
    return value


def check_flags(**flags: object) -> None:
    """Raise UsageError for one that is not True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} {shown(value)}: expected True or False")


def check_callables(**functions: object) -> None:
    """Raise UsageError for one that cannot be called."""
    for name, value in functions.items():
        if not callable(value):
            raise UsageError(f"{name} {shown(value)}: expected something to call")


def check_fit(fit: object) -> None:
    """Raise UsageError unless `fit` is a way of fitting a map, or None; there may be no map to notice."""
    if fit is not None and (not isinstance(fit, str) or fit not in FITS):
        raise UsageError(f"fit {shown(fit)}: expected {', '.join(FITS)}, or None")


def check_size_ids(given: object, *, told: bool) -> None:
    """Raise UsageError unless it is a SizeIds that makes sense, for a model that is `told` sizes, or None."""
    if given is None:
        return
    if not isinstance(given, SizeIds):
        raise UsageError(
            f"size_ids {shown(given)}: expected a rawdiff.SizeIds(original=(height, width), ...)"
        )
    if not told:
        raise UsageError("size_ids: this model is told no sizes, only SDXL is: leave them out")
    for name, low in (("original", 1), ("crop", 0), ("target", 1)):
        pair = getattr(given, name)
        if pair is None and name != "crop":
            continue
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UsageError(f"size_ids: {name} {shown(pair)}: expected two whole numbers of pixels")
        for number in pair:
            check_whole(f"size_ids: {name}", number, low)
    if given.negative is not None:
        check_size_ids(given.negative, told=told)
        if given.negative.negative is not None:
            raise UsageError("size_ids: the negative has a negative of its own: leave that out")


def check_path(what: str, value: object) -> Path:
    """`value` as a Path; raises UsageError."""
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{what} {shown(value)}: expected a path")
    return Path(value)


def check_nets(given: object, controls: object) -> dict[str, Any]:
    """What `load` is told of the nets: kind -> folder or hub id; raises UsageError for other types."""
    if isinstance(controls, str) or not isinstance(controls, Sequence):
        raise UsageError(f"controls {shown(controls)}: expected a list of kinds, such as ['depth']")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"nets {shown(given)}: expected {{kind: folder or hub id}}")
    for kind, source in given.items():
        if not isinstance(kind, str):
            raise UsageError(f"nets: the kind {shown(kind)}: expected text, such as 'depth'")
        if isinstance(source, nn.Module):
            raise UsageError(
                f"nets: {kind} is a module: expected a folder or hub id; give it as Control(..., net=module)"
            )
        if not isinstance(source, (str, os.PathLike, Source)):
            raise UsageError(f"nets: {kind} is {shown(source)}: expected a folder or hub id")
    return dict(given)


def count_prompts(prompt: str | Sequence[str], count: int) -> int:
    """How many prompts there are; raises UsageError for none, or for a `count` of images that is no count."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(
            f"count {shown(count)}: expected a whole number of images for each prompt, 1 or more"
        )
    if isinstance(prompt, str):
        return 1
    if not isinstance(prompt, Sequence) or not prompt:
        raise UsageError(f"prompt {shown(prompt)}: expected text, or a list of texts")
    return len(prompt)


def spread_prompts(what: str, given: str | Sequence[str], prompts: int, count: int) -> list[str]:
    """One text for each image: a single one for all, one for each of `prompts`, or one for each image."""
    if not isinstance(given, Sequence):
        raise UsageError(f"{what} {shown(given)}: expected text, or a list of texts")
    texts = [given] if isinstance(given, str) else list(given)
    return [check_text(what, text) for text in _spread(what, texts, prompts, count)]


def check_second(*, two: bool, **given: object) -> None:
    """Raise UsageError for a prompt of a second text encoder, by its name, where a model has not two."""
    for name, value in given.items():
        if value and not two:
            raise UsageError(
                f"{name.replace('_', ' ')}: this model has one text encoder, only SDXL has two: leave it out"
            )


def second_prompts(
    given: str | Sequence[str] | None,
    negative: str | Sequence[str] | None,
    first: tuple[list[str], list[str]],
    prompts: int,
    count: int,
) -> tuple[list[str], list[str]] | None:
    """What SDXL's second text encoder reads: as `spread_prompts` has it, the first's where it is empty or None.

    None where it reads what the first does.
    """
    named = (("prompt 2", given), ("negative prompt 2", negative))
    both = [spread_prompts(name, "" if one is None else one, prompts, count) for name, one in named]
    filled = [
        [own or other for own, other in zip(some, others, strict=True)]
        for some, others in zip(both, first, strict=True)
    ]
    return None if filled == [*first] else (filled[0], filled[1])


def spread_scales(given: float | Sequence[float] | Tensor, prompts: int, count: int) -> list[float]:
    """One guidance scale for each image; a tensor or array counts as the numbers that it holds."""
    if isinstance(given, (Tensor, np.ndarray)):
        given = given.tolist()
    scales = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for scale in scales:
        if not is_number(scale):
            raise UsageError(
                f"guidance {shown(scale)}: expected a finite number, 7.5 say, 1 or less for none"
            )
    return [float(scale) for scale in _spread("guidance", scales, prompts, count)]


def _spread(what: str, values: list[Any], prompts: int, count: int) -> list[Any]:
    total = prompts * count
    if len(values) == 1:
        return values * total
    if len(values) == prompts:
        return [value for value in values for _ in range(count)]
    if len(values) == total:
        return values
    raise UsageError(f"{what}: {len(values)} given for {total} images; expected 1 or {total}")


def build_sampler(
    given: Any,
    own: Any,
    named: str | None = None,
    *,
    steps: int | None,
    timesteps: Sequence[int] | None,
    sigmas: Sequence[float] | None,
    eta: float,
) -> tuple[Sampler, dict[str, Any]]:
    """The sampler that is asked for, and what a recipe says of it.

    `given` is a name, a diffusers scheduler, a Sampler (its schedule is its own), or None for what the model is
    meant to be used with: the sampler `named` by its defaults, else its `own` scheduler. A recipe holds the class
    and the config, of a Sampler its rows' SHA-256. Raises UsageError.
    """
    given = named if given is None else given
    eta = check_number("eta", eta, 0.0, 1.0)
    timesteps, sigmas = _listed("timesteps", timesteps), _listed("sigmas", sigmas)
    schedule: Mapping[str, Any] = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    if hasattr(given, "rows") and hasattr(given, "update"):
        extra = [name for name, value in schedule.items() if value is not None] + (["eta"] if eta else [])
        if extra:
            raise UsageError(f"{' and '.join(extra)}: a Sampler brings its own schedule; make it with that")
        sampler: Sampler = given
        kind = type(sampler).__name__
        return sampler, {"name": sampler.name, "given": "sampler", "class": kind, "rows": _digest(sampler)}
    if steps is None and timesteps is None and sigmas is None:
        steps = STEPS
    if given is None or isinstance(given, str):
        scheduler = own if given is None else scheduler_from_name(given, own.config)
    elif hasattr(given, "set_timesteps") and hasattr(given, "step"):
        scheduler = given
    else:
        raise UsageError(f"sampler {shown(given)}: expected a name, a diffusers scheduler or a Sampler")
    made = make_sampler(
        scheduler,
        steps=steps,
        timesteps=timesteps,
        sigmas=sigmas,
        eta=eta,
        name=given if isinstance(given, str) else None,
    )
    spec = {
        "name": made.name,
        "given": "name" if isinstance(given, str) else "default" if given is None else "scheduler",
        **describe_scheduler(scheduler),
        "steps": steps,
        "timesteps": None if timesteps is None else [int(t) for t in timesteps],
        "sigmas": None if sigmas is None else [float(sigma) for sigma in sigmas],
        "eta": eta,
    }
    return made, spec


def rebuild_sampler(
    path: str | Path, spec: Mapping[str, Any], given: Any, own: Any
) -> tuple[Sampler, dict[str, Any]]:
    """The sampler that a saved recipe's `spec` describes; `given` is needed where it was one's own, and only there.

    Raises UsageError.
    """
    is_given = spec["given"] in ("sampler", "scheduler")
    if is_given and given is None:
        raise UsageError(
            f"{path}: was made with a {spec['given']} of one's own, {spec['name']}: give it again"
        )
    if not is_given and given is not None:
        raise UsageError(f"{path}: was made with {spec['name']}, which it names itself: leave sampler out")
    empty: dict[str, Any] = {"steps": None, "timesteps": None, "sigmas": None, "eta": 0.0}
    schedule = {key: spec.get(key, value) for key, value in empty.items()}
    return build_sampler(spec["name"] if spec["given"] == "name" else given, own, **schedule)


def _listed(what: str, given: Any) -> list[Any] | None:
    """A schedule of one's own as a list, its numbers as they are."""
    if isinstance(given, (Tensor, np.ndarray)):
        given = given.tolist()
    if given is None or (isinstance(given, Sequence) and all(is_number(value) for value in given)):
        return None if given is None else list(given)
    raise UsageError(f"{what} {shown(given)}: expected a list of finite numbers, descending")


def describe_scheduler(scheduler: Any) -> dict[str, Any]:
    """A scheduler's class and config as plain values, without what diffusers notes for itself."""
    config = getattr(scheduler, "config", None)
    said = config.items() if isinstance(config, Mapping) else ()
    plain = {str(key): _plain(value) for key, value in said if not str(key).startswith("_")}
    return {"class": type(scheduler).__name__, "config": plain}


def _plain(value: Any) -> Any:
    """As JSON knows it: infinities (`lambda_min_clipped`) become words, what it does not know its type's name."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case np.ndarray() | np.generic() | Tensor():
            return _plain(value.tolist())
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case _:
            return type(value).__name__


def _digest(sampler: Sampler) -> str:
    """SHA-256 over all that a sampler's rows say."""
    sha256 = hashlib.sha256()
    for row in sampler.rows:
        numbers = (row.t, row.in_scale, row.signal, row.sigma, row.x0_a, row.x0_b, row.draws)
        sha256.update(np.array(numbers, dtype="<f8").tobytes() + row.weights.astype("<f8").tobytes())
    return sha256.hexdigest()


def given_latents(latents: Tensor, noise: Noise) -> Tensor:
    """Latents given in place of the first draw, [B,4,h,w] or [4,h,w], as [B,4,h,w] fp32 on the device."""
    expected = [len(noise.seeds), 4, *noise.size]
    if not isinstance(latents, Tensor) or not latents.dtype.is_floating_point:
        raise UsageError("latents: expected a floating point tensor [B,4,h,w]")
    if list(latents.shape) not in (expected, expected[1:]):
        raise UsageError(f"latents of shape {list(latents.shape)}: expected {expected}")
    if not bool(torch.isfinite(latents).all()):
        raise InputError("latents: they hold NaN or Inf")
    return latents.detach().to(noise.device, torch.float32).expand(expected).clone()
