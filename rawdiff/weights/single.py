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
from rawdiff.weights.choose import TOKENIZER_FILES, read_json
from rawdiff.weights.family import (
    NAMES,
    PREDICTIONS,
    TOLD,
    Options,
    channels_of,
    config_beside,
    family_of,
    prediction_of,
    say_first,
)
from rawdiff.weights.layouts import Held, View, find_parts, unexplained
from rawdiff.weights.tensorfile import SafetensorsFile, TensorFile, open_tensors
from rawdiff.weights.vocabulary import MERGES

__all__ = ["FAMILIES", "Options", "SingleFile", "is_file", "open_single", "split_options"]

FAMILIES = Path(__file__).resolve().parent.parent / "assets" / "families"
"""A folder of configs for each family, in diffusers' layout."""

_TOKENIZERS = ("tokenizer", "tokenizer_2")


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
        elif option in PREDICTIONS:
            chosen["prediction"] = option
        elif option in NAMES:
            chosen["family"] = option
        elif option.startswith("config=") and paths.is_folder(paths.expanded(option[7:])):
            chosen["configs"] = paths.expanded(option[7:]).resolve()
        else:
            known = ", ".join(("ema", *PREDICTIONS, *NAMES, "config=FOLDER"))
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
            f"{path}: {say_first(shapes)}; expected a Stable Diffusion checkpoint, a ControlNet or a VAE"
        )
    strange = unexplained(shapes, parts)
    if strange:
        raise WeightsError(
            f"{path}: {len(strange)} tensors belong to none of its parts ({', '.join(parts)}), the first is "
            f"{strange[0][:120]!a}; expected nothing beside them"
        )
    if chosen.ema and not any(key.startswith("model_ema.") for key in shapes):
        raise WeightsError(f"{path}: holds no averaged weights (model_ema.); leave out #ema")
    beside, said = config_beside(path, parts, chosen)
    family, notes = family_of(path, parts, shapes, chosen)
    is_guess = bool(notes) and beside is None
    notes = (*said, *(notes if is_guess else ()))
    configs = chosen.configs if chosen.configs is not None else FAMILIES / family
    channels = channels_of(path, parts, shapes)
    scheduler, told = prediction_of(path, family, channels, parts, shapes, metadata, chosen)
    unet: dict[str, Any] = {}
    if chosen.configs is None:
        unet |= {} if channels in (None, 4) else {"in_channels": channels}
        if family == "sd2" and scheduler.get("prediction_type") == "epsilon":
            unet["sample_size"] = (
                64  # those that predict noise were trained at 512, those that predict v at 768
            )
        told_by = shapes.get(TOLD)
        if told_by is not None and len(told_by) == 2:  # a latent consistency model's
            unet |= {"time_cond_proj_dim": told_by[1]}
            scheduler = {"_class_name": "LCMScheduler", **scheduler}
    return SingleFile(
        path, chosen, parts, configs, scheduler, unet, (*notes, *told), beside=beside, is_guess=is_guess
    )
