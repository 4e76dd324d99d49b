"""The plain runner: calls are run as they come."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from rawdiff.graphs.streams import Group, Streams, Work
from rawdiff.probes import ProbeLike

__all__ = ["EAGER", "Call", "Runner"]

Call = Callable[..., Any]
"""A value that can be called and compared (`rawdiff.nets.calls`)."""


def _always() -> bool:
    return True


class Runner:
    """Runs calls as they come; works that do not need each other side by side where `streams` finds that faster."""

    frugal = False
    """Whether memory is worth more than time: guidance's halves in turn, the VAE in tiles."""
    overwrites = False
    """Whether what a call gives is overwritten when it is run again."""
    made_with: str | None = None
    """What computes in torch's place, with its version."""

    def __init__(self, streams: Streams | None = None) -> None:
        self.streams = streams

    def __call__(self, call: Call, *arguments: Any, place: Hashable = 0) -> Any:
        """`call(*arguments)`; two uses of one call whose results are needed together have different places."""
        return call(*arguments)

    def together(self, works: Sequence[Work], probe: ProbeLike, group: Group) -> list[Any]:
        """The results of works that do not need each other."""
        if self.streams is None or len(works) < 2:
            return [work(probe) for work in works]
        return self.streams.together(works, probe, group)

    def until_next(self) -> Callable[[], bool]:
        """Something that says, from here on, whether what calls gave so far still stands."""
        return _always

    def settle(self, nets: Iterable[Any], work: Callable[[], Any], question: Hashable) -> None:
        """Bring `nets` into the form in which `work`, which runs them, is fastest; `question` is what that is like."""

    def keep(self, nets: Iterable[Any]) -> None:
        """Take charge of where `nets` are."""

    def more_bytes(self, nets: Iterable[Any]) -> int:
        """Bytes that running `nets` would take for copies of their weights, beyond those that are held now."""
        return 0

    def stage(self, nets: Iterable[Any]) -> None:
        """Have `nets` on the device: they are what runs next."""

    def drop(self) -> None:
        """Let go of all that is held from one call to the next."""


EAGER = Runner()
"""One after the other, as they come."""
