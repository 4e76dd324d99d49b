"""Calls through torch.compile where nothing is captured: on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from rawdiff.graphs.runner import Call, Runner
from rawdiff.graphs.tree import build, flatten, signature

__all__ = ["Compiled", "Compiler", "flat"]

Flat = Callable[..., list[Tensor]]
Compiler = Callable[[Flat], Flat]


def flat(call: Call, form: tuple[Any, ...]) -> tuple[Flat, list[tuple[Any, ...]]]:
    """`call` as a function of tensors to tensors; the list will hold the form of its result once it has been run."""
    forms: list[tuple[Any, ...]] = []

    def work(*tensors: Tensor) -> list[Tensor]:
        found, out_form = flatten(call(*build(form, iter(tensors))))
        forms[:] = [out_form]
        return found

    return work, forms


class Compiled(Runner):
    """Every call compiled when it is first seen with tensors of its shapes."""

    def __init__(self, compiler: Compiler) -> None:
        super().__init__()
        self._compiler = compiler
        self._known: dict[Hashable, tuple[Flat, tuple[Any, ...]]] = {}

    def __call__(self, call: Call, *arguments: Any, place: Hashable = 0) -> Any:
        """`call(*arguments)`."""
        tensors, form = flatten(arguments)
        key = (call, form, signature(tensors))
        if key not in self._known:
            work, forms = flat(call, form)
            work(*tensors)
            self._known[key] = self._compiler(work), forms[0]
        work, out_form = self._known[key]
        return build(out_form, iter(work(*tensors)))

    def drop(self) -> None:
        """Forget what was compiled."""
        self._known.clear()
