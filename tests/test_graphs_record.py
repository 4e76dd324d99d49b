"""How a CUDA graph is captured, in which order and on which stream: held to a stand-in for torch.cuda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff.graphs import Graphs, Group, Streams
from rawdiff.graphs.choices import CALLS, kernel_clock
from rawdiff.graphs.record import CudaRecording
from rawdiff.probes import NO_PROBE, Probe


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
        self.handles = 0
        self.allocating: set[tuple[int, int]] = set()
        self.uses: dict[tuple[int, int], int] = {}

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

    def handle(self) -> tuple[int, int]:
        self.handles += 1
        return 0, self.handles

    def end_allocation(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating.remove(pool)

    def release(self, device: int, pool: tuple[int, int]) -> None:
        self.uses[pool] -= 1

    @contextmanager
    def graph(
        self,
        graph: object,
        pool: tuple[int, int],
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        """As torch's: what goes wrong at the end of a capture leaves its stream the current one, and its pool open."""
        before, self.current = self.current, self.pool[0] if stream is None else stream
        self.capturing = True
        self.allocating.add(pool)
        self.uses[pool] = 1
        try:
            yield
        finally:
            self.capturing = False
            if self.fails:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.end_allocation(self.device, pool)
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
        "graph_pool_handle": found.handle,
        "current_device": lambda: found.device,
        "synchronize": lambda device=None: None,
        "memory_reserved": lambda: 0,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", found.workspaces.clear, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", found.end_allocation)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", found.release)
    for module in ("record", "streams"):
        monkeypatch.setattr(f"rawdiff.graphs.{module}.new_stream", found.new_stream)
    return found


def record(gpus: Gpus, *, raising: bool = False) -> None:
    def work(x: Tensor) -> list[Tensor]:
        gpus.multiply()
        if raising and gpus.capturing:
            raise KeyError("of the work's own")
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


def test_the_pool_of_an_invalid_capture_is_closed_and_let_go_of(gpus: Gpus) -> None:
    gpus.fails = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="during capture"):
            record(gpus)
    assert gpus.allocating == set()
    assert gpus.uses == {(0, 1): 0, (0, 2): 0}


def test_a_pool_whose_capture_ended_is_the_graphs(gpus: Gpus) -> None:
    """The graph lets go of it with itself: twice would be once too often."""
    record(gpus)
    with pytest.raises(KeyError):
        record(gpus, raising=True)
    assert gpus.allocating == set()
    assert gpus.uses == {(0, 1): 1, (0, 2): 1}


@pytest.mark.parametrize("name", ["_cuda_endAllocateToPool", "_cuda_releasePool"])
def test_torch_has_what_closes_a_pool(name: str) -> None:
    """Of a build without CUDA it says that this version of torch knows the name."""
    assert callable(getattr(torch._C, name))


def test_after_a_drop_works_are_captured_in_turn_and_measured_by_kind(gpus: Gpus) -> None:
    """Side by side they would be captured side by side; what was faster stays known, for what it was measured of."""
    asked: list[str] = []
    clock_ms = iter([1.0, 3.0, 2.0] * 20)

    def clock(work: Any) -> float:
        work()
        return next(clock_ms)

    streams = Streams(torch.device("cuda"), clock=clock)
    works: list[Any] = [lambda probe, k=k: asked.append(f"{k} on {gpus.current is home}") for k in range(2)]
    home, group = gpus.current, Group(("channels first", 8), (1, 2))
    streams.together(works, NO_PROBE, group)
    assert asked[:2] == ["0 on True", "1 on True"]
    measured = len(asked)
    asked.clear()
    streams.together(works, NO_PROBE, group)
    assert len(asked) == 2 < measured
    streams.drop()
    asked.clear()
    streams.together(works, NO_PROBE, group)
    assert len(asked) == 4
    assert asked[:2] == ["0 on True", "1 on True"]
    asked.clear()
    streams.together(works, NO_PROBE, Group(("channels last", 8), (1, 2)))
    assert len(asked) == measured


def test_kernels_are_timed_and_not_their_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU sleeps until all calls are queued."""
    seen: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            pass

        def record(self) -> None:
            seen.append("event")

        def synchronize(self) -> None:
            seen.append("wait")

        def elapsed_time(self, last: Event) -> float:
            return 5.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: seen.append("sleep"))
    assert kernel_clock(lambda: seen.append("work")) == pytest.approx(5.0 / CALLS)
    assert seen == ["wait", "sleep", "event", *["work"] * CALLS, "event", "wait"]
    assert CALLS > 1


def test_formats_are_timed_on_the_device_that_draws(gpus: Gpus) -> None:
    seen: list[int] = []

    class Formats:
        def settle(self, nets: Any, work: Any, question: Any, drop: Any) -> None:
            seen.append(gpus.device)

    device: Any = torch.device("cuda", 1)
    formats: Any = Formats()
    graphs = Graphs(device, limit_bytes=1, streams=Streams(torch.device("cpu")), formats=formats)
    graphs.settle([], lambda: None, "question")
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
