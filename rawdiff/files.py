"""What of a model's files a run computes with, by part: known before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rawdiff import weights
from rawdiff.errors import WeightsError
from rawdiff.nets.unet import INPAINT_CHANNELS, check_channels

__all__ = ["check_inpaint", "part_hashes", "parts_of", "unet_config"]

PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
"""What every model has."""
SECOND = ("tokenizer_2", "text_encoder_2")
"""What SDXL has beside."""


def parts_of(defaults: weights.Defaults) -> tuple[str, ...]:
    """The parts of a model."""
    return PARTS + SECOND if defaults.two_encoders else PARTS


def unet_config(source: weights.Source, defaults: weights.Defaults, *, masked: bool) -> dict[str, Any]:
    """The config of the UNet that runs with a mask, or without one; UsageError where no UNet of the model can."""
    own = weights.read_config(source, "unet")
    if masked and defaults.inpaint is not None:
        config = weights.read_config(defaults.inpaint, "unet")
        check_inpaint(config, own)
        return config
    check_channels(own.get("in_channels", 4), masked=masked)
    return own


def part_hashes(source: weights.Source, defaults: weights.Defaults, *, masked: bool) -> dict[str, str]:
    """SHA-256 of the files of every part that a run with a mask, or without one, computes with, by path."""
    parts = parts_of(defaults)
    if not masked or defaults.inpaint is None:
        return weights.hashes(source, *parts)
    others = weights.hashes(source, *(part for part in parts if part != "unet"))
    return others | weights.hashes(defaults.inpaint, "unet")


def check_inpaint(config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise WeightsError unless this is the config of an inpainting UNet that is told the same things."""
    same = ("cross_attention_dim", "addition_embed_type", "time_cond_proj_dim")
    for name, expected in (("in_channels", INPAINT_CHANNELS), *((key, own.get(key)) for key in same)):
        if config.get(name) != expected:
            raise WeightsError(
                f"the model's inpainting unet: {name} is {config.get(name)}, expected {expected}"
            )
