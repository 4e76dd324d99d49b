"""Tables that have been read off before: every run of a batch, and every run of a bench, has the same one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch

from rawdiff.sampler.table import SamplerTable

__all__ = ["kept"]

_MOST = 32
_tables: OrderedDict[Hashable, SamplerTable] = OrderedDict()


class _Unknown(Exception):
    """A value of which it is not known what it does."""


def kept(scheduler: Any, settings: tuple[Any, ...], make: Callable[[], SamplerTable]) -> SamplerTable:
    """What `make` gives, made once for each scheduler of the same class, code and state, and each `settings`.

    A scheduler that holds anything but numbers, texts, arrays and collections of them is tabled each time.
    """
    kind = type(scheduler)
    try:
        key = (kind, kind.step, _frozen(vars(scheduler)), _frozen(settings))
    except (_Unknown, AttributeError, TypeError):
        return make()
    found = _tables.pop(key, None) or make()
    _tables[key] = found  # the last used at the end
    if len(_tables) > _MOST:
        _tables.popitem(last=False)
    return found


def _frozen(value: Any) -> Hashable:
    """The value as a key: equal where the values are equal, of the same types."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return type(value), value
    if isinstance(value, torch.Tensor):
        return "tensor", value.dtype, str(value.device), tuple(value.shape), tuple(value.flatten().tolist())
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return "mapping", tuple((_frozen(name), _frozen(held)) for name, held in value.items())
    if isinstance(value, (list, tuple)):
        return "list", tuple(map(_frozen, value))
    raise _Unknown(type(value).__name__)
