"""Runs of a job's pictures, its words and maps prepared once for as many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rawdiff.errors import WeightsError
from rawdiff.geometry import latent_size
from rawdiff.jobs.job import Job
from rawdiff.model import Model
from rawdiff.noise import Noise
from rawdiff.probes import ProbeLike
from rawdiff.run import Run, Setup
from rawdiff.say import Say
from rawdiff.state import start

__all__ = ["Prepared"]


class Prepared:
    """What was prepared last: the next run of the same, but for its seeds, begins from that."""

    def __init__(self) -> None:
        self._last: tuple[Mapping[str, Any], int, Setup] | None = None

    def forget(self) -> None:
        """Let go of it and its memory."""
        self._last = None

    def run(
        self,
        model: Model,
        job: Job,
        first: int,
        count: int,
        *,
        watch: Sequence[str],
        say: Say,
        probe: ProbeLike,
    ) -> Run:
        """A run of `count` of the job's pictures from `first` on; raises what `Model.prepare` does, WeightsError."""
        seeds = job.seeds[first : first + count]
        # What a run begins from is drawn with its seeds.
        if "image" not in job.options and self._last is not None and self._last[:2] == (job.picture, count):
            setup = self._last[2]
            setup = replace(setup, recipe={**setup.recipe, "seeds": list(seeds)}, say=say)
            noise = Noise(seeds, latent_size(job.size), model.device)
            drawn = noise.draw(0).to(torch.promote_types(model.dtype, torch.float32))  # [B,4,h,w]
            return Run(setup, start(setup.plan, drawn, draws=1), noise, watch=watch)
        self.forget()
        run = model.prepare(
            job.picture["prompt"],
            seed=seeds,
            count=count,
            size=job.size,
            controls=job.controls,
            sampler=job.sampler,
            watch=watch,
            say=say,
            probe=probe,
            **job.options,
        )
        _check_unchanged(run, job)
        self._last = (job.picture, count, run.setup)
        return run


def _check_unchanged(run: Run, job: Job) -> None:
    """Raise WeightsError where a weight file was changed between planning and loading."""
    nets = [entry["weights"] for entry in run.recipe["controls"]]
    if run.recipe["weights"] != job.picture["weights"] or nets != [
        c["weights"] for c in job.picture["controls"]
    ]:
        raise WeightsError(f"{run.recipe['model']}: a weight file was changed while it was read: run again")
