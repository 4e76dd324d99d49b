"""A model with the VAE of another: a source that says where each of its parts is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rawdiff.errors import UsageError, WeightsError
from rawdiff.geometry import FACTOR
from rawdiff.say import Say, say_nothing
from rawdiff.weights.build import PARTS, check_class
from rawdiff.weights.defaults import read_defaults
from rawdiff.weights.files import Where, read_config
from rawdiff.weights.hub import Hub
from rawdiff.weights.source import Source, open_source

__all__ = ["with_vae"]


def with_vae(model: Source, vae: Where = None, *, offline: bool = False, say: Say = say_nothing) -> Source:
    """The model with another VAE: a folder, a file or a repository that is one or holds one; None leaves its own.

    Its scaling factor is that of its own config: of a file by itself the config.json beside it. Without one it does not
    tell its family, and is taken to be of the model's. Raises WeightsError for one whose latents are not the model's,
    UsageError, HubError.
    """
    if vae is None:
        return model
    if not isinstance(vae, (str, Path, Source)):
        raise UsageError(f"vae: found {type(vae).__name__}, expected a folder, a file or a hub id")
    other = open_source(vae, offline=offline, hub=Hub(offline=offline, say=say))
    if other.owner("vae").merged:
        raise UsageError(
            f"vae {str(other)[:120]!a}: a merge is of whole models, and a recipe tells of one VAE; expected a folder, "
            "a file or a hub id"
        )
    notes = () if other.single is None else other.single.notes
    if other.single is not None and other.single.is_guess and not isinstance(vae, Source):
        family = read_defaults(model).family
        if family is not None:
            other = open_source(f"{vae}#{family}", offline=offline)
            notes = () if other.single is None else other.single.notes
    for note in notes:
        say(note)
    other = other.owner("vae")
    config = read_config(other, "vae")
    check_class(PARTS["vae"], config, f"{other}: the vae's config")
    _check_latents(config, read_config(model, "unet"), str(other))
    return replace(model, vae=other)


def _check_latents(config: dict[str, Any], unet: dict[str, Any], where: str) -> None:
    found, expected = config.get("latent_channels", 4), unet.get("out_channels", 4)
    if found != expected:
        raise WeightsError(
            f"{where}: a VAE of {found} latent channels, expected {expected}, as the model's UNet has"
        )
    levels = config.get("block_out_channels")
    factor = 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else FACTOR
    if factor != FACTOR:
        raise WeightsError(f"{where}: a VAE of {factor} pixels a latent, expected {FACTOR}")
