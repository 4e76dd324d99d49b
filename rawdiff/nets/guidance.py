"""Guidance that a network is told, as a latent consistency model is: it needs no uncond half.

A UNet distilled from a guided one (Meng et al. 2022, arXiv 2210.03142; Luo et al. 2023, arXiv 2310.04378) has a layer
for the guidance scale beside the one for the time; its config says how wide, in `time_cond_proj_dim`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_told", "waves", "width"]


def width(config: Any) -> int | None:
    """How many numbers tell a UNet of this config the guidance scale; None for one that is not told."""
    found = config.get("time_cond_proj_dim")
    return None if found is None else int(found)


def is_told(config: Any) -> bool:
    """Whether a UNet of this config is told the guidance scale."""
    return width(config) is not None


def waves(scales: Sequence[float], count: int) -> Tensor:
    """Guidance scales as sinusoids of `1000*(g - 1)`, [B,count] fp32 on the CPU.

    The arguments reach ten thousand, where fp32 tells sines apart to 1e-3 only: hence computed on the host from its own
    numbers, in diffusers' order of rounding, and the same on every device.
    """
    g = torch.tensor([scale - 1 for scale in scales], dtype=torch.float32) * 1000.0
    half = count // 2
    step = torch.log(torch.tensor(10000.0)) / (half - 1)
    angles = g[:, None] * torch.exp(torch.arange(half, dtype=torch.float32) * -step)
    found = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    return torch.nn.functional.pad(found, (0, count - 2 * half))
