"""A ControlNet: a copy of the UNet's reading half that sees a hint (Zhang et al. 2023, arXiv 2302.05543)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rawdiff.errors import WeightsError
from rawdiff.nets import added, blocks
from rawdiff.nets.added import Added
from rawdiff.nets.attention import Text
from rawdiff.nets.halves import add_into, plus, spread
from rawdiff.nets.resnet import Shifts

__all__ = ["Residuals", "add", "check", "embed_hint", "guess_scales", "join", "pools", "repeat", "residuals"]

PARTS = ("config", "controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
"""What only a ControlNet has."""


class Residuals(NamedTuple):
    """What a ControlNet adds to the UNet, of the skips' shapes or [N,C,1,1] from a net that pools."""

    skips: tuple[Tensor, ...]
    middle: Tensor


def check(net: Any, unet: Any) -> None:
    """Raise WeightsError if this is no ControlNetModel, has parts not run here, or does not fit `unet`."""
    if not all(hasattr(net, part) for part in PARTS):
        raise WeightsError(f"controlnet: found a {type(net).__name__}, expected a ControlNetModel")
    blocks.check_config(net, "controlnet")
    blocks.check_blocks(net.down_blocks, blocks.DOWN, "controlnet, down")
    blocks.check_blocks([net.mid_block], [blocks.MIDDLE], "controlnet, middle")
    for k, block in enumerate(net.down_blocks):
        blocks.check_layers(block, f"controlnet, down block {k}")
    blocks.check_layers(net.mid_block, "controlnet, middle")
    order = net.config.controlnet_conditioning_channel_order
    if order not in ("rgb", "bgr"):
        raise WeightsError(f"controlnet: channel order {order!r}, expected 'rgb' or 'bgr'")
    for key in ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"):
        # An inpainting UNet's further channels are its own: a ControlNet takes the latents alone.
        found, expected = net.config[key], unet.config["out_channels" if key == "in_channels" else key]
        if _listed(found) != _listed(expected):
            raise WeightsError(
                f"controlnet: {key} is {found}, but the unet's is {expected}: "
                "use a ControlNet made for this model's family"
            )
    if added.takes(net):
        key = "projection_class_embeddings_input_dim"
        found, expected = net.config[key], unet.config.get(key) if added.takes(unet) else None
        if found != expected:
            raise WeightsError(
                f"controlnet: is told pooled text and sizes, {found} numbers, and the unet {expected}: "
                "use a ControlNet made for this model's family"
            )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def pools(net: Any) -> bool:
    """Whether its residuals are averaged over the picture (a net that passes on a look and no places)."""
    return bool(net.config.global_pool_conditions)


def embed_hint(net: Any, hint: Tensor) -> Tensor:
    """The hint [1 or B,3,8h,8w] in 0..1 as features [1 or B,C,h,w]; the same at every step of a run."""
    if net.config.controlnet_conditioning_channel_order == "bgr":
        hint = hint.flip(1)
    embedding = net.controlnet_cond_embedding
    x = functional.silu(embedding.conv_in(hint))
    for convolution in embedding.blocks:
        x = functional.silu(convolution(x))
    result: Tensor = embedding.conv_out(x)
    return result


def guess_scales(net: Any) -> Tensor | None:
    """Guess mode's weights [n+1] fp32 on the CPU, 0.1 to 1: one for each skip, the last for the middle.

    None for a net that pools: its residuals have no places, and keep their size.
    """
    return None if pools(net) else torch.logspace(-1, 0, len(net.controlnet_down_blocks) + 1)


def residuals(
    net: Any,
    x: Tensor,
    t: Tensor | Shifts,
    context: Text,
    features: Tensor,
    weight: Tensor,
    guess: Tensor | None = None,
    divide: bool = False,
    told: Added | None = None,
) -> Residuals:
    """Run the net on `x` [N,4,h,w] at timesteps `t` ([1] or [N] fp32, or a table's row), with the hint's `features`.

    `x` [B,4,h,w] beside a context of both halves, [2B,T,D], stands for both; so then do the first residuals.
    `weight` is a tensor without dimensions; `guess` holds guess mode's weights ([n+1] fp32) or is None. `told` is what
    an SDXL net is told beside timesteps as they are; a table's row holds it.
    """
    emb = blocks.embed_time(net, t, x, told) if isinstance(t, Tensor) else t
    x = plus(net.conv_in(x), features)
    skips = [x]
    for block in net.down_blocks:
        x, more = blocks.down(block, x, emb, context, divide)
        skips += more
    x = blocks.middle(net.mid_block, x, emb, context, divide)

    outputs = [out(skip) for out, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
    outputs.append(net.controlnet_mid_block(x))
    # A tensor without dimensions leaves the dtype of the other factor as it is.
    scales = [weight] * len(outputs) if guess is None else list((guess * weight).unbind())
    outputs = [output * scale for output, scale in zip(outputs, scales, strict=True)]
    if pools(net):
        outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
    return Residuals(tuple(outputs[:-1]), outputs[-1])


def add(first: Residuals, second: Residuals) -> Residuals:
    """The sum of two nets' residuals; sum many from left to right."""
    skips = tuple(plus(a, b) for a, b in zip(first.skips, second.skips, strict=True))
    return Residuals(skips, plus(first.middle, second.middle))


def join(
    skips: Sequence[Tensor], middle: Tensor, found: Sequence[Residuals]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The UNet's skips and middle with every net's residuals added, in the memory of the skips where that fits."""
    if not found:
        return tuple(skips), middle
    total = found[0]
    for residuals in found[1:]:  # left to right: fp16 sums depend on the order
        total = add(total, residuals)
    *skips, middle = add_into([*skips, middle], [*total.skips, total.middle])
    return tuple(skips), middle


def repeat(found: Residuals, count: int) -> Residuals:
    """The residuals with `count` rows each, those too that stand for both halves of guidance."""
    return Residuals(tuple(spread(skip, count) for skip in found.skips), spread(found.middle, count))
