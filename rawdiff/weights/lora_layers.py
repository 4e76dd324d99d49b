"""The layers of a UNet and a text encoder, by every name that LoRA files have for them.

The names are made from the networks and looked up as they stand; none is taken apart, so an underscore is never
guessed to be a dot. A layer `down_blocks.0.attentions.0 ... attn1.to_out.0` of the UNet is known as

    unet.<layer>, <layer>, and with base_model.model. before the layer    diffusers, peft
    unet.<... attn1.processor.to_out>, <...>                              older diffusers
    lora_unet_<layer with _ for .>                                        kohya
    lora_unet_<input_blocks_1_1 ...>                                      kohya, by the original UNet's blocks

and a layer of the text encoder likewise by `text_encoder.`, `lora_te_` and `lora_te1_`, with `text_model.` and
without (transformers moved the tower in and out of a submodule of this name, see `renames`); of SDXL's second by
`text_encoder_2.` and `lora_te2_` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rawdiff.errors import WeightsError
from rawdiff.weights.fill import listed
from rawdiff.weights.lora import Factors, Lora
from rawdiff.weights.original import Names, places

__all__ = ["Layer", "Layers", "original_names"]

_FAMILIES = {768: "SD1", 1024: "SD2", 1280: "SDXL", 2048: "SDXL"}
"""Widths of the text that a UNet reads, and of text encoders (SDXL's second has 1280; its first is SD1's)."""

_TEXT_READERS = re.compile(r"attn2[._](processor\.)?to_[kv]$")
_TEXT_LAYERS = re.compile(r"self_attn[._]([qkv]_proj|to_[qkv])$")


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer or convolution of `part` ("unet", "text_encoder", "text_encoder_2"), by its name there."""

    part: str
    name: str
    module: Any

    @property
    def weight(self) -> Tensor:
        """[out,in] or [out,in,kh,kw], as it is now."""
        weight: Tensor = self.module.weight
        return weight

    def __str__(self) -> str:
        return f"{self.part}.{self.name}"


class Layers:
    """All layers of a model that a LoRA can change."""

    def __init__(self, unet: Any, text_encoder: Any, text_encoder_2: Any = None) -> None:
        own, text = list(_layers("unet", unet)), list(_layers("text_encoder", text_encoder))
        second = [] if text_encoder_2 is None else list(_layers("text_encoder_2", text_encoder_2))
        self.every = (*own, *text, *second)
        self._known: dict[str, list[Layer]] = {}
        original = original_names(unet, [layer.name for layer in own])
        for layer in own:
            self._add(layer, _dotted(layer.part, _unet_spellings(layer.name)))
            both = [layer.name, *([original[layer.name]] if layer.name in original else [])]
            self._add(layer, _underscored(["lora_unet"], both))
        for layer in text:
            spellings = list(_text_spellings(layer.name))
            self._add(layer, _dotted(layer.part, spellings))
            self._add(layer, _underscored(["lora_te", "lora_te1"], spellings))
        for layer in second:
            spellings = list(_text_spellings(layer.name))
            self._add(layer, _dotted(layer.part, spellings, alone=False))
            self._add(layer, _underscored(["lora_te2"], spellings))
        read, encoders = _widths(own, _TEXT_READERS), _widths([*text, *second], _TEXT_LAYERS)
        self._widths = (
            (_TEXT_READERS, "takes text of width", read, "this model's text has"),
            (_TEXT_LAYERS, "is for a text encoder of width", encoders, "this model's has"),
        )

    def _add(self, layer: Layer, names: Iterable[str]) -> None:
        for name in dict.fromkeys(names):
            self._known.setdefault(name, []).append(layer)

    def named(self, name: str) -> Sequence[Layer]:
        """The layers that a file may call so: one, or none; two where underscores leave it open."""
        return self._known.get(name, ())

    def match(self, lora: Lora) -> dict[Layer, Factors]:
        """Which factors are for which layer. Raises WeightsError where a LoRA does not fit this model whole."""
        self._check_family(lora)
        found = {factors: self.named(factors.name) for factors in lora.factors}
        unknown = [factors.keys["down"] for factors, layers in found.items() if not layers]
        if unknown:
            raise WeightsError(f"{lora.path}: {_say_unknown(unknown, len(found))}")
        matched: dict[Layer, Factors] = {}
        for factors, layers in found.items():
            layer, key = layers[0], factors.keys["down"]
            if len(layers) > 1:
                raise WeightsError(
                    f"{lora.path}: {key!a} could be for {layer} or for {layers[1]}; expected a name that tells"
                )
            if layer in matched:
                raise WeightsError(
                    f"{lora.path}: {matched[layer].keys['down']!a} and {key!a} are both for {layer}; "
                    "expected one of them"
                )
            _check_fit(lora, factors, layer)
            matched[layer] = factors
        return matched

    def _check_family(self, lora: Lora) -> None:
        """Widths tell families apart before names and shapes do."""
        for factors in lora.factors:
            found, key = factors.down.shape[1], factors.keys["down"]
            for pattern, takes, known, ours in self._widths:
                if known and found not in known and pattern.search(factors.name):
                    family = _FAMILIES.get(found, "another model")
                    shown = " or ".join(f"{n} ({_FAMILIES[n]})" if n in _FAMILIES else str(n) for n in known)
                    raise WeightsError(
                        f"{lora.path}: made for {family}: {key!a} {takes} {found}, {ours} {shown}"
                    )


