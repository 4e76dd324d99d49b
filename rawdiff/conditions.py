"""What the networks are told beside the latents: texts, sizes, hints, what an inpainting UNet sees of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rawdiff.geometry import FACTOR, Size

__all__ = ["Conditions", "Context", "SizeIds"]


@dataclass(frozen=True)
class SizeIds:
    """What SDXL is told of a picture's sizes, in pixels (Podell et al. 2023, arXiv 2307.01952, section 2.2)."""

    original: Size | None = None
    """(height, width) that the picture had before it was cut; its own size where that is None."""
    crop: tuple[int, int] = (0, 0)
    """(top, left) of where it was cut out: with more than 0 the subject is off centre."""
    target: Size | None = None
    """(height, width) that it was brought to; its own size where that is None."""
    negative: SizeIds | None = None
    """What guidance leads away from; where that is None the same."""

    def tensor(self, size: Size) -> Tensor:
        """For a picture of this size: of uncond and of cond, [2,6] fp32."""
        cond = [*(self.original or size), *self.crop, *(self.target or size)]
        uncond = cond if self.negative is None else self.negative.tensor(size)[1].tolist()
        return torch.tensor([uncond, cond], dtype=torch.float32)

    def describe(self) -> dict[str, Any]:
        """What an account says of it."""
        told = {"original": self.original, "crop": self.crop, "target": self.target}
        plain = {name: None if pair is None else list(pair) for name, pair in told.items()}
        return {**plain, "negative": None if self.negative is None else self.negative.describe()}

    @classmethod
    def from_recipe(cls, entry: Mapping[str, Any]) -> SizeIds:
        """What `describe` described."""
        pairs: dict[str, Any] = {
            name: None if entry[name] is None else tuple(entry[name])
            for name in ("original", "crop", "target")
        }
        negative = entry["negative"]
        return cls(**pairs, negative=None if negative is None else cls.from_recipe(negative))


@dataclass(frozen=True, eq=False)
class Context:
    """A text context for every image: what its prompt says, and what guidance leads away from."""

    cond: Tensor
    """[B,T,D], one vector a token."""
    uncond: Tensor | None
    """[B,T,D], or None in a run without guidance."""
    cond_pooled: Tensor | None = None
    """[B,P], one vector a text, where the networks take it (SDXL)."""
    uncond_pooled: Tensor | None = None
    """[B,P]; None in a run without guidance too."""

    def select(self, images: Sequence[int]) -> Context:
        """That of these images of the batch alone."""
        picked, parts = list(images), (self.uncond, self.cond_pooled, self.uncond_pooled)
        return Context(self.cond[picked], *(None if part is None else part[picked] for part in parts))


@dataclass(frozen=True, eq=False)
class Conditions:
    """The contexts that rows refer to by number, and one hint for each ControlNet in the run."""

    contexts: tuple[Context, ...]
    hints: tuple[Tensor, ...] = ()
    """Each [1 or B,3,H,W] fp32 in 0..1, in pixels."""
    inpaint: Tensor | None = None
    """[1 or B,5,h,w] fp32, for an inpainting UNet alone: the mask (1 is painted anew), and latents of the rest."""
    ids: Tensor | None = None
    """[2,6] fp32, where the networks take them (SDXL): the sizes of uncond and of cond, see `SizeIds`."""

    @property
    def batch(self) -> int:
        """Number of images."""
        return int(self.contexts[0].cond.shape[0])

    def select(self, images: Sequence[int]) -> Conditions:
        """The conditions of these images of the batch alone."""
        picked = list(images)
        contexts = tuple(context.select(picked) for context in self.contexts)
        hints = tuple(hint if len(hint) == 1 else hint[picked] for hint in self.hints)
        inpaint = self.inpaint
        if inpaint is not None and len(inpaint) > 1:
            inpaint = inpaint[picked]
        return replace(self, contexts=contexts, hints=hints, inpaint=inpaint)

    def crop(self, top: int, left: int, height: int, width: int) -> Conditions:
        """The conditions of a window, given in latents: hints and `inpaint` are cut, `ids` tell of it, texts stay."""
        rows, columns = (
            slice(FACTOR * top, FACTOR * (top + height)),
            slice(FACTOR * left, FACTOR * (left + width)),
        )
        inpaint = None if self.inpaint is None else self.inpaint[..., top : top + height, left : left + width]
        ids = self.ids
        if (
            ids is not None
        ):  # cut out further down and to the right, of the window's size; the original is the same
            place = torch.tensor([top, left]).to(ids) * FACTOR
            target = torch.tensor([[height, width]]).to(ids).expand(len(ids), -1) * FACTOR
            ids = torch.cat([ids[:, :2], ids[:, 2:4] + place, target], dim=1)
        return replace(
            self, hints=tuple(hint[..., rows, columns] for hint in self.hints), inpaint=inpaint, ids=ids
        )
