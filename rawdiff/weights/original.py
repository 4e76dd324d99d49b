"""The names of the original repositories beside diffusers' names: one table for each network, made from its config.

A table is a list of places: a prefix of diffusers' names, the same prefix in the original layout, and how a tensor
there becomes ours. It is read in both directions.

    unet, controlnet    CompVis/latent-diffusion and lllyasviel/ControlNet: numbered input, middle and output blocks
    vae                 CompVis/latent-diffusion: levels counted from the picture on
    open_clip           OpenCLIP's text tower: queries, keys and values in one matrix, the projection turned round

OpenAI's CLIP stands in single files under transformers' own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["FLAT", "THIRDS", "TURNED", "WHOLE", "Names", "Place", "places", "to_original"]

WHOLE, FLAT, TURNED = "whole", "flat", "turned"
THIRDS = ("first third", "second third", "last third")
"""How a tensor of the file becomes ours: as it is; a kernel of one pixel as a matrix; transposed; a third of the
rows."""


class Place(NamedTuple):
    """A prefix of names, up to a dot or to the end: in diffusers, and in the original layout."""

    ours: str
    original: str
    how: str = WHOLE


class Names:
    """A table of places, looked up by the longest prefix that it has."""

    def __init__(self, table: Iterable[Place]) -> None:
        self.places = tuple(table)
        self._by_ours = {place.ours: place for place in self.places}
        self._by_original: dict[str, list[Place]] = {}
        for place in self.places:
            self._by_original.setdefault(place.original, []).append(place)

    def original(self, name: str) -> tuple[str, str] | None:
        """Where diffusers' `name` stands in the original layout, and how it becomes ours; None for no such place."""
        for prefix, rest in _prefixes(name):
            if prefix in self._by_ours:
                place = self._by_ours[prefix]
                return place.original + rest, place.how
        return None

    def ours(self, key: str) -> list[tuple[str, str]]:
        """Every name that a tensor of the original layout feeds, and how: one, three where it is fused, or none."""
        for prefix, rest in _prefixes(key):
            if prefix in self._by_original:
                return [(place.ours + rest, place.how) for place in self._by_original[prefix]]
        return []


def _prefixes(name: str) -> Iterator[tuple[str, str]]:
    end = len(name)
    while end > 0:
        yield name[:end], name[end:]
        end = name.rfind(".", 0, end)


def places(layout: str, config: Mapping[str, Any]) -> Iterator[Place]:
    """The table of `"unet"`, `"controlnet"`, `"vae"` or `"open_clip"` for a network of this config."""
    return _TABLES[layout](config)


