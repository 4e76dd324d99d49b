"""What the first halves of the networks said at one evaluation, taken for what they would say at the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from rawdiff.errors import UsageError
from rawdiff.graphs.runner import Call, Runner
from rawdiff.graphs.streams import Group, Work
from rawdiff.graphs.tree import build, flatten
from rawdiff.nets.calls import ControlResiduals, UNetEncode
from rawdiff.probes import ProbeLike

__all__ = ["Reusing"]


class Reusing(Runner):
    """Another runner, which runs the UNet's first half and the ControlNets at every `every`-th evaluation alone.

    In between, the UNet's second half reads what they said last, with the time and the text of its own evaluation.
    Approximate (Li et al. 2023, arXiv 2312.09608). It belongs to one run, from its first evaluation on: what it holds
    is in no RunState, so a run that is forked, saved or led back has to begin with another. Raises UsageError for
    a frugal runner, whose halves of guidance take turns.
    """

    def __init__(self, inner: Runner, every: int) -> None:
        if inner.frugal:
            raise UsageError("reuse: holds what memory low lets go of; leave one of them out")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UsageError(f"reuse {every!r}: expected a whole number of evaluations, 1 or more")
        super().__init__(inner.streams)
        self.overwrites, self.made_with = inner.overwrites, inner.made_with
        self._inner, self._every = inner, every
        self._evaluation = 0
        self._held: dict[Hashable, Any] = {}

    def __call__(self, call: Call, *arguments: Any, place: Hashable = 0) -> Any:
        if not isinstance(call, (UNetEncode, ControlResiduals)):
            return self._inner(call, *arguments, place=place)
        text = arguments[2]  # another half of guidance, or another prompt, has another
        key = (call, place, id(text))
        if key not in self._held or self._evaluation % self._every == 0:
            found = self._inner(call, *arguments, place=place)
            self._held[key] = (
                _copied(found) if self.overwrites else found
            )  # another text's is written there too
        return _copied(self._held[key])  # residuals are added into what is handed out

    def together(self, works: Sequence[Work], probe: ProbeLike, group: Group) -> list[Any]:
        return self._inner.together(works, probe, group)

    def until_next(self) -> Callable[[], bool]:
        self._evaluation += 1
        if self._evaluation % self._every == 0:
            self._held.clear()
        return self._inner.until_next()

    def settle(self, nets: Iterable[Any], work: Callable[[], Any], question: Hashable) -> None:
        self._inner.settle(nets, work, question)

    def keep(self, nets: Iterable[Any]) -> None:
        self._inner.keep(nets)

    def more_bytes(self, nets: Iterable[Any]) -> int:
        return self._inner.more_bytes(nets)

    def stage(self, nets: Iterable[Any]) -> None:
        self._inner.stage(nets)

    def drop(self) -> None:
        self._held.clear()
        self._inner.drop()


def _copied(value: Any) -> Any:
    tensors, form = flatten(value)
    return build(form, iter([tensor.clone() for tensor in tensors]))
