"""What a model is meant to be used with: its native size, guidance, and the networks and LoRAs that belong to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rawdiff.errors import SizeError, WeightsError
from rawdiff.geometry import FACTOR, Size, check_size, format_size
from rawdiff.limits import is_name
from rawdiff.nets.guidance import is_told
from rawdiff.weights import registry
from rawdiff.weights.choose import read_json
from rawdiff.weights.files import Where, read_config
from rawdiff.weights.source import Source, open_source

__all__ = ["Defaults", "read_defaults", "vae_dtype"]

_FILE, _INDEX = "rawdiff.json", "model_index.json"
_TOLD = 8.5
"""Guidance of a latent consistency model where nobody says, as in diffusers."""
_KNOWN = 2.25
"""How many times more or fewer pixels than its native ones a model draws well. A side half as long again (768 of 512)
still holds together, and at twice as long (1024) things repeat; at two thirds (344) pictures begin to fall apart."""
_KEYS = {
    "name",
    "native_size",
    "largest_size",
    "guidance",
    "sampler",
    "controls",
    "inpaint",
    "loras",
    "embeddings",
}


@dataclass(frozen=True)
class Defaults:
    """What to use where nobody says. `native_size` is (height, width) in pixels."""

    name: str
    native_size: Size
    guidance: float = 7.5
    largest_size: Size | None = None
    """(height, width) up to which it was trained, where it says so."""
    sampler: str | None = None
    """A sampler's name, or None for the scheduler in the folder."""
    controls: Mapping[str, Source | str] = field(default_factory=dict)
    """Kind of hint to the source of its ControlNet, ready for `load_controlnet`."""
    inpaint: Source | None = None
    """A UNet for inpainting beside the model's own, ready for `load_unet`."""
    loras: Mapping[str, str] = field(default_factory=dict)
    """Names of the LoRAs that the model brings, each with its file inside the model."""
    embeddings: Mapping[str, str] = field(default_factory=dict)
    """The same of its textual-inversion embeddings."""
    family: str | None = None
    """`"sd1"`, `"sd2"`, `"sdxl"`, or None for a model of its own."""
    two_encoders: bool = False
    """Whether two text encoders are read, and pooled text and sizes told with the time (SDXL)."""
    zeros: bool = False
    """Whether an absent negative prompt is all zeros, and not an encoded empty text."""

    def unfamiliar(self, size: Size) -> str | None:
        """What to say of a size (height, width) far from those the model knows; None for one that is near.

        By its pixels: it knows up to 2.25 times more or fewer than its native ones, and those of its largest size where
        it names one.
        """
        own, px = math.prod(self.native_size), math.prod(size)
        largest = own if self.largest_size is None else math.prod(self.largest_size)
        if own / _KNOWN <= px <= max(own * _KNOWN, largest):
            return None
        known = format_size(self.native_size)
        if self.largest_size is not None:
            known += f" to {format_size(self.largest_size)}"
        expect = "forms that fall apart" if px < own else "things that repeat"
        return f"size {format_size(size)}: this model knows {known}; expect {expect}"


def read_defaults(source: Where = None) -> Defaults:
    """The defaults in a model's `rawdiff.json`; without one, those that follow from its configs.

    The native size is then the UNet's `sample_size` times 8, the guidance 7.5 (SDXL's 5; 8.5 where the UNet is told
    it), the ControlNets those that the registry knows for the family. Raises WeightsError, HubError.
    """
    opened = open_source(source)
    config = read_config(opened, "unet")
    width = config.get("cross_attention_dim")
    family = registry.family_of_width(width) if isinstance(width, int) else None
    two = config.get("addition_embed_type") == "text_time"
    told: dict[str, Any] = {"family": family, "two_encoders": two, "zeros": two and _zeros(opened)}
    if _FILE in opened.names():
        return _from_file(opened, told)
    known = (registry.net_for(kind, family) for kind in ("depth", "normal", "canny")) if family else ()
    controls = {net.kind: net.alias for net in known if net is not None}
    guidance = _TOLD if is_told(config) else 5.0 if two else Defaults.guidance  # diffusers' own
    return Defaults(opened.name, _native_size(config, opened), guidance, controls=controls, **told)


