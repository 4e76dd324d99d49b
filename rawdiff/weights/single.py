"""A checkpoint in one file: what it holds, of which family it is, and the configs that it does not carry.

The family is told by the tensors, the configs are those of the package. What no tensor tells is said, and can be
chosen behind the file's name, each choice after a #:

    model.safetensors#ema                  the averaged weights of the UNet (else the plain ones, as everyone does)
    model.safetensors#epsilon              what the UNet predicts; or #v_prediction
    vae.safetensors#sdxl                   the family, for a VAE by itself; or #sd1, #sd2
    model.safetensors#config=FOLDER        configs, tokenizer and scheduler from a folder in diffusers' layout

A VAE by itself is of the config.json that lies beside it, if that is a VAE's and nobody chose another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rawdiff import paths
from rawdiff.errors import UsageError, WeightsError
from rawdiff.weights import registry
from rawdiff.weights.build import PARTS, check_class
from rawdiff.weights.choose import TOKENIZER_FILES, read_json
from rawdiff.weights.layouts import Held, View, find_parts, unexplained
from rawdiff.weights.tensorfile import SafetensorsFile, TensorFile, open_tensors
from rawdiff.weights.vocabulary import MERGES

__all__ = ["FAMILIES", "Options", "SingleFile", "is_file", "open_single", "split_options"]

FAMILIES = Path(__file__).resolve().parent.parent / "assets" / "families"
"""A folder of configs for each family, in diffusers' layout."""

_NAMES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}
_PREDICTIONS = ("epsilon", "v_prediction")
_CHANNELS = (4, 8, 9)
"""What a UNet may take: latents; with a picture (InstructPix2Pix); with a picture and its mask (inpainting)."""

_TOLD = "time_embedding.cond_proj.weight"
"""The layer by which a UNet in diffusers' names is told its guidance."""

_TOKENIZERS = ("tokenizer", "tokenizer_2")
_MODELSPEC = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


@dataclass(frozen=True)
class Options:
    """What was chosen behind a file's name."""

    ema: bool = False
    prediction: str | None = None
    family: str | None = None
    configs: Path | None = None


def split_options(text: str) -> tuple[str, Options | None]:
    """A file's name and the options behind it; None where `text` names no file with options.

    Raises UsageError for an option that is unknown.
    """
    name, given = text, ""
    while not paths.is_there(paths.expanded(name)) and "#" in name:  # a # may be part of the name
        name, _, last = name.rpartition("#")
        given = f"#{last}{given}"
    if not given or not paths.is_file(paths.expanded(name)):
        return text, None
    chosen: dict[str, Any] = {}
    for option in given[1:].split("#"):
        if option == "ema":
            chosen["ema"] = True
        elif option in _PREDICTIONS:
            chosen["prediction"] = option
        elif option in _NAMES:
            chosen["family"] = option
        elif option.startswith("config=") and paths.is_folder(paths.expanded(option[7:])):
            chosen["configs"] = paths.expanded(option[7:]).resolve()
        else:
            known = ", ".join(("ema", *_PREDICTIONS, *_NAMES, "config=FOLDER"))
            raise UsageError(f"{name}: unknown option #{option[:80]}; expected one of {known}")
    return name, Options(**chosen)


def is_file(path: Path) -> bool:
    """Whether this names a file that is there, options or not."""
    return paths.is_file(path) or split_options(str(path))[1] is not None


@dataclass(frozen=True)
class SingleFile:
    """A file whose parts are known; each is opened when it is loaded."""

    path: Path
    options: Options
    parts: Mapping[str, Held]
    configs: Path
    """The folder with a config for each part."""
    scheduler: Mapping[str, Any]
    """What differs from the scheduler's config there."""
    unet: Mapping[str, Any]
    """What differs from the UNet's."""
    notes: tuple[str, ...] = ()
    """What a person should know: what was assumed."""
    beside: Path | None = None
    """The config of a VAE by itself, where it lies beside the file."""
    is_guess: bool = False
    """Whether the family was assumed, since no tensor tells it."""

    def holds(self, part: str) -> bool:
        """Whether the file holds a part; a tokenizer and a scheduler go with what needs them."""
        needs = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "scheduler": "unet"}
        return needs.get(part, part) in self.parts

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part, for this file."""
        found = read_json(self.config_path(part))
        return {**found, **self.unet} if part == "unet" else found

    def config_path(self, part: str) -> Path:
        """The file that a part's config is from."""
        if part == "vae" and self.beside is not None:
            return self.beside
        names = {"scheduler": "scheduler_config.json"} | dict.fromkeys(_TOKENIZERS, "tokenizer_config.json")
        return self.configs / part / names.get(part, "config.json")

    def files(self, part: str) -> dict[str, Path]:
        """What loading a part reads, by the names that recipes have for it."""
        config = self.config_path(part)
        is_beside = part == "vae" and self.beside is not None
        read = {config.name if is_beside else f"{self.configs.name}/{part}/{config.name}": config}
        if part in self.parts:
            chosen = "#ema" if self.options.ema and part == "unet" else ""
            read[self.path.name + chosen] = self.path
        elif part in _TOKENIZERS:
            own = [name for name in TOKENIZER_FILES if (config.parent / name).is_file()]
            read.update({f"{self.configs.name}/{part}/{name}": config.parent / name for name in own})
            if own == [config.name]:
                read[MERGES.name] = MERGES
        return read

    def open(self, part: str, config: Mapping[str, Any]) -> TensorFile:
        """The file as if it held this part alone, in the names of a module of this (whole) config."""
        file = open_tensors(self.path)
        try:
            return View(file, self.parts[part], config, ema=self.options.ema and part == "unet")
        except BaseException:
            file.close()
            raise

    def __str__(self) -> str:
        return ", ".join(self.parts)


