"""Pictures for measuring: true renders, their way through the VAE, and the embedded model's, each with its own seed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import rawdiff
from scripts.embedded.arguments import amount
from scripts.embedded.training import default_device
from scripts.embedded.world import Renders, Scenes, render

__all__ = ["Painter", "add_arguments", "named", "painter", "pixels", "true_renders"]


def named(row: str, number: int, count: int) -> str:
    """A row's name, with the number of its scenes where the table has `count` and it has fewer."""
    return row if number == count else f"{row}, {number} scenes"


def true_renders(scenes: Scenes, size: tuple[int, int]) -> Renders:
    """The scenes as the world draws them at `size` (height, width), one at a time."""
    return _joined(render(scenes[k : k + 1], size) for k in range(len(scenes)))


def _joined(parts: Iterable[Renders]) -> Renders:
    held = list(parts)
    return Renders(*(torch.cat([getattr(p, f.name) for p in held]) for f in fields(Renders)))


def pixels(picture: Tensor) -> NDArray[np.uint8]:
    """A picture [3,H,W] in 0..1 as a user has it, [H,W,3] of 8 bits."""
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


class Painter:
    """Makes pictures [B,3,H,W] in 0..1; picture k has seed `first` + k. `model` is None where processes share the work.

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
        made = self._shared(what, _paint, range(len(prompts)), prompts, [size] * len(prompts), own)
        return torch.stack([torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in made])

    def renders(self, scenes: Scenes, size: tuple[int, int]) -> Renders:
        """What `true_renders` gives."""
        each = [scenes[k : k + 1] for k in range(len(scenes))]
        drawn = self._shared("true renders", _render, each, [size] * len(each))
        return _joined(Renders(*map(torch.from_numpy, arrays)) for arrays in drawn)

    def round_trip(self, picture: Tensor) -> Tensor:
        """The VAE's posterior mode decoded again by torch, of [B,3,H,W] in 0..1."""
        done = self._shared("VAE round trip", _through_the_vae, list(picture))
        return torch.stack([torch.from_numpy(one) for one in done])

    def _shared(self, what: str, do: Callable[..., Any], *work: Any) -> list[Any]:
        """`do(painter, ...)` for each of the work, here or in the processes that share it."""
        count, start = len(work[0]), time.monotonic()
        found = (
            (do(self, *given) for given in zip(*work, strict=True))
            if self.pool is None
            else self.pool.map(_call, [do] * count, *work)
        )
        done: list[Any] = []
        for one in found:
            done.append(one)
            left = (time.monotonic() - start) / len(done) * (count - len(done))
            print(f"\r{what}: {len(done)}/{count}, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return done

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


def _paint(
    painter: Painter, k: int, prompt: str, size: tuple[int, int], own: dict[str, Any]
) -> NDArray[np.uint8]:
    return painter.paint(k, prompt, size, own)


def _render(painter: Painter, scenes: Scenes, size: tuple[int, int]) -> list[NDArray[Any]]:
    drawn = render(scenes, size)
    return [getattr(drawn, f.name).numpy() for f in fields(Renders)]


@torch.no_grad()
def _through_the_vae(painter: Painter, picture: Tensor) -> NDArray[np.float32]:
    vae = painter.model.vae
    latents = vae.encode(picture[None].to(next(vae.parameters())) * 2 - 1).latent_dist.mode()
    return (vae.decode(latents).sample[0].float().cpu() * 0.5 + 0.5).clamp(0, 1).numpy()


_painter: Painter  # of a process that shares the work


def _begin(loading: dict[str, Any], settings: dict[str, Any], first: int) -> None:
    global _painter
    torch.set_num_threads(1)
    _painter = Painter(rawdiff.load(**loading), **settings, first=first)


def _call(do: Callable[..., Any], *given: Any) -> Any:
    return do(_painter, *given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model paints and how; `painter` reads them."""
    parser.add_argument("--model", default=None, help="a model folder; the embedded model without it")
    parser.add_argument("--steps", type=amount, default=20)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--sampler", default=None)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--backend", default="torch", choices=("torch", "openvino"))
    parser.add_argument("--threads", type=amount, default=None)
    parser.add_argument(
        "--processes", type=amount, default=1, help="that paint side by side, of one thread each"
    )


def painter(args: argparse.Namespace) -> Painter:
    """The painter that the arguments ask for."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    loading = {
        "source": args.model,
        "device": str(default_device()),
        "dtype": getattr(torch, args.dtype),
        "backend": args.backend,
    }
    model = rawdiff.load(**loading) if args.processes == 1 else None  # else each process has its own
    return Painter(model, args.steps, args.guidance, args.sampler, processes=args.processes, loading=loading)