def original_names(unet: Any, layers: Sequence[str]) -> dict[str, str]:
    """The names that the original (CompVis) UNet has for diffusers' `layers`, those that it has."""
    names = Names(places("unet", unet.config))
    found = {layer: names.original(layer) for layer in layers}
    return {layer: place[0] for layer, place in found.items() if place is not None}


def _layers(part: str, network: nn.Module) -> Iterator[Layer]:
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield Layer(part, name, module)


def _unet_spellings(name: str) -> Iterator[str]:
    yield name
    if re.search(r"\.attn[12]\.to_", name):
        yield name.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out")


def _text_spellings(name: str) -> Iterator[str]:
    bare = name.removeprefix("text_model.")
    for spelled in (bare, re.sub(r"\.self_attn\.(q|k|v|out)_proj$", r".self_attn.to_\1", bare)):
        yield f"text_model.{spelled}"
        yield spelled


def _dotted(part: str, spellings: Iterable[str], *, alone: bool = True) -> Iterator[str]:
    """Every spelling behind the part's name, and `alone` where no other part is meant by it."""
    named = (f"{part}.", f"{part}.base_model.model.", f"base_model.model.{part}.")
    for name in spellings:
        for prefix in ("", "base_model.model.", *named) if alone else named:
            yield prefix + name


def _underscored(prefixes: Iterable[str], spellings: Sequence[str]) -> Iterator[str]:
    for prefix in prefixes:
        for name in spellings:
            yield f"{prefix}_{name.replace('.', '_')}"


def _widths(layers: Iterable[Layer], pattern: re.Pattern[str]) -> list[int]:
    return sorted({layer.weight.shape[1] for layer in layers if pattern.search(layer.name)})


def _say_unknown(keys: Sequence[str], count: int) -> str:
    two = any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in keys)
    hint = "; it was made for a model with two text encoders (SDXL)" if two else ""
    if len(keys) == count:
        return f"fits nothing in this model: none of its {count} layers is there ({listed(keys)}){hint}"
    return (
        f"{len(keys)} of its {count} layers are not in this model ({listed(keys)}){hint}; "
        "expected layers of its UNet and text encoder"
    )


def _check_fit(lora: Lora, factors: Factors, layer: Layer) -> None:
    """The product has the shape of the layer's weight; a 1x1 kernel is as good as none."""
    weight, rank = tuple(layer.weight.shape), factors.rank
    if getattr(layer.module, "groups", 1) != 1:
        raise WeightsError(
            f"{lora.path}: {factors.keys['down']!a} is for {layer}, a grouped convolution: not supported"
        )
    if factors.mid is None:
        expected = {"down": (rank, *weight[1:]), "up": (weight[0], rank)}
    else:
        expected = {"down": (rank, weight[1]), "up": (weight[0], rank), "mid": (rank, rank, *weight[2:])}
    for role, shape in expected.items():
        tensor: Tensor = getattr(factors, role)
        found = tuple(tensor.shape)
        if _plain(found) != _plain(shape):
            raise WeightsError(
                f"{lora.path}: {factors.keys[role]!a} has shape {found}, expected {shape} for {layer}"
            )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape
