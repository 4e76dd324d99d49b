"""What is computed from weights and held: it knows which weights, and is computed again in place when they change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

__all__ = ["Derived"]


class Derived:
    """Tensors computed from weights, for as long as those stay the same.

    A change in place (a LoRA merged, another net's weights copied over these) shows in torch's version counters,
    which are asked and never the numbers; `refresh` then writes the new values where the old ones were, so that
    whoever holds the tensors, a captured graph say, sees them.
    """

    def __init__(self, sources: Iterable[Tensor], compute: Callable[[], Sequence[Tensor]]) -> None:
        self._sources = tuple(source for source in sources if not source.is_inference())
        self._compute = compute
        self._seen = self._version()
        self.tensors = tuple(compute())

    def _version(self) -> int:
        return sum(source._version for source in self._sources)  # counters only rise

    def refresh(self) -> bool:
        """Compute again if a weight was changed; whether one was."""
        version = self._version()
        if version == self._seen:
            return False
        for held, fresh in zip(self.tensors, self._compute(), strict=True):
            held.copy_(fresh)
        self._seen = version
        return True
