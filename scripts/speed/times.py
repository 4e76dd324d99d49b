"""Times of the embedded model's loop on one thread of this machine's CPU, fp32.

They are this thread's own CPU time, so that a busy machine disturbs them less; and what is reported of two ways is
the ratio of neighbours, measured in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import rawdiff
from rawdiff import Exact, Model, Probe, Run
from rawdiff.nets import controlnet, unet

__all__ = ["WAYS", "load", "outside_ms", "ratios", "ways"]

NOTHING = Exact(kv=False, time=False, prefix=False, scale=False)
WAYS = ("diffusers", "ours, everything at each step", "ours")


def load() -> Model:
    """The embedded model with its ControlNet for depth."""
    torch.set_num_threads(1)
    return rawdiff.load(controls=["depth"], device="cpu", dtype="fp32")


def prepared(model: Model, size: tuple[int, int], net: bool, **options: Any) -> Run:
    """A run of 20 evaluations for one image, with guidance, and with a depth map where `net`."""
    depth = torch.linspace(0, 1, size[1]).expand(size) if net else None
    options = {"steps": 20, "sampler": "ddim", "seed": 1, "watch": (), "say": lambda line: None, **options}
    return model.prepare("a red cube on grass in daylight", depth=depth, size=size, **options)


def ways(model: Model, size: tuple[int, int], net: bool) -> dict[str, Callable[[], Tensor]]:
    """One evaluation, the same in each of WAYS."""
    runs = {WAYS[1]: prepared(model, size, net, exact=NOTHING), WAYS[2]: prepared(model, size, net)}
    run = runs[WAYS[2]]
    row, x, context = run.plan.rows[7], run.state.x, run.conditions.contexts[0]
    assert context.uncond is not None
    text, t = torch.cat([context.uncond, context.cond]), torch.tensor(row.t)
    hints = [hint.repeat(2, 1, 1, 1) for hint in run.conditions.hints]

    @torch.no_grad()
    def diffusers() -> Tensor:
        both, extra = torch.cat([x, x]), {}
        for hint in hints:
            down, middle = model.net("depth")(both, t, text, hint, return_dict=False)
            extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        uncond, cond = model.unet(both, t, text, return_dict=False, **extra)[0].chunk(2)
        return uncond + row.guidance[0] * (cond - uncond)

    def ours(run: Run) -> Callable[[], Tensor]:
        return lambda: run.setup.predict(x, row).guided

    return {WAYS[0]: diffusers, **{name: ours(run) for name, run in runs.items()}}


def ratios(
    ways: dict[str, Callable[[], Any]], repetitions: int
) -> dict[str, tuple[float, float, float, float]]:
    """For each way: its least CPU time in ms, and the quartiles of its ratio to the first way's."""
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(repetitions):
        names = list(ways) if k % 2 else list(ways)[::-1]
        for name in names:
            begin = time.thread_time()
            ways[name]()
            found[name].append(1e3 * (time.thread_time() - begin))
    first = found[next(iter(ways))]
    quartiles = {n: quantiles([a / b for a, b in zip(f, first, strict=True)], n=4) for n, f in found.items()}
    return {name: (min(f), *quartiles[name]) for name, f in found.items()}


@contextmanager
def _no_networks() -> Iterator[None]:
    """The networks say what they said the first time, at once; joining residuals and skips counts as theirs."""
    said: dict[str, Any] = {}

    def once(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name not in said:
                said[name] = original(*arguments)
            return said[name]

        return call

    with ExitStack() as stack:
        for module, name in ((unet, "encode"), (unet, "decode"), (controlnet, "residuals")):
            stack.enter_context(patch.object(module, name, once(name, getattr(module, name))))
        stack.enter_context(patch.object(controlnet, "join", lambda skips, middle, found: (skips, middle)))
        yield


def outside_ms(model: Model, size: tuple[int, int], repetitions: int = 9, **options: Any) -> float:
    """The median CPU time of a step outside the networks: plan, guidance, sampler, probes and the loop itself."""
    found = []
    for _ in range(repetitions):
        run = prepared(model, size, True, probe=Probe(), **options)
        with _no_networks():
            next(run)
            begin = time.thread_time()
            count = sum(1 for _ in run)
            found.append(1e3 * (time.thread_time() - begin) / count)
    return median(found)
