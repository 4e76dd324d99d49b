"""An empty module from a part's config: names and shapes, no memory, no code from a repository.

Only the classes in `PARTS` are ever built, and only when the config names the class it is asked to be.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rawdiff.errors import WeightsError

__all__ = ["PARTS", "Part", "build_empty", "check_class"]


@dataclass(frozen=True)
class Part:
    """One kind of network: where its files are, and the one class it is an instance of."""

    name: str
    class_name: str
    module: str
    stems: tuple[str, ...]
    """Stem of its safetensors file, then stems that its old pickles have."""

    @property
    def is_text(self) -> bool:
        """Whether it is a text encoder, of transformers and not of diffusers."""
        return self.name.startswith("text_encoder")


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            "unet",
            "UNet2DConditionModel",
            "diffusers.models.unets.unet_2d_condition",
            ("diffusion_pytorch_model",),
        ),
        Part(
            "vae",
            "AutoencoderKL",
            "diffusers.models.autoencoders.autoencoder_kl",
            ("diffusion_pytorch_model",),
        ),
        Part(
            "controlnet",
            "ControlNetModel",
            "diffusers.models.controlnets.controlnet",
            ("diffusion_pytorch_model",),
        ),
        Part(
            "text_encoder",
            "CLIPTextModel",
            "transformers.models.clip.modeling_clip",
            ("model", "pytorch_model"),
        ),
        Part(  # SDXL's second
            "text_encoder_2",
            "CLIPTextModelWithProjection",
            "transformers.models.clip.modeling_clip",
            ("model", "pytorch_model"),
        ),
    )
}

# Left in configs by training scripts (the state of an EMA) and by the libraries; they change no network.
_HARMLESS = {
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
    *("dtype", "torch_dtype"),
}

_TEXT_OPTIONS = (
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "max_position_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "attention_dropout"),
    *("initializer_range", "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id"),
)

_LIMITS = {
    "layers_per_block": 64,
    "transformer_layers_per_block": 256,
    "num_hidden_layers": 256,
}
_MAX_INT = 2**20
_MAX_LIST = 64
_MAX_BLOCKS = 4096
"""SDXL has 3 levels of 2 layers of up to 10 blocks."""


def check_class(part: Part, config: Mapping[str, Any], where: str) -> None:
    """Raise WeightsError unless the config says that it is `part`'s class."""
    if part.is_text:
        named = config.get("architectures")
        found = named[0] if isinstance(named, list) and len(named) == 1 else named
        if named is None and part.name == "text_encoder" and config.get("model_type") == "clip_text_model":
            found = part.class_name
    else:
        found = config.get("_class_name")
    if found != part.class_name:
        hint = next((f"; it is a {p.name}" for p in PARTS.values() if p.class_name == found), "")
        raise WeightsError(f"{where}: class {str(found)[:80]!a}, expected {part.class_name}{hint}")


def build_empty(part: Part, config: Mapping[str, Any], where: str) -> nn.Module:
    """`part`'s module on the meta device, built from its config alone.

    Raises WeightsError for a config of another class, options that are unknown and not switched off, absurd
    numbers, and whatever the class itself refuses.
    """
    check_class(part, config, where)
    _check_numbers(config, where)
    _check_depth(config, where)
    cls = getattr(importlib.import_module(part.module), part.class_name)
    if not part.is_text:
        _check_options(cls, config, where)
    try:
        with torch.device("meta"), _quiet("diffusers", "transformers"):
            if part.is_text:
                return _text_encoder(cls, config)
            module: nn.Module = cls.from_config(dict(config))
            return module
    except Exception as error:  # a config can make a constructor fail in any way
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"{where}: cannot build {part.class_name} ({type(error).__name__}: {reason})"
        ) from error


def _text_encoder(cls: Any, config: Mapping[str, Any]) -> nn.Module:
    # Only what shapes the network: transformers' configs carry dozens of options of other kinds.
    built = cls.config_class(**{name: config[name] for name in _TEXT_OPTIONS if name in config})
    module: nn.Module = cls(built)
    return module


def _check_numbers(config: Mapping[str, Any], where: str) -> None:
    for name, value in config.items():
        limit = _LIMITS.get(name, _MAX_INT)
        values = value if isinstance(value, list) else [value]
        if len(values) > _MAX_LIST:
            raise WeightsError(
                f"{where}: {name[:80]!a} has {len(values)} entries, expected at most {_MAX_LIST}"
            )
        for number in values:
            if isinstance(number, int) and abs(number) > limit:
                raise WeightsError(f"{where}: {name[:80]!a} is {number}, expected at most {limit}")


def _check_depth(config: Mapping[str, Any], where: str) -> None:
    """Numbers that are each within their limit multiply: levels, layers in each, blocks in each of these."""
    levels = max((len(value) for value in config.values() if isinstance(value, list)), default=1)
    total = levels
    deep = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
    for names in (("layers_per_block",), deep):
        total *= max((abs(n) for name in names for n in _numbers(config.get(name))), default=1) or 1
    if total > _MAX_BLOCKS:
        raise WeightsError(f"{where}: up to {total} blocks, expected at most {_MAX_BLOCKS}")


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers in a value, however deep in lists."""
    for one in value if isinstance(value, list) else (value,):
        if isinstance(one, list):
            yield from _numbers(one)
        elif isinstance(one, int):
            yield one


def _check_options(cls: Any, config: Mapping[str, Any], where: str) -> None:
    """A misspelt option would be ignored and its default used: a wrong network with weights that all fit."""
    known = set(inspect.signature(cls.__init__).parameters)
    for name, value in config.items():
        if name in known or name.startswith("_") or name in _HARMLESS or value in (None, False, [], {}):
            continue
        raise WeightsError(
            f"{where}: option {name[:80]!a} is unknown to {cls.__name__} of the installed diffusers; "
            "correct it, or install the version that wrote it"
        )


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep the libraries from logging what is checked here (unknown options, defaults)."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
