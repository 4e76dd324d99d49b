"""The flow through one block of a UNet or ControlNet, over diffusers' ResNets, attentions and samplers.

Shapes: `x` [N,C,h,w], `emb` [N,E] (the time embedding), `context` [N,T,D] (the text), all of one dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import WeightsError

__all__ = ["check_blocks", "check_config", "down", "embed_time", "middle", "up"]

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")
MIDDLE = "UNetMidBlock2DCrossAttn"

PLAIN: Mapping[str, object] = {
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_class_embeds": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
}
"""Config entries whose other values need inputs or layers that the forwards here do not know."""


def check_config(net: Any, what: str) -> None:
    """Raise WeightsError if `net`'s config asks for what these forwards would silently leave out."""
    for key, expected in PLAIN.items():
        found = net.config.get(key, expected)
        if found != expected:
            raise WeightsError(
                f"{what}: config has {key}={found!r}, expected {expected!r}: not supported yet"
            )


def check_blocks(blocks: Sequence[Any], known: Sequence[str], what: str) -> None:
    """Raise WeightsError if one of `blocks` is of a class whose flow is not written here."""
    for k, block in enumerate(blocks):
        name = type(block).__name__
        if name not in known:
            raise WeightsError(f"{what}: block {k} is a {name}, expected {' or '.join(known)}")


def embed_time(net: Any, t: Tensor, x: Tensor) -> Tensor:
    """The time embedding [N,E] for timesteps `t` ([1] or [N], fp32, may be fractional), in `x`'s dtype.

    Sinusoids (always fp32) and two linear layers: Ho et al. 2020, arXiv 2006.11239.
    """
    waves = net.time_proj(t.expand(x.shape[0])).to(x.dtype)  # [N,C]
    emb: Tensor = net.time_embedding(waves)
    return emb


def _attend(attention: Any, x: Tensor, context: Tensor) -> Tensor:
    result: Tensor = attention(x, encoder_hidden_states=context, return_dict=False)[0]
    return result


def down(block: Any, x: Tensor, emb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One block of the reading half: the new `x`, and what it leaves for the writing half (its skips)."""
    attentions = block.attentions if type(block).__name__ == DOWN[0] else [None] * len(block.resnets)
    skips = []
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        x = resnet(x, emb)
        if attention is not None:
            x = _attend(attention, x, context)
        skips.append(x)
    for downsampler in block.downsamplers or ():
        x = downsampler(x)
        skips.append(x)
    return x, skips


def middle(block: Any, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    """The block between the halves: a ResNet, then attention and ResNet in turn."""
    x = block.resnets[0](x, emb)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = resnet(_attend(attention, x, context), emb)
    return x


def up(
    block: Any, x: Tensor, skips: Sequence[Tensor], emb: Tensor, context: Tensor, size: Sequence[int]
) -> Tensor:
    """One block of the writing half; `skips` are its own, last in first out; `size` is the upsampled one."""
    attentions = block.attentions if type(block).__name__ == UP[0] else [None] * len(block.resnets)
    for resnet, attention, skip in zip(block.resnets, attentions, reversed(skips), strict=True):
        x = resnet(torch.cat([x, skip], dim=1), emb)
        if attention is not None:
            x = _attend(attention, x, context)
    for upsampler in block.upsamplers or ():
        x = upsampler(x, list(size))
    return x
