"""Kernels that a step launches: counted by the profiler on a GPU, elsewhere by the operations that compute.

An operation that only looks at memory differently, or asks for some, launches nothing and is not counted. A GPU's
library may take two kernels for one operation (a convolution and its bias), so its own count is a little higher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rawdiff.conditions import Conditions, Context
from rawdiff.plan import Plan
from rawdiff.predict import Exact, prepare
from scripts.speed.flops import META

__all__ = ["diffusers_step", "kernels", "operations", "our_steps"]

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


def diffusers_step(
    unet: Any, nets: Sequence[Any], size: tuple[int, int], device: torch.device = META
) -> Callable[[], Any]:
    """One evaluation as diffusers' pipelines make it: both halves, every net, its hint embedded again, guidance."""
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

    dtype, (height, width) = unet.dtype, size
    x = torch.empty(1, 4, height // 8, width // 8, device=device, dtype=dtype)
    text = torch.empty(2, 77, 768, device=device, dtype=dtype)
    hints = [torch.empty(2, 3, height, width, device=device, dtype=dtype) for _ in nets]
    t = torch.zeros((), device=device, dtype=torch.int64)

    def step() -> Any:
        both, residuals = torch.cat([x, x]), {}
        if nets:
            scales = [1.0] * len(nets)
            several = MultiControlNetModel(list(nets))
            call: Any = nets[0] if len(nets) == 1 else several
            given = (hints[0], 1.0) if len(nets) == 1 else (hints, scales)
            down, middle = call(both, t, text, *given, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        uncond, cond = unet(both, t, encoder_hidden_states=text, return_dict=False, **residuals)[0].chunk(2)
        return uncond + 7.5 * (cond - uncond)

    return step


def our_steps(
    plan: Plan,
    unet: Any,
    nets: Sequence[Any],
    size: tuple[int, int],
    exact: Exact,
    device: torch.device = META,
) -> Iterator[tuple[Callable[[], Any], int]]:
    """The same by our loop: a row for each set of active nets, and how many rows of the plan have that set."""
    dtype, (height, width) = unet.dtype, size
    text = torch.empty(1, 77, 768, device=device, dtype=dtype)
    hints = tuple(torch.empty(1, 3, height, width, device=device) for _ in nets)
    predict = prepare(plan, Conditions((Context(text, text),), hints), unet, nets, exact=exact)
    x = torch.empty(1, 4, height // 8, width // 8, device=device)
    alike = Counter(tuple(weight != 0.0 for weight in row.control) for row in plan.rows)
    for active, count in alike.items():
        row = next(row for row in plan.rows if tuple(weight != 0.0 for weight in row.control) == active)
        yield partial(predict, x, row), count
