"""What is fastest here, measured once for each question and kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import Any, TypeVar

import torch

__all__ = ["Choices", "Clock", "cuda_clock", "new_stream"]

Clock = Callable[[Callable[[], Any]], float]
"""Runs some work and says how long it took, in ms."""

T = TypeVar("T", bound=Hashable)


def cuda_clock(work: Callable[[], Any]) -> float:
    """Milliseconds on the current stream; waits for the GPU, so nothing of this is done inside a run."""
    torch.cuda.synchronize()
    event: Any = torch.cuda.Event
    first, last = event(enable_timing=True), event(enable_timing=True)
    first.record()
    work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))


def new_stream() -> torch.cuda.Stream:
    """A stream on the current device."""
    made: Any = torch.cuda.Stream
    stream: torch.cuda.Stream = made()
    return stream


class Choices:
    """Answers to "which of these is fastest?", by question.

    The first option is the usual one: another has to beat it by `margin`, so that what is as good as equal is not
    decided by chance. An option that raises RuntimeError is none.
    """

    def __init__(self, clock: Clock, *, repetitions: int = 5, margin: float = 0.03) -> None:
        self._clock = clock
        self._repetitions = repetitions
        self._margin = margin
        self._known: dict[Hashable, Any] = {}

    def known(self, question: Hashable, default: T) -> T:
        """The answer so far, or `default`; nothing is measured."""
        found: T = self._known.get(question, default)
        return found

    def pick(self, question: Hashable, options: Mapping[T, Callable[[], Any]]) -> T:
        """The fastest of `options`, by the median of measurements in turn; the first where none can be run."""
        if question not in self._known:
            self._known[question] = self._measured(options)
        found: T = self._known[question]
        return found

    def _measured(self, options: Mapping[T, Callable[[], Any]]) -> T:
        usual, *_ = options
        times: dict[T, list[float]] = {}
        for name, work in options.items():
            try:
                with (
                    warnings.catch_warnings()
                ):  # an attention backend that refuses warns of its reasons first
                    warnings.simplefilter("ignore")
                    self._clock(work)  # the first time is no measure
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                continue
            times[name] = []
        for _ in range(self._repetitions):
            for name in times:
                times[name].append(self._clock(options[name]))
        if not times:
            return usual
        middle = {name: median(found) for name, found in times.items()}
        best = min(middle, key=lambda name: middle[name])
        wins = usual not in middle or middle[best] < (1 - self._margin) * middle[usual]
        return best if wins else usual
