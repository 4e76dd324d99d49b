"""One picture drawn and timed by the probes, in this process; and the same by a process of its own."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rawdiff import images
from rawdiff.errors import ResourceError
from rawdiff.graphs import EAGER
from rawdiff.graphs.reusing import Reusing
from rawdiff.jobs.job import Job
from rawdiff.jobs.prepared import Prepared
from rawdiff.jobs.workshop import Workshop
from rawdiff.model import Model
from rawdiff.probes import Node, Probe
from rawdiff.recipe import write_parameters
from rawdiff.say import Say, say_nothing

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Cold", "Sample", "draw", "draw_cold", "options_of", "plainly"]


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture, and what it took."""

    seconds: float
    """From preparing to the encoded PNG, the weights loaded."""
    cpu_s: float
    """This process's own processor time, all threads together; other programs take nothing of it."""
    tree: Node
    image: Image


@dataclass(frozen=True)
class Cold:
    """The same picture from a process that was not there before."""

    first_picture_s: float
    """From the process's start until the path of the picture is printed."""
    end_s: float
    """... until the process is gone."""
    cpu_s: float
    """Its own processor time; 0 where the system does not tell (Windows)."""
    tree: Mapping[str, Any]
    """Its `--timings`."""


def draw(
    workshop: Workshop,
    job: Job,
    *,
    reuse: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    say: Say = say_nothing,
) -> Sample:
    """The job's first picture, words and maps prepared anew; raises what `Model.prepare` does, ResourceError.

    `reuse`: at every how many-th evaluation the first halves of the networks are run. `clock` is the probes'.
    """
    model = workshop.model()
    if reuse > 1:
        model = copy.copy(model)
        model.runner = Reusing(model.runner, reuse)
    probe, busy_s = Probe(workshop.device, clock=clock), time.process_time()
    run = Prepared().run(model, job, 0, 1, watch=(), say=say, probe=probe)
    for _ in run:
        pass
    image = run.image()
    with probe("png", host=True):
        told = job.recipe(0, image=image)
        images.encode_png(image, told, write_parameters(told))
    tree = probe.tree()
    return Sample(tree.total_ms / 1e3, time.process_time() - busy_s, tree, image)


def plainly(model: Model) -> Model:
    """The model, its calls run as they come: what is recorded shows no operations."""
    model = copy.copy(model)
    model.runner = model.runner if model.runner.frugal else EAGER
    return model


def options_of(words: Mapping[str, Any]) -> list[str]:
    """The words of a command as its options: `{"depth_invert": True, "steps": 4}` is --depth-invert --steps=4."""
    said: list[str] = []
    for name, value in words.items():
        option = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            said += [] if value is None else [option.replace("--", "--no-", 1)]
        elif value is True:
            said.append(option)
        else:
            several = value if isinstance(value, (list, tuple)) else [value]
            said += [f"{option}={one}" for one in several]
    return said


def draw_cold(words: Mapping[str, Any]) -> Cold:
    """What `rawdiff gen` with these words takes, from its start to its end, in a process of its own.

    Raises ResourceError where it fails.
    """
    code = "from rawdiff.cli import main; raise SystemExit(main())"
    home = str(Path(images.__file__).resolve().parents[2])  # of this very package
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    with (
        tempfile.TemporaryDirectory(prefix="rawdiff-bench-") as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told,  # a full pipe would stop it
    ):
        options = [*options_of(words), f"--out={folder}", "--timings", "--json"]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": told}
        command = [sys.executable, "-c", code, "gen", *options]
        start, before_s = time.perf_counter(), _children_s()
        with subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": paths}, text=True, **streams
        ) as process:
            try:
                assert process.stdout is not None
                first = process.stdout.readline()
                first_s = time.perf_counter() - start
                rest = process.stdout.read().splitlines()
                ended = process.wait()
                end_s = time.perf_counter() - start
            finally:
                if process.poll() is None:
                    process.kill()
        if ended or not first:
            told.seek(0)
            said = told.read().strip().splitlines() or ["nothing"]
            raise ResourceError(f"rawdiff gen in a process of its own ended with {ended}: {said[-1][:300]}")
    return Cold(first_s, end_s, _children_s() - before_s, json.loads(rest[-1])["timings"])


def _children_s() -> float:
    """Processor time of all processes that this one has waited for."""
    times = os.times()
    return times.children_user + times.children_system