def _zeros(source: Source) -> bool:
    """What the folder's index says of empty negative prompts; without a word of it they are zeros, as in diffusers."""
    if _INDEX not in source.names():
        return True
    path = source.path(_INDEX)
    found = read_json(path).get("force_zeros_for_empty_prompt", True)
    if not isinstance(found, bool):
        raise WeightsError(
            f"{path}: force_zeros_for_empty_prompt is {str(found)[:60]!a}, expected true or false"
        )
    return found


def vae_dtype(source: Where, defaults: Defaults, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a model's VAE runs in where its networks run in `dtype`: SDXL's overflows in fp16.

    As diffusers' SDXL pipelines do by the VAE's `force_upcast`, which its others never ask for. Raises WeightsError.
    """
    if dtype != torch.float16 or not defaults.two_encoders:
        return dtype
    return torch.float32 if read_config(source, "vae").get("force_upcast", True) else dtype


def _native_size(config: Mapping[str, Any], source: Source) -> Size:
    sample = config.get("sample_size", 64)  # Stable Diffusion 1.1 to 1.5 say 64
    sides = sample if isinstance(sample, list) else [sample, sample]
    where = f"{source}: sample_size {json.dumps(sample)[:60]} of the UNet's config"
    return _size(sides, FACTOR, where)


def _size(sides: Any, factor: int, where: str) -> Size:
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise WeightsError(f"{where}: expected two whole numbers, height and width")
    try:
        return check_size((sides[0] * factor, sides[1] * factor))
    except SizeError as error:
        raise WeightsError(f"{where}: {error}") from error


def _from_file(source: Source, told: Mapping[str, Any]) -> Defaults:
    path = source.path(_FILE)
    table = read_json(path)
    unknown, missing = set(table) - _KEYS, {"name", "native_size"} - set(table)
    if unknown or missing:
        found = f"unknown key {min(unknown)[:60]!a}" if unknown else f"no {min(missing)}"
        raise WeightsError(f"{path}: {found}; expected {', '.join(sorted(_KEYS))}")
    name, sampler, guidance = table["name"], table.get("sampler"), table.get("guidance", 7.5)
    if not isinstance(name, str) or not name or not (sampler is None or isinstance(sampler, str)):
        raise WeightsError(f"{path}: name and sampler must be text")
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not math.isfinite(guidance):
        raise WeightsError(f"{path}: guidance {str(guidance)[:60]!a}, expected a number")
    folders = table.get("controls", {})
    if not isinstance(folders, dict) or not all(isinstance(folder, str) for folder in folders.values()):
        raise WeightsError(f"{path}: controls must map a kind of hint to a folder of this model")
    inpaint = table.get("inpaint")
    if inpaint is not None and not isinstance(inpaint, str):
        raise WeightsError(f"{path}: inpaint must be a folder of this model, with a UNet for inpainting")
    return Defaults(
        name=name,
        native_size=_size(table["native_size"], 1, f"{path}: native_size"),
        guidance=float(guidance),
        largest_size=_size(table["largest_size"], 1, f"{path}: largest_size")
        if "largest_size" in table
        else None,
        sampler=sampler,
        controls={kind: source.child(folder) for kind, folder in folders.items()},
        inpaint=None
        if inpaint is None or source.merged
        else source.child(inpaint),  # which is none of the sum
        loras=_files(source, table, "loras", str(path)),
        embeddings=_files(source, table, "embeddings", str(path)),
        **told,
    )


def _files(source: Source, table: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    found = table.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise WeightsError(f"{where}: {key} must map names to files of this model")
    for name, file in found.items():
        if not is_name(name) or name == "none":
            raise WeightsError(
                f"{where}: {key}: the name {name[:60]!a}; expected letters, digits, - and _, and not none"
            )
        source.child(file)  # raises for a way out of the model
    return found
