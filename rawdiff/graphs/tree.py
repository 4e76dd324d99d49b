"""Arguments and results as flat lists of tensors, with a form from which they are built again."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Holder", "build", "flatten", "signature"]


@runtime_checkable
class Holder(Protocol):
    """An object made of tensors and a fixed form (the text's keys and values, say)."""

    @property
    def form(self) -> Hashable: ...

    def tensors(self) -> Sequence[Tensor]: ...

    @classmethod
    def rebuilt(cls, form: Any, tensors: Sequence[Tensor]) -> Any: ...


Form = tuple[Any, ...]


def flatten(value: Any) -> tuple[list[Tensor], Form]:
    """The tensors of `value`, and its form, which can be hashed.

    Tensors, tuples, lists, Holders, None, bool, int and str. A float is refused (TypeError): recorded work would go on
    with it when it has long changed. Give a tensor instead.
    """
    match value:
        case Tensor():
            return [value], ("tensor",)
        case None | bool() | int() | str():
            return [], ("constant", type(value), value)
        case tuple() | list():
            parts = [flatten(item) for item in value]
            tensors = [tensor for part, _ in parts for tensor in part]
            return tensors, ("sequence", type(value), *(form for _, form in parts))
        case Holder():
            held = list(value.tensors())
            return held, ("holder", type(value), value.form, len(held))
        case _:
            raise TypeError(
                f"a {type(value).__name__} cannot be an argument of recorded work: a replay would not see it "
                "change; give a tensor"
            )


def build(form: Form, tensors: Iterator[Tensor]) -> Any:
    """The value of this form over the next of `tensors`."""
    match form:
        case ("tensor",):
            return next(tensors)
        case ("constant", _, value):
            return value
        case ("holder", kind, inner, count):
            return kind.rebuilt(inner, [next(tensors) for _ in range(count)])
        case ("sequence", kind, *parts):
            items = [build(part, tensors) for part in parts]
            return kind(*items) if hasattr(kind, "_fields") else kind(items)
    raise TypeError(f"unknown form {form[0]!r}")


def signature(tensors: Sequence[Tensor]) -> tuple[Hashable, ...]:
    """What of the tensors is fixed in recorded work: all but their addresses and numbers."""
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
