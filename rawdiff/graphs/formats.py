"""Channels last or first: how convolutions' weights lie in memory, and with them everything that passes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from rawdiff.graphs.choices import Clock

__all__ = ["Formats"]

REPETITIONS = 5
MARGIN = 0.03
"""How much faster channels last has to be, so that what is as good as equal is not decided by chance."""


class Formats:
    """Brings networks into one memory format: the faster one by `clock`, or channels last where there is none."""

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self.chosen: torch.memory_format | None = torch.channels_last if clock is None else None
        self._done: WeakSet[nn.Module] = WeakSet()

    def settle(self, nets: Iterable[Any], work: Callable[[], Any], drop: Callable[[], None]) -> None:
        """See to `nets`; `work` runs them, and `drop` lets go of what was recorded of them as they were."""
        nets = list(nets)
        if all(net in self._done for net in nets):
            return
        if self.chosen is None:
            first, last = (
                self._time(nets, way, work, drop) for way in (torch.contiguous_format, torch.channels_last)
            )
            self.chosen = torch.channels_last if last < (1 - MARGIN) * first else torch.contiguous_format
        _convert(nets, self.chosen, drop)
        self._done.update(nets)

    def _time(
        self, nets: list[Any], way: torch.memory_format, work: Callable[[], Any], drop: Callable[[], None]
    ) -> float:
        assert self._clock is not None
        _convert(nets, way, drop)
        work()  # recorded anew
        return min(self._clock(work) for _ in range(REPETITIONS))


def _convert(nets: list[Any], way: torch.memory_format, drop: Callable[[], None]) -> None:
    """The same numbers, weight by weight, in another order of memory; what was recorded reads the old one."""
    for net in nets:
        net.to(memory_format=way)
    drop()
