"""eager, graph or compile: the runner that a device gets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import UsageError
from rawdiff.graphs.cache import Graphs
from rawdiff.graphs.choices import Keeper, cuda_clock
from rawdiff.graphs.compiled import Compiled
from rawdiff.graphs.formats import Formats
from rawdiff.graphs.frugal import Frugal
from rawdiff.graphs.kernels import Kernels
from rawdiff.graphs.runner import EAGER, Runner
from rawdiff.graphs.streams import Streams
from rawdiff.limits import MEMORIES, SPEEDS
from rawdiff.nets import attention

__all__ = ["make_runner"]


def make_runner(
    speed: str | None,
    device: torch.device,
    memory: str | None = None,
    *,
    side_by_side: bool | None = None,
    limit_bytes: int | None = None,
    keeper: Keeper | None = None,
) -> Runner:
    """The runner for "eager", "graph" or "compile" on a device, and for "normal" or "low" memory.

    None is the best that keeps nobody waiting for a compiler: graphs on CUDA, eager elsewhere. `side_by_side` settles
    whether ControlNets run beside the UNet's first half, which is else measured for each shape; what is measured on a
    GPU is kept by `keeper`. Raises UsageError.
    """
    if memory not in (None, *MEMORIES):
        raise UsageError(f"memory {str(memory)[:40]!r}: expected {' or '.join(MEMORIES)}")
    if memory == "low":
        if speed not in (None, "eager"):
            raise UsageError(
                f"speed {speed} with memory low: recorded work takes memory: leave one of them out"
            )
        return Frugal(device)
    if speed is None:
        speed = "graph" if device.type == "cuda" else "eager"
    if speed not in SPEEDS:
        raise UsageError(f"speed {str(speed)[:40]!r}: expected {', '.join(SPEEDS)}")
    if speed == "graph" and device.type != "cuda":
        raise UsageError(f"speed graph: CUDA graphs need a GPU, and this runs on {device}: take eager")
    if speed == "eager":
        if device.type != "cuda":
            return EAGER
        return Runner(Streams(device, side_by_side=side_by_side, keeper=keeper, speed=speed))
    if device.type != "cuda":
        return Compiled(partial(compiled, mode="default"))
    streams = Streams(device, side_by_side=side_by_side, keeper=keeper, speed=speed)
    if speed == "compile":  # its own cudagraphs would clash with ours
        mode = "max-autotune-no-cudagraphs"
        return Graphs(
            device,
            limit_bytes=limit_bytes,
            streams=streams,
            compiler=partial(compiled, mode=mode),
            formats=Formats(None),
        )
    return Graphs(
        device,
        limit_bytes=limit_bytes,
        streams=streams,
        choosing=partial(attention.using, Kernels(keeper=keeper)),
        formats=Formats(cuda_clock, keeper=keeper),
    )


_numbers = itertools.count()


def compiled(work: Callable[..., list[Tensor]], **options: Any) -> Callable[..., list[Tensor]]:
    """`work` through torch.compile, in one piece for fixed shapes.

    Its code is copied: torch counts how often one piece of code is compiled, and gives up after a few.
    """
    assert isinstance(work, FunctionType)
    code = work.__code__.replace(co_name=f"work_{next(_numbers)}")
    own = FunctionType(code, work.__globals__, code.co_name, work.__defaults__, work.__closure__)
    made: Callable[..., list[Tensor]] = torch.compile(own, fullgraph=True, dynamic=False, **options)
    return made