def open_single(path: Path, options: Options | None = None) -> SingleFile:
    """Look into a file: its parts, family and configs. Raises WeightsError for what holds nothing known, or more."""
    chosen = Options() if options is None else options
    file = open_tensors(path)
    try:
        shapes = file.shapes()
        metadata = file.metadata if isinstance(file, SafetensorsFile) else {}
    finally:
        file.close()
    parts = find_parts(shapes)
    if not parts:
        raise WeightsError(
            f"{path}: {_say_first(shapes)}; expected a Stable Diffusion checkpoint, a ControlNet or a VAE"
        )
    strange = unexplained(shapes, parts)
    if strange:
        raise WeightsError(
            f"{path}: {len(strange)} tensors belong to none of its parts ({', '.join(parts)}), the first is "
            f"{strange[0][:120]!a}; expected nothing beside them"
        )
    if chosen.ema and not any(key.startswith("model_ema.") for key in shapes):
        raise WeightsError(f"{path}: holds no averaged weights (model_ema.); leave out #ema")
    beside, said = _config_beside(path, parts, chosen)
    family, notes = _family(path, parts, shapes, chosen)
    is_guess = bool(notes) and beside is None
    notes = (*said, *(notes if is_guess else ()))
    configs = chosen.configs if chosen.configs is not None else FAMILIES / family
    channels = _channels(path, parts, shapes)
    scheduler, told = _prediction(path, family, channels, parts, shapes, metadata, chosen)
    unet: dict[str, Any] = {}
    if chosen.configs is None:
        unet |= {} if channels in (None, 4) else {"in_channels": channels}
        if family == "sd2" and scheduler.get("prediction_type") == "epsilon":
            unet["sample_size"] = (
                64  # those that predict noise were trained at 512, those that predict v at 768
            )
        told_by = shapes.get(_TOLD)
        if told_by is not None and len(told_by) == 2:  # a latent consistency model's
            unet |= {"time_cond_proj_dim": told_by[1]}
            scheduler = {"_class_name": "LCMScheduler", **scheduler}
    return SingleFile(
        path, chosen, parts, configs, scheduler, unet, (*notes, *told), beside=beside, is_guess=is_guess
    )


def _config_beside(
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


def _say_first(shapes: Mapping[str, Any]) -> str:
    if any(".lora_" in key or ".lora." in key for key in shapes):
        return "is a LoRA"
    first = next(iter(shapes), None)
    return (
        "holds no tensors"
        if first is None
        else f"holds nothing known here (its first tensor is {first[:120]!a})"
    )


def _family(
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
            f"{path}: is of {_NAMES[told]}, not of {_NAMES[chosen.family]}: leave out #{chosen.family}"
        )
    if told is not None or chosen.family is not None:
        return told if told is not None else str(chosen.family), ()
    if chosen.configs is not None:
        return "sd1", ()
    note = (
        f"{path}: a VAE by itself, taken for SD1's or SD2's (latents scaled by 0.18215); for SDXL's add #sdxl"
    )
    return "sd1", (note,)


def _channels(path: Path, parts: Mapping[str, Held], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
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


def _prediction(
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
        f"{path}: {_NAMES['sd2']}, taken to predict v at 768x768, as 2.0 and 2.1 do; its tensors do not tell: "
        "for a base model (512x512) add #epsilon to its name"
    )
    return {"prediction_type": "v_prediction", **zero_snr}, (note,)
