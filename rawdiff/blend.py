"""Inpainting: after each step, what shall stay is put back at the level of noise that comes next.

(RePaint without its resampling: Lugmayr et al. 2022, arXiv 2201.09865; as diffusers' pipelines do it with an ordinary
UNet. One for inpainting sees what stays, and is left to paint it unless somebody asks for this too.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rawdiff.plan import Row

__all__ = ["Blend"]


@dataclass(frozen=True, eq=False)
class Blend:
    """A constraint for the loop: the picture's latents where the mask is 0, x where it is 1."""

    latents: Tensor
    """[B,4,h,w] fp32, clean."""
    noise: Tensor
    """[B,4,h,w] fp32, the run's first."""
    mask: Tensor
    """[1 or B,1,h,w] fp32, 0 or 1."""

    def __call__(self, x: Tensor, row: Row | None) -> Tensor:
        """`x` [B,4,h,w] after a step, and the row that it goes into (None at the end) -> x."""
        kept = self.latents if row is None else row.signal * self.latents + row.sigma * self.noise
        return (1 - self.mask) * kept + self.mask * x
