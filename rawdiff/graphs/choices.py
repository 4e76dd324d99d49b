"""What is fastest here, measured once for each question."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from statistics import median
from typing import Any, Protocol, TypeVar

import torch

__all__ = ["Choices", "Clock", "Keeper", "answered", "cuda_clock", "kernel_clock", "new_stream"]

Clock = Callable[[Callable[[], Any]], float]
"""Runs some work and says how long it took, in ms."""

T = TypeVar("T", bound=Hashable)

CALLS = 10
SLEEP_CYCLES = 2**22
"""About 2 ms of a GPU, in which the host launches all that is measured."""


class Keeper(Protocol):
    """Answers that outlive the process: another that chose otherwise would compute other bits."""

    def get(self, question: str) -> str | None: ...

    def put(self, question: str, answer: str) -> None: ...


def answered(keeper: Keeper | None, question: str, options: Iterable[T]) -> list[T]:
    """Which of `options` the keeper has for an answer: one, or none of them."""
    kept = None if keeper is None else keeper.get(question)
    return [option for option in options if str(option) == kept]


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


def kernel_clock(work: Callable[[], Any]) -> float:
    """Milliseconds that the GPU takes for the kernels of `work`, however slow the host is to launch them.

    The GPU sleeps until all calls are queued: a small kernel takes less time than its launch, and in a graph that costs
    nothing.
    """
    torch.cuda.synchronize()
    event: Any = torch.cuda.Event
    first, last = event(enable_timing=True), event(enable_timing=True)
    sleep: Callable[[int], None] = torch.cuda._sleep
    sleep(SLEEP_CYCLES)
    first.record()
    for _ in range(CALLS):
        work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / CALLS


def new_stream() -> torch.cuda.Stream:
    """A stream on the current device."""
    made: Any = torch.cuda.Stream
    stream: torch.cuda.Stream = made()
    return stream


class Choices:
    """Answers to "which of these is fastest?", by question.

    The first option is the usual one: another has to beat it by `margin`, so that what is as good as equal is not
    decided by chance. An option that raises RuntimeError is none. What `keeper` has is not measured again; `name`
    tells these questions from others there.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        repetitions: int = 5,
        margin: float = 0.03,
        keeper: Keeper | None = None,
        name: str = "",
    ) -> None:
        self._clock = clock
        self._repetitions = repetitions
        self._margin = margin
        self._keeper, self._name = keeper, name
        self._known: dict[Hashable, Any] = {}

    def known(self, question: Hashable, default: T) -> T:
        """The answer so far, or `default`; nothing is measured."""
        found: T = self._known.get(question, default)
        return found

    def pick(self, question: Hashable, options: Mapping[T, Callable[[], Any]]) -> T:
        """The fastest of `options`, by the median of measurements in turn; the first where none can be run."""
        if question not in self._known:
            self._known[question] = self._found(f"{self._name}: {question}", options)
        found: T = self._known[question]
        return found

    def _found(self, question: str, options: Mapping[T, Callable[[], Any]]) -> T:
        for kept in answered(self._keeper, question, options):
            if self._can_run(options[kept]):
                return kept
        best = self._measured(options)
        if self._keeper is not None:
            self._keeper.put(question, str(best))
        return best

    def _measured(self, options: Mapping[T, Callable[[], Any]]) -> T:
        usual, *_ = options
        times: dict[T, list[float]] = {name: [] for name, work in options.items() if self._can_run(work)}
        for _ in range(self._repetitions):
            for name in times:
                times[name].append(self._clock(options[name]))
        if not times:
            return usual
        middle = {name: median(found) for name, found in times.items()}
        best = min(middle, key=lambda name: middle[name])
        wins = usual not in middle or middle[best] < (1 - self._margin) * middle[usual]
        return best if wins else usual

    def _can_run(self, work: Callable[[], Any]) -> bool:
        """Whether it does not refuse; this first time is no measure."""
        try:
            with warnings.catch_warnings():  # an attention backend that refuses warns of its reasons first
                warnings.simplefilter("ignore")
                self._clock(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return False
        return True
