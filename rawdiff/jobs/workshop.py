"""From a request to pictures: planned without a weight being read, then drawn.

    workshop = Workshop("sd1.5")                 # finds the model; reads no weights
    job = workshop.plan(Request(prompt=...))     # opens maps, builds the sampler, hashes files: the recipe is known
    for drawn in workshop.draw(job):             # loads the weights when the first picture needs them
        drawn.image, drawn.recipe

Everything that can be wrong with a request is found by `plan`, in seconds, and the id of each picture is known by
then: a batch sees what it has already drawn without loading a network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rawdiff import nets, weights
from rawdiff.errors import RawdiffError, ResourceError
from rawdiff.extras import AddedLora
from rawdiff.geometry import format_size
from rawdiff.graphs import Runner
from rawdiff.jobs.job import Drawn, Job, Watcher
from rawdiff.jobs.planner import Planner
from rawdiff.jobs.prepared import Prepared
from rawdiff.model import Model, load
from rawdiff.nets.memory import is_out_of_memory
from rawdiff.openvino import choose_runner
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, once, say_on_stderr

__all__ = ["MODEL_VARIABLE", "DeviceFailedError", "Workshop", "named_model"]

MODEL_VARIABLE = "RAWDIFF_MODEL"
"""The environment variable that names a model where nobody else does."""


def named_model(given: str | None) -> str | None:
    """`given`, else what RAWDIFF_MODEL names, unless that is empty; None is the embedded model."""
    return given if given is not None else os.environ.get(MODEL_VARIABLE) or None


class DeviceFailedError(ResourceError):
    """The device gave out; nothing more can be computed on it by this process."""


class Workshop(Planner):
    """A model to be, what is planned with it, and what is drawn. Raises UsageError, WeightsError, HubError."""

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        nets: Mapping[str, str] | None = None,
        vae: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        speed: str | None = None,
        memory: str | None = None,
        backend: str | None = None,
        say: Say = say_on_stderr,
        probe: ProbeLike = NO_PROBE,
    ) -> None:
        chosen = weights.choose_device(device)
        kind = weights.choose_dtype(chosen, dtype)
        # What is wrong with these is said before anything is opened.
        runner = choose_runner(backend, speed, chosen, kind, memory)
        opened = weights.open_source(source, revision=revision, offline=offline, say=say)
        opened = weights.with_vae(opened, vae, offline=offline, say=say)
        where: dict[str, Any] = {"device": chosen, "dtype": kind, "runner": runner, "offline": offline}
        super().__init__(opened, nets=nets or {}, **where, say=say, probe=probe)
        self._speed, self._memory, self._backend = speed, memory, backend
        self._model: Model | None = None
        self._prepared = Prepared()
        self._is_checked = False

    def describe(self) -> str:
        """Which model it is, where it runs, and how to get another, on one line."""
        own = self.source.name if self.source.kind != "embedded" else f"{self.defaults.name} (embedded)"
        own += "" if self.source.vae is None else f" with the vae {self.source.vae}"
        another = f"another: --model FOLDER, FILE, ALIAS or OWNER/NAME, or {MODEL_VARIABLE}"
        return f"model: {own} on {self.device} in {str(self.dtype).removeprefix('torch.')}; {another}"

    def model(self) -> Model:
        """The model with its weights, loaded when it is first asked for, which is said."""
        if self._model is None:
            self.say(self.describe())
            place: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "offline": self._offline}
            place |= {"speed": self._speed, "memory": self._memory, "backend": self._backend}
            source: Any = self.source
            self._model = load(source, nets=self._nets, say=self.say, probe=self.probe, **place)
        return self._model

    @property
    def runner(self) -> Runner:
        """What runs the networks, once they are loaded; till then, what will."""
        return self._runner if self._model is None else self._model.runner

    def _more_bytes(self, kinds: Sequence[str], loras: Sequence[AddedLora], *, masked: bool) -> int:
        if self._model is None:
            return super()._more_bytes(kinds, loras, masked=masked)
        # What is held already is not counted again.
        nets = [self._model.known_net(kind) for kind in dict.fromkeys(kinds)]
        return self._model.more_bytes(masked=masked, added=loras, nets=nets)

    def check_vae(self) -> None:
        """Load another's VAE and let go of it, once: what is wrong with it is raised as `model` would raise it.

        For whoever draws nothing; its config alone was looked at when it was found.
        """
        if self.source.vae is None or self._model is not None or self._is_checked:
            return
        dtype = weights.vae_dtype(self.source, self.defaults, self.dtype)
        nets.vae.check(weights.load_vae(self.source, device=self.device, dtype=dtype))
        self._is_checked = True

    def draw(self, job: Job, *, batch: int = 1, watchers: Sequence[Watcher] = ()) -> Iterator[Drawn]:
        """The pictures of a job, `batch` at once; where memory gives out, half as many, then with memory low, and said.

        Another backend than torch has no such thing: the last way is torch's. Raises NonFiniteError, ResourceError.
        """
        model, say_once, first = self.model(), once(self.say, self._told), 0
        while first < len(job.seeds):
            count = min(batch, len(job.seeds) - first)
            try:
                drawn = self._draw(model, job, first, count, say_once, watchers)
            except (RuntimeError, MemoryError) as error:
                if "CUDA error" in str(error) and not is_out_of_memory(error):
                    raise DeviceFailedError(
                        f"{self.device} failed ({str(error).splitlines()[0][:120]}): run it again; a batch goes on "
                        "where it stopped"
                    ) from error
                if not is_out_of_memory(error):
                    raise
                last = count == 1 and model.runner.frugal
                if last and isinstance(error, RawdiffError):  # told already
                    raise
                if last:
                    raise ResourceError(
                        f"out of memory at {format_size(job.size)} on {self.device}: take a smaller size, fewer "
                        "nets, or half precision"
                    ) from error
                batch = max(1, count // 2)
                self._prepared.forget()
            else:
                yield from drawn
                first += count
                continue
            # Outside the handler, where the failed run is no longer held.
            if count == 1:
                by_torch = " by torch" if model.runner.made_with is not None else ""
                model.save_memory()
                job = replace(job, made={key: said for key, said in job.made.items() if key != "backend"})
                self.say(
                    f"out of memory at {format_size(job.size)}: going on{by_torch} with memory low, which is slower"
                )
            else:
                self.say(f"out of memory with {count} pictures at once: going on with {batch}")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _draw(
        self, model: Model, job: Job, first: int, count: int, say: Say, watchers: Sequence[Watcher]
    ) -> list[Drawn]:
        begun = time.perf_counter()
        watch = tuple({name for watcher in watchers for name in watcher.watch})
        run = self._prepared.run(model, job, first, count, watch=watch, say=say, probe=self.probe)
        for watcher in watchers:
            watcher.begin(run, first, job)
        try:
            for step in run:
                for watcher in watchers:
                    watcher.step(run, step)
        finally:
            for watcher in watchers:
                watcher.end()
        pictures = run.images()
        seconds = (time.perf_counter() - begun) / count
        return [
            Drawn(image, job.recipe(first + k, (k, count), image, tiled=run.tiled), seconds, run.hints)
            for k, image in enumerate(pictures)
        ]
