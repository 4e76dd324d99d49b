"""A Job: a request with nothing left open. And what came of it, and who looks on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rawdiff import images, recipe
from rawdiff.controls import Control
from rawdiff.errors import InputError
from rawdiff.geometry import Size, format_size
from rawdiff.images.depth import parse_depth_range
from rawdiff.jobs.request import ControlRequest, Request
from rawdiff.paths import is_file
from rawdiff.sampler import Sampler, count_steps

if TYPE_CHECKING:
    from PIL.Image import Image

    from rawdiff.run import Run
    from rawdiff.step import Step

__all__ = ["Drawn", "Job", "Watcher", "fitting_of", "open_file", "open_map"]


@dataclass(frozen=True, eq=False)
class Job:
    """A request with nothing left open: one picture for each seed, and the recipe of each."""

    request: Request
    size: Size
    seeds: tuple[int, ...]
    controls: tuple[Control, ...]
    """Their sources are opened."""
    sampler: Sampler
    options: Mapping[str, Any]
    """What `Model.prepare` takes beside these."""
    picture: Mapping[str, Any]
    """What decides the pictures, but for the seed."""
    made: Mapping[str, Any]
    put_back: bool
    """Whether what a mask keeps is put back after each step."""

    def recipe(
        self, k: int, batch: tuple[int, int] = (0, 1), image: Image | None = None, *, tiled: bool = False
    ) -> dict[str, Any]:
        """The recipe of picture `k`, drawn in place `batch[0]` of `batch[1]` at once; `image` once it is drawn."""
        picture = {**self.picture, "seed": self.seeds[k]}
        return recipe.tell(picture, self.made, batch, image, tiled=tiled)

    def only(self, wanted: Sequence[int]) -> Job:
        """The same job for some of its pictures."""
        return replace(self, seeds=tuple(self.seeds[k] for k in wanted))

    def ids(self) -> list[str]:
        """The id of each picture."""
        return [recipe.job_id({**self.picture, "seed": seed}) for seed in self.seeds]

    def describe(self) -> str:
        """Size, sampler, guidance and seeds, on one line."""
        first, last, count = self.seeds[0], self.seeds[-1], len(self.seeds)
        seeds = f"seed {first}" if count == 1 else f"seeds {first} to {last}"
        if last - first >= count:  # some of a batch's are there
            seeds = f"{count} of {seeds}"
        steps = self.picture["sampler"]["steps"]
        steps = f"{steps} steps" if steps is not None else f"{len(self.sampler.rows)} evaluations"
        guidance = f"guidance {self.picture['guidance']:g}"
        loras = "".join(f"lora {one.name} {one.scale:g}, " for one in self.options["loras"])
        strength = self.picture["image"]["strength"] if "image" in self.picture else 1.0
        if strength < 1.0:
            steps = f"the last {int(count_steps(self.sampler) * strength)} of {steps}"
        return f"{format_size(self.size)}, {steps} of {self.sampler.name}, {guidance}, {loras}{seeds}"


@dataclass(frozen=True, eq=False)
class Drawn:
    """A finished picture."""

    image: Image
    recipe: dict[str, Any]
    seconds: float
    """From preparing to decoding, shared evenly by the pictures of a batch."""
    hints: tuple[images.Hint, ...]

    @property
    def parameters(self) -> str:
        """The text for other programs."""
        return recipe.write_parameters(self.recipe)


class Watcher(Protocol):
    """Somebody who looks on while pictures are drawn."""

    watch: Sequence[str]
    """What of each step it wants; see `step.WATCHABLE`."""

    def begin(self, run: Run, first: int, job: Job) -> None:
        """A run of the job's pictures from `first` on begins."""

    def step(self, run: Run, step: Step) -> None:
        """A step was taken."""

    def end(self) -> None:
        """The run is over, or failed."""


def fitting_of(request: Request) -> dict[str, Any]:
    """How maps are read and brought to size."""
    given = request.depth_range
    return {
        "fit": request.fit,
        "depth_range": parse_depth_range(given) if isinstance(given, str) else given,
        "depth_invert": bool(request.depth_invert),
    }


def open_map(control: ControlRequest, beside: Path | None) -> images.Samples:
    """The map, read; one that a recipe names must have the SHA-256 that it says, and may lie beside the picture."""
    return open_file(control.path, control.sha256, f"{control.kind} map", f"--{control.kind} PATH", beside)


def open_file(given: str, sha256: str | None, what: str, option: str, beside: Path | None) -> images.Samples:
    """The same for any picture; `what` it is and which `option` would name another are for the message."""
    if sha256 is None:
        return images.open_source(given)
    path = Path(given)
    places = [path] if beside is None else list(dict.fromkeys([path, beside / path, beside / path.name]))
    found = [place for place in places if is_file(place)]
    wrong = ""
    for place in found:
        try:
            samples = images.open_source(place)
        except InputError as error:  # another of the places may have it
            wrong = wrong or f"it cannot be read: {error}"
            continue
        if samples.sha256 == sha256:
            return samples
        wrong = wrong or f"this one's with {samples.sha256[:12]}"
    said = f"its SHA-256 must begin with {sha256[:12]}"
    if not found:
        raise InputError(
            f"{given}: the recipe's {what} is not there ({said}): put it back, or name another with {option}"
        )
    raise InputError(
        f"{found[0]}: is not the recipe's {what} ({said}, {wrong}): put that back, or name another with {option}"
    )
