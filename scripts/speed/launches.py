"""Kernels that a step launches: counted by the profiler on a GPU, elsewhere by the operations that compute.

An operation that only looks at memory differently, or asks for some, launches nothing and is not counted. A GPU's
library may take two kernels for one operation (a convolution and its bias), so its own count is a little higher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["kernels", "operations"]

_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        looks = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not looks and name.rstrip("_") not in _NOTHING
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def operations(work: Callable[[], Any]) -> int:
    """How many operations of `work` compute something; on the meta device nothing is computed."""
    with _Counter() as counter:
        work()
    return counter.count


@torch.no_grad()
def kernels(work: Callable[[], Any]) -> int:
    """How many kernels `work` launches on a GPU, copies and fills among them."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in found.events())
