"""Gaussian noise as a function of (seed, latent shape, version) alone, the same on every machine.

It is drawn on the CPU in fp32, with one generator for each image: image k of a batch gets the noise that it
would get alone. The k-th draw of a generator is the k-th draw of the run: the first starts it, the later ones
feed the samplers that ask for noise. Golden hashes in the tests guard the numbers.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from rawdiff.errors import UsageError
from rawdiff.geometry import Size
from rawdiff.limits import MAX_SEED

__all__ = ["MAX_SEED", "NOISE_VERSION", "Noise", "check_seeds", "random_seed"]

NOISE_VERSION = 1
"""Changes whenever a seed gives other noise than it gave before."""


def check_seeds(seed: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One seed for each of `count` images: `seed`, `seed`+1, ... or the list as it is; raises UsageError."""
    if isinstance(seed, Sequence):
        seeds = tuple(seed)
        if len(seeds) != count:
            raise UsageError(
                f"{len(seeds)} seeds for {count} images: give one each, or a single one to count from"
            )
    else:
        seeds = (
            (seed,)
            if isinstance(seed, bool) or not isinstance(seed, int)
            else tuple(range(seed, seed + count))
        )
    for number in seeds:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_SEED:
            shown = " ".join(repr(number).split())[:60]
            raise UsageError(f"seed {shown}: expected a whole number from 0 to {MAX_SEED}")
    return seeds


def random_seed(count: int) -> int:
    """A seed that nobody chose, with room for `count` images after it."""
    return secrets.randbelow(MAX_SEED + 2 - count)


class Noise:
    """The noise of a run: `draw(k)` is the k-th draw, [B,4,h,w] fp32, on `device`.

    Going forward costs one draw; going back starts the generators anew. A copy has generators of its own.
    """

    def __init__(self, seeds: Sequence[int], size: Size, device: torch.device | str = "cpu") -> None:
        self.seeds = tuple(seeds)
        self.size = size
        """(h, w) in latents."""
        self.device = torch.device(device)
        self._rewind()

    def _rewind(self) -> None:
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        self._next = 0

    def _draw(self) -> Tensor:
        self._next += 1
        shape = (1, 4, *self.size)
        return torch.cat([torch.randn(shape, generator=g, dtype=torch.float32) for g in self._generators])

    def draw(self, k: int) -> Tensor:
        """Draw number `k`, counted from 0."""
        if k < self._next:
            self._rewind()
        while self._next < k:
            self._draw()
        drawn = self._draw()
        if self.device.type == "cuda":  # the host does not wait for the copy
            return drawn.pin_memory().to(self.device, non_blocking=True)
        return drawn.to(self.device)

    def copy(self) -> Noise:
        """The same noise, with a position of its own."""
        other = Noise(self.seeds, self.size, self.device)
        for own, its in zip(self._generators, other._generators, strict=True):
            its.set_state(own.get_state())
        other._next = self._next
        return other
