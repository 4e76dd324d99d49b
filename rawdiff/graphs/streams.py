"""Works that do not need each other, side by side on a GPU's streams: the UNet's reading half and every ControlNet."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch

from rawdiff.graphs.choices import Choices, Clock, Keeper, cuda_clock, new_stream
from rawdiff.probes import NO_PROBE, ProbeLike

__all__ = ["Group", "Streams", "Work", "parallel"]

Work = Callable[[ProbeLike], Any]
"""Something to do, and its result; it may be done more than once, to measure it."""


class Group(NamedTuple):
    """What works that are run together are."""

    question: Hashable
    """What they are like: one answer is for all that are alike, in every process"""
    own: Hashable
    """Which they are"""


def parallel(works: Sequence[Work], streams: Sequence[torch.cuda.Stream], probe: ProbeLike) -> list[Any]:
    """The results of `works`: the last on the current stream, each other on one of `streams`.

    The allocator hands memory that nobody holds to the next who asks on the same stream, though another stream may
    still read it. So whoever calls keeps what the works read until this returns, and results are held here: at
    the end the current stream waits for every other, and the next fork makes those wait for it.
    """
    *others, own = works
    side = streams[: len(others)]
    current = torch.cuda.current_stream()
    results: list[Any] = []
    try:
        for work, stream in zip(others, side, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                results.append(work(probe))
        results.append(own(probe))
    finally:  # joined after an error too: what is let go of then must not be in use
        for stream in side:
            current.wait_stream(stream)
    return results


class Streams:
    """Serial or parallel, chosen by measuring both when works of a kind are first seen; off CUDA all is serial.

    `side_by_side` settles it without measuring. `speed` tells what `keeper` has of recorded works from that of others.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        side_by_side: bool | None = None,
        clock: Clock = cuda_clock,
        keeper: Keeper | None = None,
        speed: str = "eager",
    ) -> None:
        self._device = device
        self._settled = side_by_side
        self._choices = Choices(clock, keeper=keeper, name=f"side by side, {speed}")
        self._seen: set[Hashable] = set()
        self._streams: list[torch.cuda.Stream] = []

    def together(self, works: Sequence[Work], probe: ProbeLike, group: Group) -> list[Any]:
        """Every work's result."""
        if self._device.type != "cuda":
            return [work(probe) for work in works]
        with torch.cuda.device(self._device):
            while len(self._streams) < len(works) - 1:
                self._streams.append(new_stream())
            if group not in self._seen:  # libraries are set up, and graphs captured, one after the other
                for work in works:
                    work(NO_PROBE)
                self._seen.add(group)
            if self._is_parallel(works, group.question):
                return parallel(works, self._streams, probe)
            return [work(probe) for work in works]

    def drop(self) -> None:
        """What was captured is gone, and will be captured anew; choices stay."""
        self._seen.clear()

    def _is_parallel(self, works: Sequence[Work], question: Hashable) -> bool:
        if self._settled is not None:
            return self._settled
        ways: dict[bool, Callable[[], list[Any]]] = {
            False: lambda: [work(NO_PROBE) for work in works],
            True: lambda: parallel(works, self._streams, NO_PROBE),
        }
        return self._choices.pick(question, ways)
