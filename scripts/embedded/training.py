"""What every training here shares: a cosine schedule, averaged weights, checkpoints, a progress line, sheets."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

__all__ = [
    "ASSETS",
    "Average",
    "Progress",
    "Team",
    "cosine",
    "default_device",
    "load_state",
    "save_state",
    "sheet",
    "work_folder",
]

ASSETS = Path(__file__).resolve().parents[2] / "rawdiff" / "assets" / "solids"
"""The embedded model's folder."""


def work_folder() -> Path:
    """Where banks of renders and checkpoints are kept, outside the work tree: $RAWDIFF_TRAINING or ~/.cache."""
    folder = Path(os.environ.get("RAWDIFF_TRAINING", Path.home() / ".cache" / "rawdiff-training"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cosine(done: float, warm: float = 0.02, floor: float = 0.02) -> float:
    """The learning rate's factor when a share `done` of the training is over."""
    if done < warm:
        return max(done, 1e-4) / warm
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / (1 - warm))))


class Average:
    """An exponential moving average of parameters, with a warm start."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.999) -> None:
        self.decay, self.count = decay, 0
        self.live = list(parameters)
        self.mean = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the live weights; call twice to look at a sample and go on."""
        for live, mean in zip(self.live, self.mean, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)


class Team:
    """Processes that train together: each on its own batch and thread, with gradients averaged between them.

    On few cores this is nearly twice as fast as one process with two threads. Started by
    `torchrun --nproc-per-node 2 -m scripts.embedded.base ...`; without torchrun a team of one.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1:
            dist.init_process_group("gloo")

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @torch.no_grad()
    def average(self, parameters: list[nn.Parameter]) -> None:
        """Make every process's gradients the mean of all; one without a gradient counts as zero."""
        if self.size == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        flat /= self.size
        at = 0
        for p in parameters:
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()

    def agree(self, value: float) -> float:
        """The first process's value, for all."""
        if self.size == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(held, 0)
        return float(held)


class Progress:
    """One line on stderr: share done, time left, a running loss."""

    def __init__(self, what: str, minutes: float) -> None:
        self.what, self.seconds = what, minutes * 60
        self.start = self.shown = time.monotonic()
        self.loss: float | None = None

    @property
    def done(self) -> float:
        return min(1.0, (time.monotonic() - self.start) / self.seconds)

    def step(self, index: int, loss: Tensor, note: str = "") -> None:
        if time.monotonic() - self.shown < 5:
            return
        self.shown = time.monotonic()
        value = float(loss)
        self.loss = value if self.loss is None else 0.9 * self.loss + 0.1 * value
        left = self.seconds * (1 - self.done)
        end = "\r" if sys.stderr.isatty() else "\n"
        print(
            f"{self.what} {self.done:4.0%} step {index} loss {self.loss:.4f} {note} {left / 60:.1f} min left",
            file=sys.stderr,
            end=end,
            flush=True,
        )


def save_state(path: Path, **state: object) -> None:
    """Save a checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_state(path: Path) -> dict[str, object]:
    return torch.load(path, map_location="cpu", weights_only=True)


def sheet(pictures: Tensor, columns: int, path: Path, scale: int = 1) -> None:
    """Save pictures [B,3,H,W] in 0..1 as one PNG of `columns` columns."""
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    grid = torch.zeros(rows * columns, channels, height, width)
    grid[:count] = pictures.cpu().float()
    grid = (
        grid.view(rows, columns, channels, height, width)
        .permute(0, 3, 1, 4, 2)
        .reshape(rows * height, columns * width, channels)
    )
    image = Image.fromarray((grid.clamp(0, 1) * 255).round().byte().numpy())
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
