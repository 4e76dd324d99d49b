"""Timing probes: nested spans, placed by hand, read as a tree.

    probe = Probe()
    with probe("step"):
        with probe("unet encode"):
            ...
    print(probe.table())

On a GPU a span is a pair of CUDA events, recorded in the stream and read when the tree is asked for, so that
measuring adds no synchronisation; on a CPU it is the host's clock. Work of the host alone in a GPU run
(tokens, PNG) says so: `probe("png", host=True)`. NO_PROBE has the same shape and does nothing.

Never yield inside a span: the caller's own time would be counted.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["NO_PROBE", "Node", "Probe", "ProbeLike", "process_age_ms"]


class ProbeLike(Protocol):
    """What Probe and NO_PROBE both are."""

    def __call__(self, name: str, *, host: bool = False) -> AbstractContextManager[None]: ...


class _NoProbe:
    _nothing = nullcontext()

    def __call__(self, name: str, *, host: bool = False) -> AbstractContextManager[None]:
        return self._nothing


NO_PROBE: ProbeLike = _NoProbe()
"""A probe that measures nothing, for the default of every `probe` argument."""


@dataclass
class Node:
    """All spans of one name under one parent: how often, how long together, and what was inside them."""

    name: str
    count: int = 0
    total_ms: float = 0.0
    children: dict[str, Node] = field(default_factory=dict)
    _pending: list[tuple[Any, Any]] = field(default_factory=list, repr=False)

    def child(self, name: str) -> Node:
        """The child of this name, made when there is none yet."""
        if name not in self.children:
            self.children[name] = Node(name)
        return self.children[name]

    @property
    def rest_ms(self) -> float:
        """What its children do not account for."""
        return self.total_ms - sum(child.total_ms for child in self.children.values())

    def walk(self, depth: int = 0, *, least_rest_ms: float = math.inf) -> Iterator[tuple[int, Node]]:
        """This node and all below it, with their depths.

        Where children leave more than `least_rest_ms` unaccounted for, a node named "(other)" follows them.
        """
        yield depth, self
        for child in self.children.values():
            yield from child.walk(depth + 1, least_rest_ms=least_rest_ms)
        if self.children and self.rest_ms > least_rest_ms:
            yield depth + 1, Node("(other)", 1, self.rest_ms)

    def as_dict(self) -> dict[str, Any]:
        """The tree as plain values, for JSON."""
        return {
            "name": self.name,
            "count": self.count,
            "total_ms": round(self.total_ms, 3),
            "children": [child.as_dict() for child in self.children.values()],
        }


class Probe:
    """A tree of spans. `device` is where the spans' work runs ("cpu", "cuda", "cuda:1", a torch.device).

    `clock` gives the host's seconds: `time.process_time` instead is what other programs take nothing of.
    """

    def __init__(self, device: Any = "cpu", *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cuda = str(device).startswith("cuda")
        self._device = device
        self._clock = clock
        self._start = clock()
        self._before_ms = 0.0
        self._root = Node("total", count=1)
        self._stack = [self._root]

    def before(self, name: str, ms: float) -> None:
        """Count time that passed before this probe was made (imports, say): a span, and part of the total."""
        node = self._stack[0].child(name)
        node.count += 1
        node.total_ms += ms
        self._before_ms += ms

    @contextmanager
    def __call__(self, name: str, *, host: bool = False) -> Iterator[None]:
        node = self._stack[-1].child(name)
        self._stack.append(node)
        events = self._events() if self._cuda and not host else None
        if events:
            self._record(events[0])
        start = self._clock()
        try:
            yield
        finally:
            if events:
                self._record(events[1])
                node._pending.append(events)
            else:
                node.total_ms += 1e3 * (self._clock() - start)
            node.count += 1
            self._stack.pop()

    def _events(self) -> tuple[Any, Any]:
        import torch

        event: Any = torch.cuda.Event
        return event(enable_timing=True), event(enable_timing=True)

    def _record(self, event: Any) -> None:
        import torch

        event.record(torch.cuda.current_stream(self._device))  # which need not be the current device's

    def tree(self) -> Node:
        """The tree so far; waits for a GPU. The root's total is the host's clock since the probe was made."""
        if self._cuda:
            import torch

            torch.cuda.synchronize(self._device)
        for _, node in self._root.walk():
            node.total_ms += sum(first.elapsed_time(last) for first, last in node._pending)
            node._pending.clear()
        self._root.total_ms = 1e3 * (self._clock() - self._start) + self._before_ms
        return self._root

    def table(self) -> str:
        """The tree as lines of name, count, milliseconds and share of the total.

        What a span's children leave unaccounted for is a line of its own, "(other)", from 1% of the total on.
        """
        root = self.tree()
        nodes = list(root.walk(least_rest_ms=root.total_ms / 100))
        width = max(2 * depth + len(node.name) for depth, node in nodes)
        lines = []
        for depth, node in nodes:
            share = 100 * node.total_ms / root.total_ms if root.total_ms else 0.0
            times = f"{node.count}x" if node.count > 1 else ""
            name = "  " * depth + node.name
            lines.append(f"{name:<{width}}  {times:>5}  {node.total_ms:>10.1f} ms  {share:>5.1f}%")
        return "\n".join(lines)


def process_age_ms() -> float | None:
    """How long this process has lived, to 10 ms, or None where the system does not tell (not Linux)."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        started_ticks = int(stat.rpartition(")")[2].split()[19])
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, 1e3 * (now_s - started_ticks / os.sysconf("SC_CLK_TCK")))
    except (OSError, ValueError, IndexError, AttributeError):
        return None
