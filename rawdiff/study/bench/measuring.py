"""Every arm in turn, again and again, and what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rawdiff import images
from rawdiff.errors import RawdiffError, UsageError
from rawdiff.jobs.job import Job
from rawdiff.jobs.place import Place, open_workshop
from rawdiff.jobs.request import Request
from rawdiff.jobs.workshop import Workshop
from rawdiff.paths import check_name
from rawdiff.say import Say, say_nothing
from rawdiff.study.bench.arms import Arm, chosen, proposals
from rawdiff.study.bench.flops import ceiling, count
from rawdiff.study.bench.parts import Part, bottleneck, computing_ms, warm_parts
from rawdiff.study.bench.work import Cold, Sample, draw, draw_cold

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Found", "Report", "Settings", "measure", "psnr_db"]

BASE = "as asked"
MAX_REPEATS = 1000


@dataclass(frozen=True)
class Settings:
    """How `measure` goes about it."""

    repeat: int = 3
    proposals: bool = True
    only: Sequence[str] = ()
    json: str | None = None
    html: str | None = None
    overwrite: bool = False
    """Whether the two files may be replaced."""

    def check(self) -> None:
        """Raise UsageError for numbers and names that make no sense, and for files that are there already."""
        if not 1 <= self.repeat <= MAX_REPEATS:
            raise UsageError(f"repeat {self.repeat}: expected a whole number from 1 to {MAX_REPEATS}")
        if self.only and not self.proposals:
            raise UsageError("only: names proposals, and there shall be none: leave one of them out")
        files = [
            (name, path) for name, path in (("json", self.json), ("html", self.html)) if path is not None
        ]
        for name, path in files:
            check_name(name, path)
        for name, path in files:
            if not path or "\0" in path or Path(path).is_dir():
                raise UsageError(f"{name} {path!r}: expected the name of a file to write")
            if not self.overwrite and (Path(path).exists() or Path(path).is_symlink()):
                raise UsageError(f"{name} {path}: exists already; choose another name, or --overwrite")
        if len(files) == 2 and Path(files[0][1]).absolute() == Path(files[1][1]).absolute():
            raise UsageError(f"json and html are both {files[0][1]}: choose another name for one")


@dataclass(eq=False)
class Found:
    """An arm, and what came of it."""

    arm: Arm
    samples: list[Sample] = field(default_factory=list)
    saved_s: float = 0.0
    """How many seconds less it took than the picture as asked of the same repeat: the median of all repeats."""
    ratio: float = 1.0
    """... what it took, as a share of what that took."""
    psnr_db: float = math.inf
    """The distance of its picture from the picture as asked; infinite where no pixel differs."""
    left_out: str | None = None
    """Why there is nothing."""

    @property
    def seconds(self) -> list[float]:
        """Of each repeat."""
        return [sample.seconds for sample in self.samples]

    @property
    def image(self) -> Image:
        """Its picture."""
        return self.samples[0].image


@dataclass(frozen=True, eq=False)
class Report:
    """All that was measured."""

    job: Job
    place: Workshop
    ceiling: float
    """GFLOP/s of a matrix product."""
    parts: list[Part]
    bottleneck: str
    cold: Cold
    base: Found
    found: list[Found]


def measure(request: Request, place: Place, words: dict[str, Any], settings: Settings, say: Say) -> Report:
    """Draw `request` as `gen` would, again and again, as it is and with each proposal in turn.

    `words` are those of the command line that ask for the same, for the process that begins cold. A proposal that
    fails is left out, with its reason; what fails of the request itself is raised, and that is every error there is.
    """
    settings.check()
    workshop = open_workshop(place, say)
    job = workshop.plan(request)
    request = replace(request, seed=job.seeds[0])
    for path in (settings.json, settings.html):
        if path is not None:
            images.check_writable(Path(path).parent)
    dtype = str(job.picture["dtype"])
    arms = proposals(request, job, dtype, frugal=place.memory == "low") if settings.proposals else []
    arms = chosen(arms, settings.only)
    say(job.describe())
    cold = draw_cold({**words, "seed": job.seeds[0]})
    say(f"a process of its own: {cold.end_s:.2f} s")
    workshop.model()
    first = draw(workshop, job, say=say)
    # On a CPU in this process's own time, of all its threads: of that, other programs take nothing.
    clock, threads = time.perf_counter, 1
    if workshop.device.type == "cpu":
        clock, threads = time.process_time, torch.get_num_threads()
    best = threads * ceiling(workshop.device, workshop.dtype, clock)
    computing = computing_ms(draw(workshop, job, clock=clock), threads)
    flops = count(workshop.model(), job)
    base = Found(Arm(BASE, "base", "the command as it was given", request, exact=True))
    bench = _Bench(workshop, job, place, base, say)
    found = [bench.prepared(arm) for arm in arms]
    again = settings.repeat * (1 + len(found))
    say(f"{again} pictures to draw, most in about {first.seconds:.1f} s")
    bench.run(found, settings.repeat)
    parts = warm_parts(base.samples, computing, flops, best)
    return Report(job, workshop, best, parts, bottleneck(parts, cold), cold, base, found)


class _Bench:
    """The arms, planned, and the workshops that draw them."""

    def __init__(self, workshop: Workshop, job: Job, place: Place, base: Found, say: Say) -> None:
        self._workshops: dict[str | None, Workshop] = {None: workshop}
        self._jobs = {base.arm.name: job}
        self._place, self._base, self._say = place, base, say

    def prepared(self, arm: Arm) -> Found:
        """The arm, planned and warm, or left out with the reason."""
        found = Found(arm)
        is_new = arm.dtype not in self._workshops
        try:
            if is_new:
                here = replace(self._place, dtype=arm.dtype)
                self._workshops[arm.dtype] = open_workshop(here, say_nothing)
            workshop = self._workshops[arm.dtype]
            self._jobs[arm.name] = workshop.plan(arm.request)
            # A GPU's graphs are recorded, and another backend's networks compiled, when they are first run.
            if is_new or workshop.device.type == "cuda" or workshop.runner.made_with is not None:
                self._draw(arm)
        except RawdiffError as error:
            self._leave_out(found, error)
        return found

    def run(self, found: Sequence[Found], repeat: int) -> None:
        """Draw every arm `repeat` times, in turn, beginning with another each time."""
        everyone = [self._base, *found]
        for k in range(repeat):
            first = k % len(everyone)
            for one in everyone[first:] + everyone[:first]:
                if one.left_out is None:
                    self._sample(one)
        for one in found:
            if one.left_out is None:
                self._compare(one)

    def _sample(self, one: Found) -> None:
        try:
            one.samples.append(self._draw(one.arm))
        except RawdiffError as error:
            if one is self._base:
                raise
            self._leave_out(one, error)
        else:
            self._say(f"{one.arm.name}: {one.samples[-1].seconds:.2f} s")

    def _draw(self, arm: Arm) -> Sample:
        return draw(self._workshops[arm.dtype], self._jobs[arm.name], reuse=arm.reuse)

    def _compare(self, one: Found) -> None:
        pairs = list(zip(self._base.seconds, one.seconds, strict=True))
        one.saved_s = median(full - part for full, part in pairs)
        one.ratio = median(part / full for full, part in pairs)
        one.psnr_db = psnr_db(self._base.image, one.image)

    def _leave_out(self, one: Found, error: RawdiffError) -> None:
        one.left_out = str(error)
        one.samples.clear()
        self._say(f"{one.arm.name}: left out: {error}")


def psnr_db(one: Image, other: Image) -> float:
    """The peak signal-to-noise ratio of two pictures of one size, of 8 bits, in dB; infinite where they are equal."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (one, other))
    if a.shape != b.shape:
        raise UsageError(
            f"pictures of {a.shape[1]}x{a.shape[0]} and {b.shape[1]}x{b.shape[0]}: expected one size"
        )
    error = float(((a - b) ** 2).mean())
    return math.inf if error == 0.0 else 10 * math.log10(255.0**2 / error)
