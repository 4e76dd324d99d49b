"""The UNet in two halves: `encode` reads the latents, `decode` writes the prediction.

ControlNets touch a UNet only at the skips and the middle that pass between the halves (Zhang et al. 2023,
arXiv 2302.05543), so that they can run beside `encode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rawdiff.errors import UsageError, WeightsError
from rawdiff.nets import blocks
from rawdiff.nets.added import Added
from rawdiff.nets.attention import Text
from rawdiff.nets.resnet import Time

__all__ = ["INPAINT_CHANNELS", "check", "check_channels", "decode", "encode", "forward"]

INPAINT_CHANNELS = 9
"""What an inpainting UNet takes: the latents' 4, the mask, and 4 of the picture's latents outside it."""


def check(unet: Any) -> None:
    """Raise WeightsError if this UNet2DConditionModel has parts that `encode` and `decode` do not run."""
    blocks.check_config(unet, "unet")
    blocks.check_blocks(unet.down_blocks, blocks.DOWN, "unet, down")
    blocks.check_blocks([unet.mid_block], [blocks.MIDDLE], "unet, middle")
    blocks.check_blocks(unet.up_blocks, blocks.UP, "unet, up")
    for name in ("down", "up"):
        for k, block in enumerate(getattr(unet, f"{name}_blocks")):
            blocks.check_layers(block, f"unet, {name} block {k}")
    blocks.check_layers(unet.mid_block, "unet, middle")
    if unet.conv_norm_out is None:
        raise WeightsError("unet: no conv_norm_out, expected a group norm before the last convolution")


def check_channels(channels: int, *, masked: bool) -> None:
    """Raise UsageError for a UNet that is made for inpainting, by its channels, in a run without a mask."""
    if channels == INPAINT_CHANNELS and not masked:
        raise UsageError(
            f"this model's UNet takes {channels} channels, for inpainting alone: give an image and a mask, or take "
            "another model"
        )


def encode(
    unet: Any, x: Tensor, emb: Time, context: Text, divide: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Read `x` [N,4,h,w]: the skips, from the largest down, and the middle block's result.

    `x` [B,4,h,w] beside a context of both halves, [2B,T,D], stands for both, and so do the skips before the
    first attention to the text (or before an `emb` of both halves); the others and the middle are [2B,...].
    """
    x = unet.conv_in(x)
    skips = [x]
    for block in unet.down_blocks:
        x, more = blocks.down(block, x, emb, context, divide)
        skips += more
    return skips, blocks.middle(unet.mid_block, x, emb, context, divide)


def decode(
    unet: Any, skips: Sequence[Tensor], middle: Tensor, emb: Time, context: Text, divide: bool = False
) -> Tensor:
    """Write the prediction [N,4,h,w] from the skips and the middle [N,...], residuals already added."""
    x, left = middle, list(skips)
    for block in unet.up_blocks:
        own = left[-len(block.resnets) :]
        del left[-len(block.resnets) :]
        # Upsample to the size of the skip that comes next: twice as large, or one less on an odd side.
        x = blocks.up(block, x, own, emb, context, left[-1].shape[2:] if left else (), divide)
    out: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return out


def forward(
    unet: Any, x: Tensor, t: Tensor, context: Tensor, told: Added | None = None, waves: Tensor | None = None
) -> Tensor:
    """The whole UNet alone: `x` [N,4,h,w], `t` [1] or [N] fp32, `context` [N,T,D] -> [N,4,h,w].

    `waves` [N,P] are the guidance's, for a UNet that is told it.
    """
    emb = blocks.embed_time(unet, t, x, told, waves)
    skips, middle = encode(unet, x, emb, context)
    return decode(unet, skips, middle, emb, context)
