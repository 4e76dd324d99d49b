"""A watch over the host: on a CPU too, an error where a GPU would have to be waited for."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["HostWaits", "NoSync"]

ATEN = torch.ops.aten
WAITING = {
    ATEN._local_scalar_dense,  # item(), float(), bool(), a branch on a tensor
    ATEN.equal,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN.unique_dim,
    ATEN._unique2,
    ATEN.is_nonzero,
    ATEN.repeat_interleave.Tensor,
}
READING = {
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.cpu,
    torch.Tensor.item,
    torch.Tensor.__array__,
}


class HostWaits(AssertionError):
    """The host would wait for the device."""


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING or func.overloadpacket in WAITING:
            raise HostWaits(str(func))
        return func(*args, **(kwargs or {}))


class _Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READING:
            raise HostWaits(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class NoSync:
    """Inside it, whatever reads a tensor's numbers on the host raises HostWaits."""

    def __enter__(self) -> None:
        self._modes = (_Function(), _Dispatch())
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
