"""OpenVino: every call is compiled when it is first seen with tensors of its shapes, and run by OpenVINO."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import ResourceError, WeightsError
from rawdiff.graphs import Runner
from rawdiff.graphs.runner import Call
from rawdiff.graphs.tree import flatten
from rawdiff.nets import calls
from rawdiff.nets.controlnet import Residuals
from rawdiff.openvino import package
from rawdiff.openvino.compile import Compiled
from rawdiff.openvino.convert import convert, key_of, parts_of, weights_of
from rawdiff.openvino.store import Store
from rawdiff.say import Say, say_on_stderr
from rawdiff.weights import free_bytes

__all__ = ["OpenVino"]

Build = Callable[[Sequence[Tensor]], Any]


def _only(found: Sequence[Tensor]) -> Tensor:
    (tensor,) = found
    return tensor


def _skips_and_middle(found: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
    return tuple(found[:-1]), found[-1]


KNOWN: dict[type, tuple[str, Build]] = {
    calls.UNetEncode: ("the UNet's first half", _skips_and_middle),
    calls.UNetDecode: ("the UNet's second half", _only),
    calls.ControlResiduals: ("a ControlNet", lambda found: Residuals(*_skips_and_middle(found))),
    calls.DecodePicture: ("the VAE's decoder", _only),
    calls.EncodePicture: ("the VAE's encoder", _only),
}
"""Calls that are run: how a line names them, and the form in which they give their results."""


class OpenVino(Runner):
    """Calls converted once (`Store`), compiled for each shape, and compiled anew when their weights have changed.

    Threads are as many as torch has. Compiled calls hold weights of their own: beyond `limit_bytes`, by default half
    of the memory that is free now, the least recently used are let go of, but none that the evaluation at hand has
    used.
    """

    def __init__(
        self, *, store: Store | None = None, limit_bytes: int | None = None, say: Say = say_on_stderr
    ) -> None:
        """Raises UsageError where the openvino package is missing."""
        super().__init__()
        self._core = package.load().Core()
        self.made_with = f"openvino {package.version()}"
        self.store = Store() if store is None else store
        free = free_bytes(torch.device("cpu"))
        half = math.inf if free is None else free / 2
        self.limit_bytes = half if limit_bytes is None else limit_bytes
        self.conversions = self.compilations = 0
        """How often each was done."""
        self._say = say
        self._entries: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
        self._turn = self._begun = 0
        self._is_told = False

    def __repr__(self) -> str:
        return f"OpenVino({len(self)} compiled, {self.bytes / 2**20:.0f} MiB)"

    def __len__(self) -> int:
        """Compiled calls held."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """About what the compiled calls take."""
        return sum(entry.compiled.bytes for entry in self._entries.values())

    @torch.no_grad()
    def __call__(self, call: Call, *arguments: Any, place: Hashable = 0) -> Any:
        """`call(*arguments)`, one of `rawdiff.nets.calls`; raises WeightsError where OpenVINO cannot convert it."""
        tensors, form = flatten(arguments)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        key = (call, form, shapes, torch.get_num_threads())
        entry = self._entries.get(key)
        if entry is None or entry.is_stale():
            changed = self._entries.pop(key, None) is not None
            del entry
            entry = self._made(call, form, tensors, changed)
            self._entries[key] = entry
            self._shrink()
        self._turn += 1
        entry.turn = self._turn
        self._entries.move_to_end(key)
        _, build = KNOWN[type(call)]
        return build(entry.compiled(tensors))

    def more_bytes(self, nets: Iterable[Any]) -> int:
        """The weights of those that nothing is compiled of: a compiled call lays them out anew."""
        held = {id(key[0].net) for key in self._entries}
        return sum(w.nbytes for net in nets if id(net) not in held for w in net.parameters())

    def stage(self, nets: Iterable[Any]) -> None:
        """The networks of an evaluation are about to run: what is used from here on is kept until the next."""
        self._begun = self._turn

    def drop(self) -> None:
        """Let go of everything compiled."""
        self._entries.clear()

    def _made(self, call: Call, form: tuple[Any, ...], tensors: Sequence[Tensor], changed: bool) -> _Entry:
        net: Any = call.net  # type: ignore[attr-defined]
        weights = weights_of(net)
        self._tell_precision(next(iter(weights.values())).dtype)
        model = self._converted(call, form, tensors)
        begun = time.perf_counter()
        stamp = _stamp(weights.values())
        made = Compiled(self._core, model, weights, tensors, torch.get_num_threads())
        self.compilations += 1
        if changed:
            taken = time.perf_counter() - begun
            self._say(f"openvino: compiled {KNOWN[type(call)][0]} for its changed weights in {taken:.1f} s")
        return _Entry(made, list(weights.values()), stamp)

    def _converted(self, call: Call, form: tuple[Any, ...], tensors: Sequence[Tensor]) -> Any:
        """The call as OpenVINO's operations, from the store, or converted and put there."""
        if type(call) not in KNOWN:
            raise WeightsError(
                f"openvino: {type(call).__name__} is no call that it knows: take backend torch"
            )
        key = key_of(call, form, tensors)
        kept = self.store.get(key)
        if kept is not None:
            return self._core.read_model(*kept)
        begun = time.perf_counter()
        parts = parts_of(convert(call, form, tensors))
        self.conversions += 1
        where = f"kept in {self.store.folder}"
        try:
            self.store.put(key, *parts)
        except ResourceError as error:
            where = f"not kept: {error}"
        taken = time.perf_counter() - begun
        self._say(f"openvino: converted {KNOWN[type(call)][0]} in {taken:.1f} s, {where}")
        return self._core.read_model(*parts)

    def _tell_precision(self, dtype: torch.dtype) -> None:
        if dtype == torch.bfloat16 and not self._is_told:
            self._is_told = True
            if "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                self._say("openvino: this CPU has no bf16: computing in fp32, with weights in bf16")

    def _shrink(self) -> None:
        for key in list(self._entries)[:-1]:
            if self.bytes <= self.limit_bytes:
                return
            if self._entries[key].turn <= self._begun:
                del self._entries[key]


class _Entry:
    """A compiled call, and the weights that it was compiled with as they were."""

    def __init__(self, compiled: Compiled, weights: Sequence[Tensor], stamp: tuple[int, int]) -> None:
        self.compiled, self.turn = compiled, 0
        self._weights, self._stamp = weights, stamp

    def is_stale(self) -> bool:
        """Whether a weight was changed in place since, or has moved."""
        return _stamp(self._weights) != self._stamp


def _stamp(weights: Iterable[Tensor]) -> tuple[int, int]:
    """Torch's counters of changes, which only rise, and where the weights lie."""
    held = list(weights)
    counted = sum(weight._version for weight in held if not weight.is_inference())
    return counted, hash(tuple(weight.data_ptr() for weight in held))
