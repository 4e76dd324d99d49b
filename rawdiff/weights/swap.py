"""A model with the VAE of another: a source that says where each of its parts is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from rawdiff.weights.source import NOT_MERGED, Source, open_source

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
    family, unet = read_defaults(model).family, read_config(model, "unet")
    with _told_as_vae(str(vae)):
        other = _found(vae, family, offline, say)
        config = read_config(other, "vae")
        check_class(PARTS["vae"], config, f"{other}: the vae's config")
        _check_latents(config, unet, str(other))
    return replace(model, vae=other)


@contextmanager
def _told_as_vae(name: str) -> Iterator[None]:
    """Errors inside say that it is the VAE that is wrong, and not the model."""
    try:
        yield
    except WeightsError as error:
        said = str(error)
        named = said if said.startswith(name) else f"{name[:120]}: {said}"
        raise WeightsError(said if said.startswith("vae ") else f"vae {named}") from error


def _found(vae: str | Path | Source, family: str | None, offline: bool, say: Say) -> Source:
    """Where the VAE is: of one that leaves its family open, as one of this family."""
    other = open_source(vae, offline=offline, hub=Hub(offline=offline, say=say), what="vae")
    if other.owner("vae").merged:
        raise UsageError(f"vae {str(other)[:120]!a}: {NOT_MERGED}")
    if (
        other.single is not None
        and other.single.is_guess
        and not isinstance(vae, Source)
        and family is not None
    ):
        other = open_source(f"{vae}#{family}", offline=offline, what="vae")
    for note in () if other.single is None else other.single.notes:
        say(note)
    return other.owner("vae")


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
