"""Work recorded on a CPU as its list of operations: a stand-in for a CUDA graph, with the same ways to go wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TracedRecording"]

Flat = Callable[..., list[Tensor]]


class TracedRecording:
    """The operations of `work` on a CPU, run again without its Python: what a CUDA graph would do, to the bit.

    Asking for a number on the host fails while this is recorded, as it would there; outputs are NaN until they are
    written anew, so that work which reads what it wrote the last time is seen.
    """

    pool_bytes = 0

    def __init__(self, work: Flat, inputs: Sequence[Tensor]) -> None:
        work(*inputs)  # as before a capture: what is set up or measured is so here
        self._inputs = list(inputs)
        with _Trace() as trace:
            found = list(work(*inputs))
        self._trace = trace.closed(inputs, found)
        self.outputs = [torch.empty_like(output) for output in found]

    def replay(self) -> None:
        """Run the operations."""
        for output in self.outputs:
            output.fill_(torch.nan)
        for output, found in zip(self.outputs, self._trace.run(self._inputs), strict=True):
            output.copy_(found)


class _Slot(NamedTuple):
    number: int


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation with its arguments; of tensors from before it began (weights) the memory is kept as it is."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lines: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("recorded work asks for a tensor's number on the host")
        found = func(*args, **(kwargs or {}))
        self._lines.append((func, args, kwargs or {}, found))
        return found

    def closed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> _Trace:
        """Itself, with the tensors that come and go replaced by numbers of slots."""
        slots = {id(tensor): _Slot(k) for k, tensor in enumerate(inputs)}

        def note(value: Any) -> Any:
            return slots.setdefault(id(value), _Slot(len(slots))) if isinstance(value, Tensor) else value

        def known(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            # A graph reads on at an address, also where a module's weight has long been given another.
            return slots.get(id(value)) or value.detach()

        for *_, found in self._lines:
            _mapped(note, found)
        self._results = [known(output) for output in outputs]
        self._lines = [
            (func, _mapped(known, args), _mapped(known, kwargs), _mapped(known, found))
            for func, args, kwargs, found in self._lines
        ]
        return self

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the operations give for other inputs."""
        held: dict[int, Tensor] = dict(enumerate(inputs))

        def value(slot: Any) -> Any:
            return held[slot.number] if isinstance(slot, _Slot) else slot

        for func, args, kwargs, found in self._lines:
            _keep(held, found, func(*_mapped(value, args), **_mapped(value, kwargs)))
        return [value(slot) for slot in self._results]


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """`change` at every leaf of lists, tuples and dicts."""
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, (_Slot, torch.Size)):
        return type(value)(_mapped(change, item) for item in value)
    return change(value)


def _keep(held: dict[int, Tensor], slots: Any, found: Any) -> None:
    if isinstance(slots, _Slot):
        held[slots.number] = found
    elif isinstance(slots, (list, tuple)):
        for slot, item in zip(slots, found, strict=True):
            _keep(held, slot, item)
