"""How a CUDA graph is captured, in which order and on which stream: held to a stand-in for torch.cuda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff.graphs import Graphs, Streams
from rawdiff.graphs.record import CudaRecording
from rawdiff.probes import Probe


class Stream:
    def __init__(self, device: int = 0) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        pass


class Gpus:
    """The current device and stream, cuBLAS's workspaces by stream, and what was captured with which."""

    def __init__(self) -> None:
        self.device = 0
        self.current = Stream()
        self.pool = [Stream() for _ in range(2)]  # few, and given out again and again
        self.given = 0
        self.workspaces: dict[Stream, object] = {}
        self.captured: list[tuple[Stream, object]] = []
        self.capturing = self.fails = False

    def new_stream(self) -> Stream:
        self.given += 1
        return self.pool[self.given % len(self.pool)]

    def multiply(self) -> None:
        """What a matrix product does to its stream's workspace."""
        used = self.workspaces.setdefault(self.current, object())
        if self.capturing:
            self.captured.append((self.current, used))

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def on(self, device: Any) -> Iterator[None]:
        before, self.device = self.device, torch.device(device).index or 0
        try:
            yield
        finally:
            self.device = before

    @contextmanager
    def graph(
        self, graph: object, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        """As torch's: what goes wrong at the end of a capture leaves its stream the current one."""
        before, self.current = self.current, self.pool[0] if stream is None else stream
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.current = before


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    found = Gpus()
    stand_ins = {
        "current_stream": lambda device=None: (
            found.current if device is None else Stream(torch.device(device).index)
        ),
        "stream": found.stream,
        "device": found.on,
        "graph": found.graph,
        "CUDAGraph": object,
        "synchronize": lambda device=None: None,
        "memory_reserved": lambda: 0,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", found.workspaces.clear, raising=False)
    monkeypatch.setattr("rawdiff.graphs.record.new_stream", found.new_stream)
    return found


def record(gpus: Gpus) -> None:
    def work(x: Tensor) -> list[Tensor]:
        gpus.multiply()
        return [x + 1]

    CudaRecording(work, [torch.ones(2)])


def test_no_two_graphs_share_a_workspace(gpus: Gpus) -> None:
    """They are replayed side by side, and one may be let go of; nor is any that eager work uses captured."""
    gpus.multiply()
    for _ in range(6):
        record(gpus)
        gpus.multiply()
    used = [workspace for _, workspace in gpus.captured]
    assert len(set(map(id, used))) == len(used) == 6
    assert not any(workspace in used for workspace in gpus.workspaces.values())


def test_it_is_captured_where_it_was_warmed_up(gpus: Gpus) -> None:
    """Torch's own stream for captures is of the device that was the first to have one."""
    record(gpus)
    assert gpus.captured[0][0] is gpus.pool[gpus.given % len(gpus.pool)]


def test_a_capture_that_fails_leaves_the_stream_as_it_was(gpus: Gpus) -> None:
    before, gpus.fails = gpus.current, True
    with pytest.raises(RuntimeError, match="during capture"):
        record(gpus)
    assert gpus.current is before
    assert gpus.workspaces == {}


def test_formats_are_timed_on_the_device_that_draws(gpus: Gpus) -> None:
    seen: list[int] = []

    class Formats:
        def settle(self, nets: Any, work: Any, drop: Any) -> None:
            seen.append(gpus.device)

    device: Any = torch.device("cuda", 1)
    formats: Any = Formats()
    graphs = Graphs(device, limit_bytes=1, streams=Streams(torch.device("cpu")), formats=formats)
    graphs.settle([], lambda: None)
    assert seen == [1]
    assert gpus.device == 0


def test_spans_are_recorded_on_the_device_that_draws(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            pass

        def record(self, stream: Stream | None = None) -> None:
            seen.append(gpus.device if stream is None else stream.device)

        def elapsed_time(self, last: Event) -> float:
            return 1.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    probe = Probe("cuda:1")
    with probe("step"):
        pass
    assert seen == [1, 1]
    assert probe.tree().children["step"].total_ms == 1.0
