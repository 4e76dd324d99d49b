"""Pictures from the embedded model for measuring: one run after another, each with its own seed."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Painter"]


class Painter:
    """Makes pictures [B,3,H,W] in 0..1, one at a time; picture k has seed `first` + k."""

    def __init__(
        self,
        model: Any,
        steps: int = 20,
        guidance: float | None = None,
        sampler: str | None = None,
        first: int = 0,
    ) -> None:
        self.model, self.first = model, first
        self.settings = {"steps": steps, "guidance": guidance, "sampler": sampler}

    def __call__(self, prompts: list[str], size: tuple[int, int], what: str, **more: Any) -> Tensor:
        """A picture of `size` (height, width) for each prompt.

        `more` goes to `Model.prepare`: a list is read picture by picture, anything else holds for all.
        """
        pictures = []
        start = time.monotonic()
        for k, prompt in enumerate(prompts):
            own = {name: value[k] if isinstance(value, list) else value for name, value in more.items()}
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
            pictures.append(torch.from_numpy(np.array(run.image())).permute(2, 0, 1) / 255)
            left = (time.monotonic() - start) / (k + 1) * (len(prompts) - k - 1)
            print(
                f"\r{what}: {k + 1}/{len(prompts)}, {left:.0f} s left ", end="", file=sys.stderr, flush=True
            )
        print(file=sys.stderr)
        return torch.stack(pictures)
