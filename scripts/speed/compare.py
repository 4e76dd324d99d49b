"""Arms measured in turn in one process, and what came of it as JSON and as a table."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from rawdiff.images.durable import write_file
from scripts.speed.arms import Arm

__all__ = ["interval", "machine", "measure", "pairs", "table", "write"]

T_95 = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
    2.20,
    2.18,
    2.16,
    2.14,
    2.13,
    2.12,
    2.11,
    2.10,
    2.09,
)
"""Student's t, two-sided 95%, for 1 to 19 degrees of freedom."""


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of paired ratios, and the ends of its 95% interval (Student's t on their logarithms)."""
    logs = [math.log(ratio) for ratio in ratios]
    if len(logs) < 2:
        return math.exp(logs[0]), 0.0, math.inf
    t = T_95[len(logs) - 2] if len(logs) - 1 <= len(T_95) else 1.96
    half = t * stdev(logs) / math.sqrt(len(logs))
    middle = mean(logs)
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def _keep_nothing(found: Mapping[str, Any]) -> None:
    pass


def _ms(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - begin)


def measure(
    arms: Mapping[str, Callable[[], Arm]],
    device: torch.device,
    *,
    warm_ups: int = 3,
    runs: int = 10,
    reference: torch.Tensor | None = None,
    until: float = math.inf,
    loops_only: bool = False,
    say: Callable[[str], None] = print,
    keep: Callable[[Mapping[str, Any]], Any] = _keep_nothing,
) -> dict[str, Any]:
    """Build each arm, warm it up, then run all in turn, the order turned about each time; all times in ms.

    `reference` are the final latents in fp32. An arm that fails is told and left out; measuring ends at `until`, a
    time of `time.monotonic`, with the arms and the runs that there are. With `loops_only` nothing is decoded. `keep` is
    given what there is after each arm's warm-up and after each round, for a process that is killed says nothing more.
    """
    found: dict[str, dict[str, Any]] = {}
    made: dict[str, Arm] = {}
    for name, build in arms.items():
        if made and time.monotonic() > until:
            say(f"{name}: left out (time is up)")
            continue
        before = _reserved(device)
        try:
            first: list[Any] = []
            cold = _ms(lambda b=build, f=first: f.append((arm := b(), arm(not loops_only))), device)  # type: ignore[misc]
            arm, picture = first[0]
            for _ in range(warm_ups - 1):
                arm(not loops_only)
            peak = _peak(arm, device, loops_only, before)
        except Exception as error:
            say(f"{name}: left out ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
            continue
        made[name] = arm
        found[name] = {"cold_ms": cold, "peak_gib": peak, "loop_ms": [], "picture_ms": []}
        if reference is not None:
            exact = reference.double()
            off = (picture.latents.double() - exact).abs().max() / exact.abs().max()
            found[name]["error"] = float(off)
        say(f"{name}: first {'loop' if loops_only else 'picture'} {cold:.0f} ms")
        keep(found)
    if device.type == "cuda":
        for arm in made.values():  # get again, untimed, the memory that the next one's peak made it give back
            arm(not loops_only)
    names = list(made)
    for k in range(runs):
        if time.monotonic() > until:
            say(f"time is up after {k} of {runs} runs")
            break
        for name in names[k % max(1, len(names)) :] + names[: k % max(1, len(names))]:
            found[name]["loop_ms"].append(_ms(lambda n=name: made[n](False), device))  # type: ignore[misc]
            if loops_only:
                continue
            found[name]["picture_ms"].append(_ms(lambda n=name: made[n](True), device))  # type: ignore[misc]
        keep(found)
    return found


def _reserved(device: torch.device) -> int:
    """Bytes that torch holds on a GPU, pools of graphs among them, without what it only keeps for later."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _peak(arm: Arm, device: torch.device, loops_only: bool, before: int) -> float | None:
    """The most GiB that a GPU holds for an arm, above the bytes `before` it was built; None on a CPU.

    What is reserved counts and not what is allocated: a replayed graph allocates nothing, and has a pool of its own.
    """
    if device.type != "cuda":
        return None
    _reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    arm(not loops_only)
    return (torch.cuda.max_memory_reserved(device) - before) / 2**30


def table(found: Mapping[str, Mapping[str, Any]], evaluations: int) -> str:
    """Markdown: times, evaluations a second, and ratios to the first arm with their 95% intervals."""
    head = "| arm | loop ms (min / median / max) | it/s | picture ms | ratio of loops | 95% | first | error | + GiB |"
    lines = [head, "|---" * 9 + "|"]
    base = next(iter(found.values()), {}).get("loop_ms", [])
    for name, of in found.items():
        loop, picture = of["loop_ms"], of["picture_ms"]
        if not loop:
            continue
        ratio, low, high = interval([a / b for a, b in zip(loop, base, strict=True)])
        error = "" if of.get("error") is None else f"{of['error']:.1e}"
        peak = "" if of["peak_gib"] is None else f"{of['peak_gib']:.2f}"
        lines.append(
            f"| {name} | {min(loop):.1f} / {median(loop):.1f} / {max(loop):.1f} | "
            f"{1e3 * evaluations / median(loop):.{1 if loop[0] < 1e3 * evaluations else 3}f} | "
            f"{f'{median(picture):.1f}' if picture else ''} | {ratio:.3f} | "
            f"{low:.3f} to {high:.3f} | {of['cold_ms']:.0f} | {error} | {peak} |"
        )
    return "\n".join(lines)


def pairs(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the ratio of each arm's loops to each other arm's, with its 95% interval."""
    loops = {name: of["loop_ms"] for name, of in found.items() if of["loop_ms"]}
    lines = [f"| loops, row by column | {' | '.join(loops)} |", "|---" * (len(loops) + 1) + "|"]
    for name, own in loops.items():
        cells = [interval([a / b for a, b in zip(own, other, strict=True)]) for other in loops.values()]
        said = [
            "1" if n == name else "{:.3f} ({:.3f} to {:.3f})".format(*c)
            for n, c in zip(loops, cells, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(said)} |")
    return "\n".join(lines)


def machine(device: torch.device) -> dict[str, str]:
    """What it was measured on."""
    import diffusers

    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return {"device": name, "torch": torch.__version__, "diffusers": diffusers.__version__}


def write(folder: Path, name: str, report: Mapping[str, Any], markdown: str) -> list[Path]:
    """`name`.json and `name`.md under `folder`; what was there under these names is replaced, each file whole."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    for path, text in zip(paths, (json.dumps(report, indent=1) + "\n", markdown), strict=True):
        write_file(path, text.encode(), overwrite=True)
    return paths
