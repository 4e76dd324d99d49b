"""Tables that have been read off before: every run of a batch, and every run of a bench, has the same one."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch

from rawdiff.sampler.table import SamplerTable

__all__ = ["kept"]

_MOST = 32
_MOST_ROWS = 200
"""Of a table that is kept: its three matrices are then 1 MB; of 1,000 rows they are 24."""
_CODE = (FunctionType, classmethod, staticmethod, property)

_tables: OrderedDict[Hashable, SamplerTable] = OrderedDict()


class _Unknown(Exception):
    """A value of which it is not known what it does."""


def kept(scheduler: Any, settings: tuple[Any, ...], make: Callable[[], SamplerTable]) -> SamplerTable:
    """What `make` gives, made once for each scheduler of the same class and state, and each `settings`.

    Only for diffusers' own classes, as their methods and attributes are now: one that is replaced is noticed, what it
    calls outside them is not. A class of one's own is tabled each time, and so is a scheduler that holds anything but
    numbers, texts, arrays and collections of them (SA-Solver holds a function). The result is the caller's own but for
    its arrays and rows, which are read-only.
    """
    kind = type(scheduler)
    try:
        if not kind.__module__.startswith("diffusers."):
            raise _Unknown(kind.__module__)
        key = (kind, tuple(_code(kind)), _frozen(vars(scheduler)), _frozen(settings))
        found = _tables.pop(key, None)
    except (_Unknown, TypeError, RuntimeError):  # no key, a tensor without bytes, a list in itself
        return make()
    found = found or make()
    if len(found.rows) <= _MOST_ROWS:
        _tables[key] = found  # the last used at the end
        if len(_tables) > _MOST:
            _tables.popitem(last=False)
    return copy.copy(found)


def _code(kind: type) -> Iterator[Hashable]:
    """What a scheduler of this class has of its classes."""
    for base in kind.__mro__[:-1]:
        yield base
        for name, value in vars(base).items():
            if isinstance(value, _CODE):
                yield name, value
            elif not name.startswith("__"):  # no __doc__ and the like
                yield name, _frozen(value)


def _frozen(value: Any) -> Hashable:
    """The value as a key: equal where the values are the same to the last bit (NaN too), of the same types."""
    if value is None or isinstance(value, (bool, int, str, torch.dtype, torch.device)):
        return type(value), value
    if isinstance(value, float):
        return type(value), value.hex()
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return "tensor", value.dtype, str(value.device), tuple(value.shape), data
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return "array", value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return "mapping", tuple((_frozen(name), _frozen(held)) for name, held in value.items())
    if isinstance(value, (list, tuple)):
        return "list", tuple(map(_frozen, value))
    raise _Unknown(type(value).__name__)
