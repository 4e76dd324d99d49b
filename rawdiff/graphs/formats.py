"""Channels last or first: how convolutions' weights lie in memory, and with them everything that passes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from rawdiff.graphs.choices import Clock, Keeper, answered
from rawdiff.nets.memory import is_out_of_memory

__all__ = ["Formats"]

REPETITIONS = 5
MARGIN = 0.03
"""How much faster channels last has to be, so that what is as good as equal is not decided by chance."""
WAYS = (torch.contiguous_format, torch.channels_last)


class Formats:
    """Brings networks into one memory format: the faster one by `clock`, or channels last where there is none.

    It is chosen for the first network of a class; others of its class, and what runs beside them, follow.
    """

    def __init__(self, clock: Clock | None, *, keeper: Keeper | None = None) -> None:
        self._clock, self._keeper = clock, keeper
        self._chosen: dict[type, torch.memory_format] = {}
        self._done: WeakSet[nn.Module] = WeakSet()

    def settle(
        self, nets: Iterable[Any], work: Callable[[], Any], question: Hashable, drop: Callable[[], None]
    ) -> None:
        """See to `nets`; `work` runs them, and `drop` lets go of what was recorded of them as they were."""
        nets = list(nets)
        if all(net in self._done for net in nets):
            return
        kind = type(nets[0])
        if kind not in self._chosen:
            self._chosen[kind] = self._found(nets, work, f"memory format: {question}", drop)
        _convert(nets, self._chosen[kind], drop)
        self._done.update(nets)

    def _found(
        self, nets: list[Any], work: Callable[[], Any], question: str, drop: Callable[[], None]
    ) -> torch.memory_format:
        if self._clock is None:
            return torch.channels_last
        if kept := answered(self._keeper, question, WAYS):
            return kept[0]
        first, last = (self._time(nets, way, work, drop) for way in WAYS)
        if math.isinf(first) and math.isinf(last):
            work()  # whose error is the caller's: in tiles, say, there is room for either
        best = torch.channels_last if last < (1 - MARGIN) * first else torch.contiguous_format
        if self._keeper is not None and math.isfinite(first) and math.isfinite(last):
            self._keeper.put(question, str(best))
        return best

    def _time(
        self, nets: list[Any], way: torch.memory_format, work: Callable[[], Any], drop: Callable[[], None]
    ) -> float:
        """Infinite where memory does not suffice: the other may need less."""
        assert self._clock is not None
        _convert(nets, way, drop)
        try:
            work()  # recorded anew
            return min(self._clock(work) for _ in range(REPETITIONS))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return math.inf


def _convert(nets: list[Any], way: torch.memory_format, drop: Callable[[], None]) -> None:
    """The same numbers, weight by weight, in another order of memory; what was recorded reads the old one."""
    for net in nets:
        net.to(memory_format=way)
    drop()
