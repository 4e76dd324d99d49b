"""What was measured, as plain values and as a table."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rawdiff.geometry import format_size
from rawdiff.study.bench.measuring import Found, Report
from rawdiff.study.bench.parts import Part, cold_parts, middle_and_ends
from rawdiff.study.grid import grid
from rawdiff.version import __version__

__all__ = [
    "FORMAT",
    "WARM_HEAD",
    "as_json",
    "as_values",
    "busy_line",
    "cold_line",
    "command_line",
    "cpu_ratio",
    "distance",
    "kind",
    "lines",
    "machine",
    "machine_line",
    "on_a_cpu",
    "warm_cells",
]

FORMAT = 1
COLD_DEPTH = 2
"""How deep a cold process is told of."""
WARM_HEAD = ("times", "ms", "range", "share", "GFLOP", "GFLOP/s", "of ceiling")
"""What `warm_cells` gives."""
IDLE = 0.8
"""Of the time that its threads could have computed in, below which others must have."""


def machine(device: torch.device, dtype: str, made_with: str | None = None) -> dict[str, Any]:
    """What computes: processor, cores that this process may use, threads, device, dtype, versions, how busy it is.

    `made_with` is what computes the networks in torch's place.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": dtype,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "rawdiff": __version__,
        "torch": torch.__version__,
        "backend": "torch" if made_with is None else made_with,
        "python": platform.python_version(),
    }


def as_values(report: Report) -> dict[str, Any]:
    """Everything but the pictures, as plain values; seconds, milliseconds, GFLOP and dB as the names say.

    `psnr_db` is None where no pixel differs, and beside `left_out`.
    """
    picture = report.job.picture
    return {
        "format": FORMAT,
        "machine": machine(report.place.device, picture["dtype"], report.place.runner.made_with),
        "command": {
            "prompt": picture["prompt"],
            "size": format_size(report.job.size),
            "seed": report.job.seeds[0],
            "sampler": report.job.sampler.name,
            "evaluations": len(report.job.sampler.rows),
            "guidance": picture["guidance"],
            "controls": [control["kind"] for control in picture["controls"]],
            "model": report.place.source.name,
            "told": report.job.describe(),
        },
        "cold": {
            "first_picture_s": report.cold.first_picture_s,
            "end_s": report.cold.end_s,
            "cpu_s": report.cold.cpu_s,
            "parts": [_part(part) for part in cold_parts(report.cold)],
        },
        "ceiling_gflops_per_s": report.ceiling,
        "parts": [_part(part) for part in report.parts],
        "bottleneck": report.bottleneck,
        "as_asked": _times(report.base),
        "proposals": [_proposal(found, report) for found in report.found],
    }


def as_json(report: Report) -> bytes:
    """The same as JSON."""
    return (json.dumps(as_values(report), indent=1, allow_nan=False) + "\n").encode()


def machine_line(report: Report) -> str:
    """The machine on one line."""
    of = machine(report.place.device, str(report.job.picture["dtype"]), report.place.runner.made_with)
    load = "" if of["load"] is None else f", load {of['load']:g}"
    threads = f"{of['threads']} thread{'s' if of['threads'] > 1 else ''}"
    backend = "" if of["backend"] == "torch" else f", {of['backend']}"
    on = "" if of["device"] == "cpu" else f"{of['device']}; "
    return (
        f"{on}{of['cpu']}, {of['cores']} cores, {threads}{load}; {of['dtype']}, torch {of['torch']}{backend}"
    )


def command_line(report: Report) -> str:
    """What was drawn, on one line."""
    controls = "".join(f", {control.kind}" for control in report.job.controls)
    return f"{report.job.describe()}{controls}; model {report.place.source.name}"


def on_a_cpu(report: Report) -> str:
    """In which seconds rates are, where those are not the wall's."""
    return ", in seconds that this process had its processors" if report.place.device.type == "cpu" else ""


def busy_line(report: Report) -> str | None:
    """That other programs took the processor meanwhile, where they did, on a CPU."""
    if report.place.device.type != "cpu":
        return None
    spent, lasted = (sum(values) for values in (_cpu_s(report.base), report.base.seconds))
    share = spent / (lasted * torch.get_num_threads())
    if share >= IDLE:
        return None
    return (
        f"This process had its processors for {share:.0%} of the time: other programs took the rest, and seconds are "
        "theirs too. Ratios of processor time are of this process alone."
    )


def cpu_ratio(found: Found, report: Report) -> float | None:
    """The processor time of an arm to that of the command as it was given, by medians; None off the CPU."""
    if report.place.device.type != "cpu" or not found.samples:
        return None
    return middle_and_ends(_cpu_s(found))[0] / middle_and_ends(_cpu_s(report.base))[0]