def to_original(names: Names, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors under their original names and in their original shapes: what loading undoes.

    Raises KeyError for a tensor that has no place.
    """
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        place = names.original(name)
        if place is None:
            raise KeyError(name)
        key, how = place
        if how in THIRDS:
            thirds.setdefault(key, {})[how] = tensor
        elif how == FLAT and tensor.ndim == 2:
            found[key] = tensor[:, :, None, None]
        else:
            found[key] = tensor.t().contiguous() if how == TURNED else tensor
    return found | {key: torch.cat([rows[how] for how in THIRDS]) for key, rows in thirds.items()}


_EMBEDDING = (("linear_1", "0"), ("linear_2", "2"))
_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
_VAE_ATTENTION = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)


def _under(ours: str, original: str, pairs: Iterable[tuple[str, str]], how: str = WHOLE) -> Iterator[Place]:
    for one, other in pairs:
        yield Place(f"{ours}.{one}", f"{original}.{other}", how)


def _layers(config: Mapping[str, Any], count: int) -> list[int]:
    """ResNet blocks of each level of an encoder."""
    layers = config["layers_per_block"]
    return list(layers) if isinstance(layers, (list, tuple)) else [layers] * count


def _encoder(config: Mapping[str, Any]) -> Iterator[Place]:
    """What a UNet and a ControlNet have in common: embeddings, the way down, the middle."""
    yield from _under("time_embedding", "time_embed", _EMBEDDING)
    added = (("class_embedding", "class_embed_type"), ("add_embedding", "addition_embed_type"))
    for name, option in added:
        if config.get(option) is not None:
            yield from _under(name, "label_emb.0", _EMBEDDING)
    yield Place("conv_in", "input_blocks.0.0")
    types = config["down_block_types"]
    n = 1
    for i, layers in enumerate(_layers(config, len(types))):
        for j in range(layers):
            yield from _under(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{n}.0", _RESNET)
            if "CrossAttn" in types[i]:
                yield Place(f"down_blocks.{i}.attentions.{j}", f"input_blocks.{n}.1")
            n += 1
        if i < len(types) - 1:
            yield Place(f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{n}.0.op")
            n += 1
    yield from _under("mid_block.resnets.0", "middle_block.0", _RESNET)
    yield Place("mid_block.attentions.0", "middle_block.1")
    yield from _under("mid_block.resnets.1", "middle_block.2", _RESNET)


def _unet(config: Mapping[str, Any]) -> Iterator[Place]:
    yield from _encoder(config)
    types = config["up_block_types"]
    n = 0
    for i, layers in enumerate(reversed(_layers(config, len(types)))):
        has_text = "CrossAttn" in types[i]
        for j in range(layers + 1):
            yield from _under(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n}.0", _RESNET)
            if has_text:
                yield Place(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{n}.1")
            n += 1
        if i < len(types) - 1:  # behind the attention, where there is one
            yield Place(f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{n - 1}.{1 + has_text}.conv")
    yield Place("conv_norm_out", "out.0")
    yield Place("conv_out", "out.2")


def _controlnet(config: Mapping[str, Any]) -> Iterator[Place]:
    yield from _encoder(config)
    hints = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    ours = ["conv_in", *(f"blocks.{k}" for k in range(hints)), "conv_out"]
    for k, name in enumerate(ours):  # between the convolutions stand activations
        yield Place(f"controlnet_cond_embedding.{name}", f"input_hint_block.{2 * k}")
    levels = len(config["down_block_types"])
    for k in range(1 + sum(_layers(config, levels)) + levels - 1):
        yield Place(f"controlnet_down_blocks.{k}", f"zero_convs.{k}.0")
    yield Place("controlnet_mid_block", "middle_block_out.0")


def _vae(config: Mapping[str, Any]) -> Iterator[Place]:
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for side in ("encoder", "decoder"):
        for name, other in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
            yield Place(f"{side}.{name}", f"{side}.{other}")
        for k in range(2):
            yield from _vae_resnet(f"{side}.mid_block.resnets.{k}", f"{side}.mid.block_{k + 1}")
        yield from _under(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", _VAE_ATTENTION, FLAT)
    for i in range(levels):
        for j in range(layers):
            yield from _vae_resnet(f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}")
        level = levels - 1 - i  # the decoder's list is in the order of the encoder's
        for j in range(layers + 1):
            yield from _vae_resnet(f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{level}.block.{j}")
        if i < levels - 1:
            yield Place(f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv")
            yield Place(f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{level}.upsample.conv")
    yield Place("quant_conv", "quant_conv")
    yield Place("post_quant_conv", "post_quant_conv")


def _vae_resnet(ours: str, original: str) -> Sequence[Place]:
    same = ("norm1", "conv1", "norm2", "conv2")
    return [
        *_under(ours, original, zip(same, same, strict=True)),
        Place(f"{ours}.conv_shortcut", f"{original}.nin_shortcut"),
    ]


def _open_clip(config: Mapping[str, Any]) -> Iterator[Place]:
    yield Place("text_model.embeddings.token_embedding", "token_embedding")
    yield Place("text_model.embeddings.position_embedding.weight", "positional_embedding")
    yield Place("text_model.final_layer_norm", "ln_final")
    yield Place("text_projection.weight", "text_projection", TURNED)
    for k in range(config["num_hidden_layers"]):
        ours, original = f"text_model.encoder.layers.{k}", f"transformer.resblocks.{k}"
        yield from _under(ours, original, (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")))
        yield from _under(ours, original, (("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")))
        yield Place(f"{ours}.self_attn.out_proj", f"{original}.attn.out_proj")
        for letter, how in zip("qkv", THIRDS, strict=True):
            for end in ("weight", "bias"):
                yield Place(f"{ours}.self_attn.{letter}_proj.{end}", f"{original}.attn.in_proj_{end}", how)


_TABLES = {"unet": _unet, "controlnet": _controlnet, "vae": _vae, "open_clip": _open_clip}
