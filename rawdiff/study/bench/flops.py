"""Floating point operations, counted by torch as the probes mark them; and how many a second the device reaches."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from rawdiff.decode import decode
from rawdiff.jobs.job import Job
from rawdiff.jobs.prepared import Prepared
from rawdiff.model import Model
from rawdiff.say import say_nothing
from rawdiff.study.bench.work import plainly

__all__ = ["FlopProbe", "Path", "ceiling", "count", "counting"]

Path = tuple[str, ...]
"""Names of spans, from the outermost in."""


class FlopProbe:
    """A probe that counts operations instead of time: `flops` by the path of each span, what is inside included."""

    def __init__(self, counter: Any) -> None:
        self.flops: dict[Path, int] = defaultdict(int)
        self._counter = counter
        self._path: Path = ()

    @contextmanager
    def __call__(self, name: str, *, host: bool = False) -> Iterator[None]:
        outer, before = self._path, self._counter.get_total_flops()
        self._path = (*outer, name)
        try:
            yield
        finally:
            self.flops[self._path] += self._counter.get_total_flops() - before
            self._path = outer


def counting() -> Any:
    """torch's counter, which is told of the one attention kernel that it does not know, the CPU's."""
    counted: Callable[..., int] = flop_counter.sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
        return counted(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: attention})


@torch.no_grad()
def count(model: Model, job: Job) -> dict[Path, int]:
    """Operations of each part of the job's first picture, by the probes' paths; () is all of it.

    Evaluations that run the same networks on as many halves are the same, so that one of each is counted. Raises what
    `Model.prepare` does, ResourceError.
    """
    model = plainly(model)
    with counting() as counter:
        probe = FlopProbe(counter)
        with probe("all"):
            run = Prepared().run(model, job, 0, 1, watch=(), say=say_nothing, probe=probe)
            decode(run.setup.vae, run.latents, runner=model.runner, say=say_nothing, probe=probe)
        alike = {(row.guided, *(weight != 0.0 for weight in row.control)): row for row in run.plan.rows}
        counts = Counter((row.guided, *(weight != 0.0 for weight in row.control)) for row in run.plan.rows)
        for key, row in alike.items():
            one = FlopProbe(counter)
            with one("all"), one("step"):
                run.setup.predict(run.sampler.scale_input(run.latents, row.step.index), row, one)
            for path, flops in one.flops.items():
                probe.flops[path] += counts[key] * flops
    return {path[1:]: flops for path, flops in probe.flops.items()}


def ceiling(
    device: torch.device,
    dtype: torch.dtype,
    clock: Callable[[], float] = time.perf_counter,
    *,
    size: int | None = None,
    limit_s: float = 2.0,
) -> float:
    """GFLOP in a second of `clock` of the best of several products of two matrices, begun for `limit_s` seconds.

    They are `size` a side, by default 2048 on a CPU and 8192 on a GPU.
    """
    side = size if size is not None else 8192 if device.type == "cuda" else 2048
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    out, best_s, begun = torch.empty_like(a), float("inf"), time.perf_counter()
    for k in range(100):
        _wait(device)
        start = clock()
        torch.mm(a, b, out=out)
        _wait(device)
        lasted_s = clock() - start
        if k:  # the first sets things up
            best_s = min(best_s, lasted_s)
        if k >= 3 and time.perf_counter() - begun > limit_s:
            break
    return 2e-9 * side**3 / best_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
