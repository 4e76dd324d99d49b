"""What somebody asks for, before anything is opened: checked by its numbers and words alone, at once.

A Request is what `gen` and a line of a batch both say. What is None was not said; `merged` lays one request over
another, so that a recipe can be made again with changes. Nothing here imports torch: a typing mistake is answered
before a second has passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from rawdiff.errors import UsageError
from rawdiff.geometry import Size, check_size
from rawdiff.jobs.extras import EmbeddingRequest, LoraRequest
from rawdiff.limits import FITS, MAX_SEED, check_few, check_strength, check_text
from rawdiff.syntax import PLAIN, check_syntax, check_untagged, take_all_tags

__all__ = ["ControlRequest", "FileRequest", "Request"]

MAX_COUNT = 100_000


@dataclass(frozen=True)
class ControlRequest:
    """One map for one ControlNet, by its path."""

    kind: str
    path: str
    weight: float | None = None
    """1.0 where nobody says; a request laid over another keeps what that one says, and so with what follows."""
    start: float | None = None
    end: float | None = None
    derive: bool | None = None
    """Whether the hint is to be made from the map (a normal map from depth, edges from depth or a picture)."""
    sha256: str | None = None
    """What the file's SHA-256 must be, where a recipe says so."""

    @property
    def window(self) -> tuple[float, float, float]:
        """Weight, start and end, with what was not said filled in."""
        return (
            1.0 if self.weight is None else self.weight,
            0.0 if self.start is None else self.start,
            1.0 if self.end is None else self.end,
        )

    def check(self) -> None:
        """Raise UsageError for a kind, path, weight or window that makes no sense."""
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", self.kind):
            raise UsageError(f"control {self.kind!r}: expected a kind such as depth, normal or canny")
        if not self.path:
            raise UsageError(f"control {self.kind}: its path is empty; leave the option out for no map")
        if "\0" in self.path:
            raise UsageError(f"control {self.kind}: its path holds a NUL character: remove it")
        weight, start, end = self.window
        if not math.isfinite(weight):
            raise UsageError(f"control {self.kind}: weight {weight}; expected a finite number such as 1.0")
        if not 0.0 <= start < end <= 1.0:
            raise UsageError(f"control {self.kind}: window {start:g}-{end:g}; expected 0 <= start < end <= 1")


@dataclass(frozen=True)
class FileRequest:
    """A picture to read, by its path."""

    path: str
    sha256: str | None = None
    """What the file's SHA-256 must be, where a recipe says so."""

    def check(self, what: str) -> None:
        """Raise UsageError for a path that is none."""
        if not self.path or "\0" in self.path:
            raise UsageError(f"{what} {self.path!r}: expected the path of a picture")


