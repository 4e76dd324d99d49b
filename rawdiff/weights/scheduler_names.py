"""The names that people know schedulers by, and what each stands for.

A name is a sampler, by the spelling of A1111, ComfyUI or diffusers, and may end in a way of spacing the
noise levels: "dpm++ 2m", "DPM++ 2M SDE Karras", "dpmpp_2m", "euler a", "EulerAncestralDiscreteScheduler".
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rawdiff.errors import UsageError

__all__ = ["NAMES", "SPACINGS", "Entry", "accepted", "find", "known_names", "scheduler_class"]

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


def known_names() -> list[str]:
    """Every name `scheduler_from_name` lists, with the spacings that each sampler has: "dpm++ 2m", "dpm++
    2m karras", ...
    """
    names = []
    for name, entry in NAMES.items():
        settings = accepted(entry.scheduler)
        names += [name] + [f"{name} {word}" for word, flag in SPACINGS.items() if flag in settings]
    return names


def find(name: str) -> tuple[Entry, str]:
    """The entry for `name` and its spacing, "" for none; raises UsageError with near names."""
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


def accepted(scheduler: str) -> set[str]:
    """What the config of a scheduler of this class may hold."""
    return set(inspect.signature(scheduler_class(scheduler).__init__).parameters) - {"self"}


def scheduler_class(scheduler: str) -> Any:
    """diffusers' class of this name."""
    import diffusers

    return getattr(diffusers, scheduler)
