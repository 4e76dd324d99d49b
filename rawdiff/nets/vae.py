"""The autoencoder: latents to a picture, a picture to latents (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rawdiff.errors import WeightsError
from rawdiff.nets import blocks

__all__ = ["check", "decode", "encode"]


def check(vae: Any) -> None:
    """Raise WeightsError if this AutoencoderKL is not one that Stable Diffusion's latents fit."""
    if vae.config.latent_channels != 4:
        raise WeightsError(f"vae: {vae.config.latent_channels} latent channels, expected 4")
    if vae.config.get("shift_factor") is not None:
        raise WeightsError(f"vae: config has shift_factor={vae.config.shift_factor}, expected none")
    for key in ("latents_mean", "latents_std"):  # Playground v2.5, of SDXL's form but for these
        if vae.config.get(key) is not None:
            raise WeightsError(f"vae: config has {key}={vae.config[key]}, expected none: not supported yet")
    blocks.check_blocks(vae.decoder.up_blocks, ["UpDecoderBlock2D"], "vae, decoder")
    blocks.check_blocks([vae.decoder.mid_block], ["UNetMidBlock2D"], "vae, decoder's middle")
    blocks.check_blocks(vae.encoder.down_blocks, ["DownEncoderBlock2D"], "vae, encoder")
    blocks.check_blocks([vae.encoder.mid_block], ["UNetMidBlock2D"], "vae, encoder's middle")


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The picture [B,3,8h,8w], about -1..1 and not clamped, of the loop's `latents` [B,4,h,w]."""
    x = latents / vae.config.scaling_factor
    if vae.post_quant_conv is not None:
        x = vae.post_quant_conv(x)
    decoder = vae.decoder
    x = decoder.conv_in(x)
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x, None)
        for upsampler in block.upsamplers or ():
            x = upsampler(x)
    picture: Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
    return picture


def encode(vae: Any, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread [B,4,h,w] of the latents of a `picture` [B,3,8h,8w] in -1..1, at the loop's scale."""
    encoder = vae.encoder
    x = encoder.conv_in(picture)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = resnet(x, None)
        for downsampler in block.downsamplers or ():
            x = downsampler(x)
    x = _middle(encoder.mid_block, x)
    x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))
    if vae.quant_conv is not None:
        x = vae.quant_conv(x)
    mean, log_variance = x.chunk(2, dim=1)
    scale = vae.config.scaling_factor
    return scale * mean, scale * (0.5 * log_variance.clamp(-30.0, 20.0)).exp()


def _middle(block: Any, x: Tensor) -> Tensor:
    x = block.resnets[0](x, None)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = attention(x, temb=None)
        x = resnet(x, None)
    return x