def cold_line(report: Report) -> str:
    """How long a process of its own took."""
    cold = report.cold
    return (
        f"first picture after {cold.first_picture_s:.2f} s, end after {cold.end_s:.2f} s; {cold.cpu_s:.2f} s of "
        "processor time"
    )


def lines(report: Report) -> Iterator[str]:
    """All of it for a person."""
    yield f"machine  {machine_line(report)}"
    yield f"command  {command_line(report)}"
    yield f"ceiling  {report.ceiling:.1f} GFLOP/s in a matrix product{on_a_cpu(report)}"
    busy = busy_line(report)
    if busy is not None:
        yield busy
    yield ""
    cold = [part for part in cold_parts(report.cold) if len(part.path) <= COLD_DEPTH and part.share >= 0.0005]
    rows = [[_indented(part), _times_of(part), f"{part.ms:.1f}", f"{part.share:.1%}"] for part in cold]
    yield from grid([["a process of its own", "times", "ms", "share"], *rows], 1)
    yield cold_line(report)
    yield ""
    repeats = len(report.base.samples)
    once = f"a picture in a warm process ({'once' if repeats == 1 else f'median of {repeats}'})"
    yield from grid([[once, *WARM_HEAD], *([_indented(part), *warm_cells(part)] for part in report.parts)], 1)
    yield ""
    yield report.bottleneck
    if report.found:
        yield ""
        yield from _proposals(report)


def _proposals(report: Report) -> Iterator[str]:
    head = ["proposal", "", "seconds", "range", "saved", "ratio", "of CPU", "PSNR dB", "picture"]
    drawn = [found for found in report.found if found.left_out is None]
    yield from grid([head, *(_row(found, report) for found in [report.base, *drawn])], 2)
    for found in report.found:
        if found.left_out is not None:
            yield f"{found.arm.name}: left out: {found.left_out}"


def _row(found: Found, report: Report) -> list[str]:
    middle, low, high = middle_and_ends(found.seconds)
    times = [found.arm.name, found.arm.what, f"{middle:.2f}", f"{low:.2f}-{high:.2f}"]
    if found is report.base:
        return [*times, "", "", "", "", ""]
    cpu = cpu_ratio(found, report)
    ratios = [f"{found.saved_s:+.2f}", f"{found.ratio:.2f}", "" if cpu is None else f"{cpu:.2f}"]
    return [*times, *ratios, distance(found), kind(found)]


def kind(found: Found) -> str:
    """ "base", "exact" or "approximate"."""
    return "base" if found.arm.group == "base" else "exact" if found.arm.exact else "approximate"


def distance(found: Found) -> str:
    """The PSNR in words: "equal" where no pixel differs."""
    return "equal" if math.isinf(found.psnr_db) else f"{found.psnr_db:.1f}"


def warm_cells(part: Part) -> list[str]:
    """A part's numbers as words, under WARM_HEAD."""
    counted = ["", "", ""]
    if part.gflop is not None and part.gflops_per_s is not None and part.of_ceiling is not None:
        counted = [f"{part.gflop:.2f}", f"{part.gflops_per_s:.1f}", f"{part.of_ceiling:.0%}"]
    span = f"{part.low_ms:.1f}-{part.high_ms:.1f}"
    return [_times_of(part), f"{part.ms:.1f}", span, f"{part.share:.1%}", *counted]


def _indented(part: Part) -> str:
    return "  " * len(part.path) + part.name


def _times_of(part: Part) -> str:
    return f"{part.count}x" if part.count > 1 else ""


def _cpu_s(found: Found) -> list[float]:
    return [sample.cpu_s for sample in found.samples]


def _part(part: Part) -> dict[str, Any]:
    return {**vars(part), "path": list(part.path), "name": part.name}


def _times(found: Found) -> dict[str, Any]:
    return {"seconds": found.seconds, "cpu_s": _cpu_s(found)}


def _proposal(found: Found, report: Report) -> dict[str, Any]:
    arm, is_there = found.arm, found.left_out is None
    said = {"name": arm.name, "group": arm.group, "what": arm.what, "exact": arm.exact, **_times(found)}
    return {
        **said,
        "saved_s": found.saved_s if is_there else None,
        "ratio": found.ratio if is_there else None,
        "cpu_ratio": cpu_ratio(found, report),
        "psnr_db": found.psnr_db if is_there and math.isfinite(found.psnr_db) else None,
        "equal": is_there and math.isinf(found.psnr_db),
        "left_out": found.left_out,
    }


def _cpu() -> str:
    """The processor's name, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names: Sequence[str] = [
        line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()
