"""What `rawdiff gen` does: a request to files, or to a plan alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rawdiff import images
from rawdiff.errors import UsageError
from rawdiff.jobs.job import Drawn, Job, Watcher
from rawdiff.jobs.output import Output, check_batch, find_output
from rawdiff.jobs.place import Place, open_workshop, start_probe
from rawdiff.jobs.preview import Previews
from rawdiff.jobs.remake import Remake, check_same, find_source, open_remake
from rawdiff.jobs.request import Request
from rawdiff.jobs.workshop import Workshop
from rawdiff.probes import Probe
from rawdiff.say import Say, say_on_stderr

__all__ = ["Finished", "Settings", "generate"]


@dataclass(frozen=True)
class Settings:
    """How `generate` goes about it; none of this decides a picture."""

    out: str | None = None
    overwrite: bool = False
    batch: int = 1
    dry_run: bool = False
    preview: bool = False
    save_hints: bool = False
    timings: bool = False
    waited_ms: float = 0.0
    """How long a person or a pipe was waited for before."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What came of it."""

    job: Job
    probe: Probe | None


def generate(
    request: Request,
    place: Place,
    settings: Settings,
    *,
    remake: str | Path | None = None,
    watchers: Sequence[Watcher] = (),
    say: Say = say_on_stderr,
    done: Callable[[Path, Drawn], None],
) -> Finished:
    """Plan `request`, and unless it is a dry run draw and write its pictures; `done` is told of each.

    With `remake`, a picture's path, its recipe is laid under the request, and must hold: every input and weight
    file that the request does not replace is checked by its SHA-256, and the sampler is the recorded one unless
    the request names another. Raises every error that there is.
    """
    check_batch(settings.batch)
    again = None if remake is None else open_remake(remake)
    request = request.untagged(None if again is None else again.request)
    over, other = request, place
    recorded: Mapping[str, Any] | None = None
    if again is not None:
        if request.sampler is None and place.model is None and place.revision is None:
            recorded = again.sampler
        request = again.request.merged(request)
        place = _place_of(again, place)
        if "tiles" in again.recipe["made"] and place.memory != "low":
            say(
                f"{again.path}: went through the VAE in tiles, for want of memory: pixels may differ by a few grey "
                "levels, unless with --memory low"
            )
    request.check()
    if settings.save_hints and not request.resolved():
        raise UsageError("save hints: there is no map to make one of: give one, with --depth PATH say")
    probe = start_probe(place.device, settings.timings, settings.waited_ms)
    workshop = open_workshop(place, say, probe)
    if over.size_ids is None and not workshop.defaults.two_encoders:  # a recipe's, of another model
        request = replace(request, size_ids=None)
    count = 1 if request.count is None else request.count
    found = find_output(settings.out, count=count, overwrite=settings.overwrite)
    output = None if settings.dry_run else found.ready()
    try:
        beside = None if again is None else again.path.parent
        job = workshop.plan(request, batch=settings.batch, beside=beside, recorded=recorded)
        if again is not None:
            picture = job.recipe(0)["picture"]
            changed = check_same(again, picture, over, other)
            if changed:
                say(f"not the same as {again.path} in {', '.join(changed)}")
        if output is None:
            workshop.check_vae()
            workshop.remark(job)
        else:
            say(job.describe())
            _draw(workshop, job, output, settings, watchers, say, done)
    except BaseException:
        if output is not None:
            output.abandon()
        raise
    return Finished(job, probe if isinstance(probe, Probe) else None)


def _draw(
    workshop: Workshop,
    job: Job,
    output: Output,
    settings: Settings,
    watchers: Sequence[Watcher],
    say: Say,
    done: Callable[[Path, Drawn], None],
) -> None:
    stem = output.stem(job.picture["prompt"], job.seeds[0])
    if settings.preview:
        watchers = (*watchers, Previews(output.folder, stem, say))
    hints_saved = not settings.save_hints
    for drawn in workshop.draw(job, batch=settings.batch, watchers=watchers):
        with workshop.probe("png", host=True):
            path = output.write(drawn, say)
        done(path, drawn)
        if not hints_saved:
            for path in images.save_hints(output.folder, stem, drawn.hints):
                say(f"hint: {path}")
            hints_saved = True


def _place_of(again: Remake, place: Place) -> Place:
    """What the recipe says of model, nets, VAE and dtype, under what `place` says."""
    if place.model is None:
        revision = again.revision if place.revision is None else place.revision
        model = find_source(again, again.recipe["made"]["model"], "its model", "--model FOLDER")
        nets = {
            kind: find_source(again, net, f"its {kind} net", f"--net {kind}=FOLDER")
            for kind, net in again.nets.items()
            if kind not in place.nets
        }
        vae = place.vae
        if vae is None and again.vae is not None:
            vae = find_source(again, again.vae, "its vae", "--vae SOURCE")
        place = replace(place, model=model, revision=revision, nets={**nets, **place.nets}, vae=vae)
    return replace(place, dtype=again.dtype if place.dtype is None else place.dtype)
