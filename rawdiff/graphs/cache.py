"""Graphs: every call is recorded when it is first seen with tensors of its shapes, and replayed from then on."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rawdiff.graphs.compiled import Compiler, flat
from rawdiff.graphs.formats import Formats
from rawdiff.graphs.record import CudaRecording, Recording
from rawdiff.graphs.runner import Call, Runner
from rawdiff.graphs.streams import Streams
from rawdiff.graphs.trace import TracedRecording
from rawdiff.graphs.tree import build, flatten, signature
from rawdiff.nets.calls import NetCall

__all__ = ["Graphs", "default_limit_bytes"]


def default_limit_bytes(device: torch.device) -> int:
    """A quarter of a GPU's memory; on a CPU 1 GiB."""
    if device.type != "cuda":
        return 2**30
    return int(torch.cuda.get_device_properties(device).total_memory) // 4


class Graphs(Runner):
    """Calls recorded and replayed, the least recently used let go of beyond `limit_bytes`.

    An argument is copied to where the recording reads it, unless it is the very tensor, unchanged, that was copied
    there last, or already is what another recording here writes: skips are read where the encoder left them. A
    network whose weights have moved is recorded anew. After an error everything is let go of. On a CPU a trace stands
    in for the graph (`TracedRecording`).
    """

    overwrites = True

    def __init__(
        self,
        device: torch.device,
        *,
        limit_bytes: int | None = None,
        streams: Streams | None = None,
        compiler: Compiler | None = None,
        choosing: Callable[[], AbstractContextManager[Any]] = nullcontext,
        formats: Formats | None = None,
    ) -> None:
        """`compiler` is applied to what is recorded, `choosing` surrounds the recording, `formats` is asked before."""
        super().__init__(Streams(device) if streams is None else streams)
        self.limit_bytes = default_limit_bytes(device) if limit_bytes is None else limit_bytes
        self._device = device
        self._compiler, self._choosing, self._formats = compiler, choosing, formats
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._written: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
        self._turn = 0

    def __repr__(self) -> str:
        return f"Graphs({self._device}, {len(self)} recorded, {self.bytes / 2**20:.0f} MiB)"

    def __len__(self) -> int:
        """Recordings held."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """What all recordings take, weights and what the networks are given not counted."""
        return sum(entry.bytes for entry in self._entries.values())

    def capture(self, call: Call) -> Callable[..., Any]:
        """`call` as a callable of the same signature that is recorded and replayed."""
        return partial(self, call)

    @torch.no_grad()
    def __call__(self, call: Call, *arguments: Any, place: Hashable = 0) -> Any:
        """`call(*arguments)`, in memory that the next replay of the same call overwrites."""
        tensors, form = flatten(arguments)
        key = (call, place, form, signature(tensors))
        with self._there():
            try:
                entry = self._entries.get(key)
                if entry is not None and entry.call is not None and entry.is_stale():
                    self._drop_of([entry.call.net])
                    entry = None  # its memory serves the next
                if entry is None:
                    self._entries[key] = entry = self._recorded(call, form, tensors)
                    self._shrink(key)
                self._entries.move_to_end(key)
                self._turn += 1
                entry.feed(tensors, self._written)
                entry.recording.replay()
            except BaseException:
                self.drop()
                raise
        return entry.result

    def _recorded(self, call: Call, form: tuple[Any, ...], tensors: Sequence[Tensor]) -> _Entry:
        work, forms = flat(call, form)
        work(*tensors)
        (out_form,) = forms  # from plain Python, before a compiler has its way with it
        inputs = [t if self._is_written(t) else t.detach().clone() for t in tensors]
        kind = CudaRecording if self._device.type == "cuda" else TracedRecording
        with self._choosing():
            recording: Recording = kind(work if self._compiler is None else self._compiler(work), inputs)
        for output in recording.outputs:
            self._written[id(output)] = output
        result = build(out_form, iter(recording.outputs))
        copied = [held for held, given in zip(inputs, tensors, strict=True) if held is not given]
        held_bytes = sum(t.nbytes for t in (*copied, *recording.outputs)) + recording.pool_bytes
        net_call = call if isinstance(call, NetCall) else None
        return _Entry(recording, inputs, result, held_bytes, net_call)

    def _is_written(self, tensor: Tensor) -> bool:
        return self._written.get(id(tensor)) is tensor

    def _shrink(self, newest: Hashable) -> None:
        while self.bytes > self.limit_bytes and len(self._entries) > 1:
            oldest = next(key for key in self._entries if key != newest)
            del self._entries[oldest]

    def settle(self, nets: Iterable[Any], work: Callable[[], Any], question: Hashable) -> None:
        """Bring `nets` into the memory format in which `work`, which runs them, is fastest."""
        if self._formats is not None:
            nets = list(nets)
            with self._there():  # where its clock has to look
                self._formats.settle(nets, work, question, partial(self._drop_of, nets))

    def _drop_of(self, nets: Sequence[Any]) -> None:
        """Let go of what was recorded of these networks."""
        for key, entry in list(self._entries.items()):
            if entry.call is not None and any(entry.call.net is net for net in nets):
                del self._entries[key]
        self._recorded_anew()

    def _recorded_anew(self) -> None:
        self._turn += 1
        if self.streams is not None:
            self.streams.drop()

    def _there(self) -> AbstractContextManager[Any]:
        """Inside, a GPU's own streams, events and memory are meant."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def until_next(self) -> Callable[[], bool]:
        """Something that says whether nothing has been replayed since."""
        turn = self._turn
        return lambda: self._turn == turn

    def drop(self) -> None:
        """Let go of every recording and its memory."""
        self._entries.clear()
        self._recorded_anew()


class _Entry:
    def __init__(
        self, recording: Recording, inputs: list[Tensor], result: Any, held_bytes: int, call: NetCall | None
    ) -> None:
        self.recording, self.result, self.bytes, self.call = recording, result, held_bytes, call
        weight = None if call is None else call.weight
        # Held, so that no other is ever at its address; a network's weights move together.
        self._weight = None if weight is None else weight.detach()
        self._inputs = inputs
        self._last: list[tuple[weakref.ref[Tensor], int] | None] = [None] * len(inputs)

    def is_stale(self) -> bool:
        """Whether the weights have moved (another runner changed their format, say): a replay reads where they were."""
        weight = None if self.call is None else self.call.weight
        return (
            weight is not None and self._weight is not None and weight.data_ptr() != self._weight.data_ptr()
        )

    def feed(self, tensors: Sequence[Tensor], written: weakref.WeakValueDictionary[int, Tensor]) -> None:
        """Copy what is not there yet."""
        for k, (held, given) in enumerate(zip(self._inputs, tensors, strict=True)):
            if held is given:
                continue
            last = self._last[k]
            if last is not None and last[0]() is given and last[1] == given._version:
                continue
            held.copy_(given, non_blocking=True)
            # A replay writes past the version counter, so what it wrote is copied every time.
            is_written = written.get(id(given)) is given
            self._last[k] = None if is_written else (weakref.ref(given), given._version)
