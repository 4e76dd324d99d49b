"""What is compared: networks, texts, hints and first latents, the same for every arm."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rawdiff.plan import Window

__all__ = ["Subject", "from_model", "random_subject", "scheduler"]

GUIDANCE = 7.5

SIZES: dict[str, dict[str, Any]] = {
    "sd15": {
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "hint": {},
        "vae": (128, 256, 512, 512),
    },
    "tiny": {
        "unet": {
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        "hint": {"conditioning_embedding_out_channels": (8, 8, 16, 16)},
        "vae": (32, 32, 32, 32),
    },
}
"""Configs of networks with seeded random weights: Stable Diffusion 1.5 at full size, and one to try the script with."""


@dataclass(frozen=True, eq=False)
class Subject:
    """Networks and what they are given, on one device in one dtype."""

    unet: Any
    nets: tuple[Any, ...]
    vae: Any
    cond: Tensor
    """[1,77,D]"""
    uncond: Tensor
    hints: tuple[Tensor, ...]
    """[1,3,H,W] fp32 in 0..1"""
    latents: Tensor
    """[1,4,h,w] fp32, unit noise"""
    windows: tuple[Window, ...]
    steps: int

    @property
    def device(self) -> torch.device:
        """Where it is."""
        device: torch.device = self.unet.conv_in.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks."""
        dtype: torch.dtype = self.unet.conv_in.weight.dtype
        return dtype

    def copied(self, dtype: torch.dtype | None = None) -> Subject:
        """Networks of its own, for an arm that changes their memory format or compiles them."""
        kind = self.dtype if dtype is None else dtype
        own = [copy.deepcopy(net).to(kind) for net in (self.unet, self.vae, *self.nets)]
        return replace(
            self,
            unet=own[0],
            vae=own[1],
            nets=tuple(own[2:]),
            cond=self.cond.to(kind),
            uncond=self.uncond.to(kind),
        )


def scheduler() -> Any:
    """DDIM as Stable Diffusion 1.5 has it: as many evaluations as steps."""
    from diffusers import DDIMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _randomised(module: Any, seed: int) -> Any:
    """Weights that keep the size of what passes through; a net of zeros would let a comparison pass without it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.copy_(
                    0.7 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
                )
            else:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


def random_subject(
    name: str,
    windows: Sequence[Window],
    size: tuple[int, int],
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Subject:
    """Seeded random weights in one of SIZES; `size` is (height, width) in pixels."""
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    config = SIZES[name]
    unet = _randomised(UNet2DConditionModel(sample_size=64, **config["unet"]), 1)
    nets = [
        _randomised(ControlNetModel.from_unet(unet, **config["hint"]), 10 + k) for k in range(len(windows))
    ]
    vae = AutoencoderKL(
        block_out_channels=config["vae"],
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    parts = [part.to(device, dtype) for part in (unet, _randomised(vae, 2), *nets)]
    generator = torch.Generator().manual_seed(3)
    width = unet.config.cross_attention_dim
    cond, uncond = (torch.randn(1, 77, width, generator=generator).to(device, dtype) for _ in range(2))
    hints = tuple(torch.rand(1, 3, *size, generator=generator).to(device) for _ in windows)
    latents = torch.randn(1, 4, size[0] // 8, size[1] // 8, generator=generator).to(device)
    return Subject(parts[0], tuple(parts[2:]), parts[1], cond, uncond, hints, latents, tuple(windows), steps)


def from_model(
    source: str,
    nets: Sequence[str],
    windows: Sequence[Window],
    size: tuple[int, int],
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Subject:
    """A real model, and a ControlNet from each of `nets`; its hints are ramps."""
    import rawdiff
    from rawdiff import weights
    from rawdiff.prompts import encode_prompts

    model = rawdiff.load(source, device=device, dtype=dtype, speed="eager")
    own = tuple(weights.load_controlnet(net, device=device, dtype=dtype) for net in nets)
    [reader] = model.readers()
    cond, uncond = (encode_prompts(reader, [text]).context for text in ("a red cube on grass", ""))
    hints = tuple(torch.linspace(0, 1, size[1], device=device).expand(1, 3, *size) for _ in nets)
    latents = torch.randn(1, 4, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(3)).to(
        device
    )
    return Subject(model.unet, own, model.vae, cond, uncond, hints, latents, tuple(windows), steps)
