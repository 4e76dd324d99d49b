"""What a checkpoint's tensors tell: of which family it is, what its UNet takes and predicts; and what is assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rawdiff import paths
from rawdiff.errors import WeightsError
from rawdiff.weights import registry
from rawdiff.weights.build import PARTS, check_class
from rawdiff.weights.choose import read_json
from rawdiff.weights.layouts import Held

__all__ = [
    "NAMES",
    "PREDICTIONS",
    "TOLD",
    "Options",
    "channels_of",
    "config_beside",
    "family_of",
    "prediction_of",
    "say_first",
]

NAMES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}
PREDICTIONS = ("epsilon", "v_prediction")
_CHANNELS = (4, 8, 9)
"""What a UNet may take: latents; with a picture (InstructPix2Pix); with a picture and its mask (inpainting)."""

TOLD = "time_embedding.cond_proj.weight"
"""The layer by which a UNet in diffusers' names is told its guidance."""

_MODELSPEC = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


@dataclass(frozen=True)
class Options:
    """What was chosen behind a file's name."""

    ema: bool = False
    prediction: str | None = None
    family: str | None = None
    configs: Path | None = None


def config_beside(
    path: Path, parts: Mapping[str, Held], chosen: Options
) -> tuple[Path | None, tuple[str, ...]]:
    """The config.json that lies beside a VAE by itself, if it is used, and what to say of it."""
    found = path.parent / "config.json"
    if parts.keys() != {"vae"} or chosen.configs is not None or not paths.is_there(found):
        return None, ()
    try:
        config = read_json(found)
        check_class(PARTS["vae"], config, str(found))
    except WeightsError as error:
        return None, (
            f"{path}: the config.json beside it is not used: {str(error).removeprefix(f'{found}: ')}",
        )
    if chosen.family is not None:
        return None, (f"{path}: the config.json beside it is not used: #{chosen.family} was asked for",)
    scale = config.get("scaling_factor", 0.18215)
    return found, (
        f"{path}: with the config.json beside it (latents scaled by {str(scale)[:20]}); #sd1, #sd2 or #sdxl is without",
    )


def say_first(shapes: Mapping[str, Any]) -> str:
    """What a file is in which nothing known was found."""
    if any(".lora_" in key or ".lora." in key for key in shapes):
        return "is a LoRA"
    first = next(iter(shapes), None)
    return (
        "holds no tensors"
        if first is None
        else f"holds nothing known here (its first tensor is {first[:120]!a})"
    )


def family_of(
    path: Path, parts: Mapping[str, Held], shapes: Mapping[str, tuple[int, ...]], chosen: Options
) -> tuple[str, tuple[str, ...]]:
    """The family, and what had to be assumed for it."""
    found: dict[str, str] = {}
    for part, held in parts.items():
        if part == "vae":
            continue
        is_net = part in ("unet", "controlnet")
        ending = "attn2.to_k.weight" if is_net else "token_embedding.weight"
        width = next(
            (s[-1] for k, s in shapes.items() if k.startswith(held.prefix) and k.endswith(ending)), None
        )
        family = None if width is None else registry.family_of_width(width)
        if is_net and family is None and chosen.configs is None:
            known = ", ".join(f"{w} ({name})" for w, name in ((768, "SD1"), (1024, "SD2"), (2048, "SDXL")))
            raise WeightsError(
                f"{path}: its {part} reads text of width {width}, expected {known}; or name #config=FOLDER"
            )
        if family is not None:
            found[part] = family
    if "text_encoder_2" in parts:
        found["text_encoder"] = "sdxl"  # whose first encoder is SD1's
    told = next((found[part] for part in ("unet", "controlnet", "text_encoder") if part in found), None)
    if chosen.family is not None and told is not None and chosen.family != told:
        raise WeightsError(
            f"{path}: is of {NAMES[told]}, not of {NAMES[chosen.family]}: leave out #{chosen.family}"
        )
    if told is not None or chosen.family is not None:
        return told if told is not None else str(chosen.family), ()
    if chosen.configs is not None:
        return "sd1", ()
    note = (
        f"{path}: a VAE by itself, taken for SD1's or SD2's (latents scaled by 0.18215); for SDXL's add #sdxl"
    )
    return "sd1", (note,)


def channels_of(path: Path, parts: Mapping[str, Held], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many channels the UNet takes, None in a file without one; raises WeightsError for another number."""
    if "unet" not in parts:
        return None
    held = parts["unet"]
    shape = shapes.get(
        held.prefix + ("conv_in.weight" if held.layout == "plain" else "input_blocks.0.0.weight"), ()
    )
    if len(shape) != 4 or shape[1] not in _CHANNELS:
        raise WeightsError(
            f"{path}: its UNet's first convolution has shape {shape}, expected 4, 8 or 9 channels"
        )
    return shape[1]


def prediction_of(
    path: Path,
    family: str,
    channels: int | None,
    parts: Mapping[str, Held],
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str],
    chosen: Options,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the scheduler must know: what the UNet predicts, which its own tensors do not tell."""
    if "unet" not in parts:
        return {}, ()
    zero_snr: dict[str, Any] = {"rescale_betas_zero_snr": True} if "ztsnr" in shapes else {}
    if chosen.prediction is not None:
        return {"prediction_type": chosen.prediction, **zero_snr}, ()
    told = (
        "v_prediction"
        if "v_pred" in shapes
        else _MODELSPEC.get(metadata.get("modelspec.prediction_type", ""))
    )
    if told is not None:
        return {"prediction_type": told, **zero_snr}, ()
    if family != "sd2" or chosen.configs is not None:
        return zero_snr, ()
    if channels == 9:
        return {"prediction_type": "epsilon", **zero_snr}, ()
    note = (
        f"{path}: {NAMES['sd2']}, taken to predict v at 768x768, as 2.0 and 2.1 do; its tensors do not tell: "
        "for a base model (512x512) add #epsilon to its name"
    )
    return {"prediction_type": "v_prediction", **zero_snr}, (note,)
