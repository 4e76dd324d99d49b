"""Pictures for measuring: true renders, their way through the VAE, and the embedded model's, each with its own seed."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import rawdiff
from scripts.embedded.palette import COLOUR_RGB
from scripts.embedded.world import Renders, Scenes, render

__all__ = ["Painter", "pixels", "round_trip", "true_renders"]


def true_renders(
    scenes: Scenes,
    size: tuple[int, int],
    colours: Mapping[str, tuple[float, float, float]] = COLOUR_RGB,
) -> Renders:
    """The scenes as the world draws them at `size` (height, width), one at a time."""
    parts = [render(scenes[k : k + 1], size, colours=colours) for k in range(len(scenes))]
    return Renders(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Renders)))


@torch.no_grad()
def round_trip(vae: Any, picture: Tensor) -> Tensor:
    """The VAE's posterior mode decoded again, [B,3,H,W] in 0..1."""
    kind = next(vae.parameters())
    done = [vae.decode(vae.encode(p[None].to(kind) * 2 - 1).latent_dist.mode()).sample[0] for p in picture]
    return (torch.stack(done).float().cpu() * 0.5 + 0.5).clamp(0, 1)


def pixels(picture: Tensor) -> NDArray[np.uint8]:
    """A picture [3,H,W] in 0..1 as a user has it, [H,W,3] of 8 bits."""
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


class Painter:
    """Makes pictures [B,3,H,W] in 0..1; picture k has seed `first` + k.

    With `processes` above 1 so many of one thread each share the work, each with a model of its own that
    `loading` (arguments of `rawdiff.load`) names: on a few cores nearly twice as fast as one process with all of them.
    """

    def __init__(
        self,
        model: Any,
        steps: int = 20,
        guidance: float | None = None,
        sampler: str | None = None,
        first: int = 0,
        processes: int = 1,
        loading: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.first = model, first
        self.settings = {"steps": steps, "guidance": guidance, "sampler": sampler}
        self.pool = None
        if processes > 1:
            own = (dict(loading or {}), self.settings, first)
            self.pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, own)

    def __call__(self, prompts: list[str], size: tuple[int, int], what: str, **more: Any) -> Tensor:
        """A picture of `size` (height, width) for each prompt.

        `more` goes to `Model.prepare`: a list is read picture by picture, anything else holds for all.
        """
        own = [
            {name: value[k] if isinstance(value, list) else value for name, value in more.items()}
            for k in range(len(prompts))
        ]
        work = (range(len(prompts)), prompts, [size] * len(prompts), own)
        pictures = []
        start = time.monotonic()
        for picture in map(self.paint, *work) if self.pool is None else self.pool.map(_paint, *work):
            pictures.append(torch.from_numpy(picture).permute(2, 0, 1) / 255)
            done = len(pictures)
            left = (time.monotonic() - start) / done * (len(prompts) - done)
            print(f"\r{what}: {done}/{len(prompts)}, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return torch.stack(pictures)

    def paint(self, k: int, prompt: str, size: tuple[int, int], own: dict[str, Any]) -> NDArray[np.uint8]:
        """Picture `k`, [H,W,3]."""
        run = self.model.prepare(
            prompt,
            size=size,
            seed=self.first + k,
            watch=(),
            say=lambda line: None,
            **(self.settings | own),
        )
        for _ in run:
            pass
        return np.array(run.image())


_painter: Painter  # of a process that shares the work


def _begin(loading: dict[str, Any], settings: dict[str, Any], first: int) -> None:
    global _painter
    torch.set_num_threads(1)
    _painter = Painter(rawdiff.load(**loading), **settings, first=first)


def _paint(k: int, prompt: str, size: tuple[int, int], own: dict[str, Any]) -> NDArray[np.uint8]:
    return _painter.paint(k, prompt, size, own)