@dataclass(frozen=True)
class Request:
    """What to draw. Every field but `prompt` may be left out; `plan` fills in what a model is meant for."""

    prompt: str | None = None
    negative: str | None = None
    prompt_2: str | None = None
    """What SDXL's second text encoder reads; empty for what the first does, and so with the next."""
    negative_2: str | None = None
    controls: tuple[ControlRequest, ...] | None = None
    derive: tuple[str, ...] = ()
    """Kinds whose hint is made from the map given for them, or else from the depth map."""
    size: Size | None = None
    """(height, width) in pixels."""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    rescale: float | None = None
    guidance_end: float | None = None
    """The share of the run after which guidance is off."""
    clip_skip: int | None = None
    guess: bool | None = None
    eta: float | None = None
    sampler: str | None = None
    timesteps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    count: int | None = None
    fit: str | None = None
    depth_range: str | tuple[float, float] | None = None
    depth_invert: bool | None = None
    image: FileRequest | None = None
    """What the run begins from."""
    mask: FileRequest | None = None
    """White is painted anew."""
    strength: float | None = None
    paste: bool | None = None
    """Whether what stays is pasted back into the finished picture."""
    blend: bool | None = None
    """Whether what stays is put back after each step, with an inpainting UNet too."""
    loras: tuple[LoraRequest, ...] | None = None
    embeddings: tuple[EmbeddingRequest, ...] | None = None
    syntax: str | None = None
    """How the prompts are read; see `rawdiff.syntax`."""
    repeats: tuple[str, ...] = ()
    """Work done at every step, which is else done once; only a recipe asks for it."""
    size_ids: Any = None
    """What SDXL is told of sizes (a SizeIds)."""

    def merged(self, over: Request) -> Request:
        """This request with everything that `over` says said instead.

        A control of `over` takes the place of all of its kind here (and keeps the weight and window of a single
        one, where it says none), and what was made from a depth map that is replaced is made from the new one; an
        empty tuple drops every one. LoRAs and embeddings of `over` take the place of all here, a schedule (steps,
        timesteps or sigmas) that of the schedule. How maps are read and used is forgotten with the last map. Raises
        UsageError where it cannot be told which of several new depth maps something is to be made from.
        """
        said: dict[str, Any] = {
            field.name: getattr(over, field.name)
            for field in fields(over)
            if getattr(over, field.name) is not None
        }
        schedule = ("steps", "timesteps", "sigmas")
        if any(name in said for name in schedule):
            said = {**dict.fromkeys(schedule), **said}
        if over.controls:
            said["controls"] = self._substituted(over.controls)
        said["derive"] = tuple(dict.fromkeys((*self.derive, *over.derive)))
        said["repeats"] = self.repeats
        merged = replace(self, **said)
        forgotten = set(merged._without_effect()) - set(self._without_effect())
        return replace(merged, **{name: getattr(over, name) for name in forgotten})

    def untagged(self, base: Request | None = None) -> Request:
        """This request with the LoRAs that its prompt has as tags among its LoRAs, as if they were given so.

        It is read in its own syntax, else in that of `base`, which it will be laid over. Raises UsageError.
        """
        said = self.syntax if self.syntax is not None or base is None else base.syntax
        if check_syntax(said) == PLAIN:
            return self
        prompts, tags = take_all_tags([self.prompt or ""], [self.negative or ""])
        check_untagged("second", [self.prompt_2 or "", self.negative_2 or ""])
        if not tags:
            return self
        loras = (*(self.loras or ()), *(LoraRequest(*tag) for tag in tags))
        return replace(self, prompt=prompts[0], loras=loras)

    def _substituted(self, given: tuple[ControlRequest, ...]) -> tuple[ControlRequest, ...]:
        """The controls here with `given` in the places of their kinds, those of new kinds after them."""
        own = self.controls or ()
        new = {kind: [c for c in given if c.kind == kind] for kind in dict.fromkeys(c.kind for c in given)}
        counts = {kind: sum(c.kind == kind for c in own) for kind in new}
        depths = [c for c in own if c.kind == "depth"]
        made: list[ControlRequest] = []
        left = {kind: list(controls) for kind, controls in new.items()}
        for control in own:
            if control.kind not in new:
                made.append(self._derived_again(control, depths, new.get("depth", [])))
                continue
            counts[control.kind] -= 1
            place = left[control.kind]
            taken = len(place) if counts[control.kind] == 0 else min(1, len(place))
            made += [self._inherited(c) for c in place[:taken]]
            del place[:taken]
        return (*made, *(c for controls in left.values() for c in controls))

    def _derived_again(
        self, control: ControlRequest, depths: list[ControlRequest], new: list[ControlRequest]
    ) -> ControlRequest:
        """`control`, made from the new depth map if it was made from one that is replaced."""
        sources = [k for k, d in enumerate(depths) if (d.path, d.sha256) == (control.path, control.sha256)]
        if not new or not control.derive or not sources:
            return control
        paths = {new[k].path for k in sources} if len(new) == len(depths) else {c.path for c in new}
        if len(paths) != 1:
            raise UsageError(
                f"{control.kind}: was made from a depth map that {len(new)} others replace: say which with "
                f"--{control.kind} PATH --derive {control.kind}"
            )
        return replace(control, path=paths.pop(), sha256=None)

    def _without_effect(self) -> list[str]:
        """Names of what is said of maps where there is no map for it."""
        controls = self.resolved()
        of_any = [] if controls else ["guess"] if self.image is not None else ["fit", "guess"]
        of_depth = (
            [] if any(c.kind == "depth" or c.derive for c in controls) else ["depth_range", "depth_invert"]
        )
        return [name for name in of_any + of_depth if getattr(self, name) not in (None, False)]

    def _inherited(self, control: ControlRequest) -> ControlRequest:
        own = [own for own in self.controls or () if own.kind == control.kind]
        if len(own) != 1:
            return control
        names = ("weight", "start", "end", "derive")
        return replace(control, **{n: getattr(own[0], n) for n in names if getattr(control, n) is None})

    def resolved(self) -> tuple[ControlRequest, ...]:
        """The controls, with `derive` applied; raises UsageError where there is no map to derive from."""
        controls = list(self.controls or ())
        for kind in self.derive:
            own = [k for k, control in enumerate(controls) if control.kind == kind]
            depth = [control for control in controls if control.kind == "depth"]
            if own:
                for k in own:
                    controls[k] = replace(controls[k], derive=True)
            elif len(depth) == 1:
                controls.append(ControlRequest(kind, depth[0].path, derive=True, sha256=depth[0].sha256))
            else:
                raise UsageError(
                    f"derive {kind}: give the map to make it from, with --{kind} (or one depth map with --depth)"
                )
        return tuple(controls)

    def check(self) -> Request:
        """This request, if its words and numbers make sense by themselves; raises UsageError, SizeError."""
        if self.prompt is None:
            raise UsageError(
                "no prompt: say what to draw, with --prompt TEXT (or -p - to read standard input)"
            )
        check_text("prompt", self.prompt)
        texts = {
            "negative prompt": self.negative,
            "prompt 2": self.prompt_2,
            "negative prompt 2": self.negative_2,
        }
        for what, text in texts.items():
            if text is not None:
                check_text(what, text)
        check_syntax(self.syntax)
        if self.size is not None:
            check_size(self.size)
        for name, low, high in (("steps", 1, 10_000), ("count", 1, MAX_COUNT), ("clip_skip", 0, 100)):
            _check_whole(name, getattr(self, name), low, high)
        _check_whole("seed", self.seed, 0, MAX_SEED)
        last = (self.seed or 0) + (1 if self.count is None else self.count) - 1
        if last > MAX_SEED:
            raise UsageError(f"seed {self.seed}: the last of {self.count} would be {last}, beyond {MAX_SEED}")
        _check_number("guidance", self.guidance, 0.0, 1000.0)
        _check_number("rescale", self.rescale, 0.0, 1.0)
        _check_number("guidance_end", self.guidance_end, 0.0, 1.0)
        _check_number("eta", self.eta, 0.0, 1.0)
        if self.fit is not None and self.fit not in FITS:
            raise UsageError(f"fit {self.fit!r}: expected crop, pad or stretch")
        schedule = [name for name in ("steps", "timesteps", "sigmas") if getattr(self, name) is not None]
        if len(schedule) > 1:
            raise UsageError(f"{' and '.join(schedule)} were given: the schedule is set by one of them")
        added: dict[str, Sequence[Any]] = {
            "controls": self.resolved(),
            "loras": self.loras or (),
            "embeddings": self.embeddings or (),
        }
        for what, parts in added.items():
            check_few(what, parts)
            for part in parts:
                part.check()
        for name, file in (("image", self.image), ("mask", self.mask)):
            if file is not None:
                file.check(name)
        check_strength(self.image, self.mask, self.strength, self.paste, self.blend)
        for name in self._without_effect():
            kind = "depth map" if name.startswith("depth") else "map"
            raise UsageError(
                f"{name.replace('_', ' ')}: there is no {kind} for it: give one, with --depth PATH say, or leave it out"
            )
        return self


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name.replace('_', ' ')} {value!r}: expected a whole number from {low} to {high}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(f"{name.replace('_', ' ')} {value!r}: expected a number from {low:g} to {high:g}")
