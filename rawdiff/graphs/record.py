"""Work recorded once and replayed without Python, as a CUDA graph.

It reads inputs and writes outputs at addresses that never change, and goes on with every Python number that there
was when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from rawdiff.graphs.choices import new_stream

__all__ = ["CudaRecording", "Recording"]

Flat = Callable[..., list[Tensor]]
"""Tensors to tensors."""

WARM_UPS = 2


class Recording(Protocol):
    """What a CUDA graph and its stand-in on a CPU (`trace`) both are."""

    outputs: list[Tensor]
    pool_bytes: int
    """What a replay needs beside inputs and outputs."""

    def replay(self) -> None:
        """Write the outputs from what is in the inputs now."""
        ...


class CudaRecording:
    """A CUDA graph of `work`, with memory of its own to work in.

    Graphs may run at the same time, and one may be let go of while others stay: hence no shared pool. Outputs are
    copied, inside the graph, to memory outside that pool, where no other graph can touch them.
    """

    def __init__(self, work: Flat, inputs: Sequence[Tensor]) -> None:
        current, stream = torch.cuda.current_stream(), new_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # what libraries set up, compile or measure, they do here
            for _ in range(WARM_UPS):
                shapes = work(*inputs)
        current.wait_stream(stream)
        torch.cuda.synchronize()
        self.outputs = [torch.empty_like(found) for found in shapes]
        del shapes
        self._inputs = list(inputs)
        self._graph = torch.cuda.CUDAGraph()
        pool: Any = torch.cuda.graph_pool_handle()
        options: dict[str, Any] = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        capture = torch.cuda.graph(self._graph, **options)
        # A capture that fails leaves its stream the current one: the outer context does not.
        with torch.cuda.stream(current), _own_workspaces(), _closed_on_error(pool), capture:
            before = torch.cuda.memory_reserved()
            torch._foreach_copy_(self.outputs, work(*inputs))
        self.pool_bytes = max(0, torch.cuda.memory_reserved() - before)

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Inside, what is captured takes cuBLAS's working memory from its own pool.

    torch keeps one for each stream, and gives out few streams: two graphs captured on the same would write into the
    same memory when they are replayed side by side, and one let go of would take it from the other.
    """
    clear = torch._C._cuda_clearCublasWorkspaces
    clear()
    try:
        yield
    finally:
        clear()


@contextmanager
def _closed_on_error(pool: tuple[int, int]) -> Iterator[None]:
    """Inside, a capture that CUDA calls invalid gives its pool back.

    Torch does so only where a capture has ended well: then allocation from the pool ends, and the pool goes with the
    graph. So where something else was raised inside, the first call says that nothing is allocated from it any more.
    """
    try:
        yield
    except BaseException:
        device = torch.cuda.current_device()
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
        raise
