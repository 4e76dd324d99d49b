"""What the networks are told beside the latents: texts, hints, and what an inpainting UNet sees of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rawdiff.geometry import FACTOR

__all__ = ["Conditions", "Context"]


@dataclass(frozen=True, eq=False)
class Context:
    """A text context for every image: what its prompt says, and what guidance leads away from."""

    cond: Tensor
    """[B,T,D], one vector a token."""
    uncond: Tensor | None
    """[B,T,D], or None in a run without guidance."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """The contexts that rows refer to by number, and one hint for each ControlNet in the run."""

    contexts: tuple[Context, ...]
    hints: tuple[Tensor, ...] = ()
    """Each [1 or B,3,H,W] fp32 in 0..1, in pixels."""
    inpaint: Tensor | None = None
    """[1 or B,5,h,w] fp32, for an inpainting UNet alone: the mask (1 is painted anew), and latents of the rest."""

    @property
    def batch(self) -> int:
        """Number of images."""
        return int(self.contexts[0].cond.shape[0])

    def select(self, images: Sequence[int]) -> Conditions:
        """The conditions of these images of the batch alone."""
        picked = list(images)
        contexts = tuple(
            Context(c.cond[picked], None if c.uncond is None else c.uncond[picked]) for c in self.contexts
        )
        hints = tuple(hint if len(hint) == 1 else hint[picked] for hint in self.hints)
        inpaint = self.inpaint
        return Conditions(
            contexts, hints, inpaint if inpaint is None or len(inpaint) == 1 else inpaint[picked]
        )

    def crop(self, top: int, left: int, height: int, width: int) -> Conditions:
        """The conditions of a window, given in latents: hints and `inpaint` are cut, texts stay."""
        rows, columns = (
            slice(FACTOR * top, FACTOR * (top + height)),
            slice(FACTOR * left, FACTOR * (left + width)),
        )
        inpaint = None if self.inpaint is None else self.inpaint[..., top : top + height, left : left + width]
        return Conditions(self.contexts, tuple(hint[..., rows, columns] for hint in self.hints), inpaint)
