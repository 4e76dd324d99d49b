"""Work recorded once and replayed without Python, as a CUDA graph.

It reads inputs and writes outputs at addresses that never change, and goes on with every Python number that there
was when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

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
        stream = new_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries set up, compile or measure, they do here
            for _ in range(WARM_UPS):
                shapes = work(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.outputs = [torch.empty_like(found) for found in shapes]
        del shapes
        self._inputs = list(inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            before = torch.cuda.memory_reserved()
            torch._foreach_copy_(self.outputs, work(*inputs))
        self.pool_bytes = max(0, torch.cuda.memory_reserved() - before)

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()
