"""What somebody asks for, before anything is opened: checked by its numbers and words alone, at once.

A Request is what `gen` and a line of a batch both say. What is None was not said; `merged` lays one request over
another, so that a recipe can be made again with changes. Nothing here imports torch: a typing mistake is answered
before a second has passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rawdiff.errors import UsageError
from rawdiff.geometry import Size, check_size, parse_size

__all__ = [
    "MAX_SEED",
    "ControlRequest",
    "Request",
    "check_text",
    "parse_control",
    "parse_numbers",
    "request_from_words",
]

MAX_SEED = 2**32 - 1
MAX_COUNT = 100_000
FITS = ("crop", "pad", "stretch")
SUGAR = ("depth", "normal", "canny")
"""Kinds of control with an option of their own."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|[+-]?inf"
_SUFFIX = re.compile(rf"(?P<path>.+)@(?P<weight>{_NUMBER})(?:,(?P<start>{_NUMBER})-(?P<end>{_NUMBER}))?")


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


def _exists(path: str) -> bool:
    return "\0" not in path and Path(path).exists()


def parse_control(text: str, exists: Callable[[str], bool] = _exists) -> ControlRequest:
    """`KIND=PATH[@weight[,start-end]]` as a ControlRequest; raises UsageError.

    An `@` belongs to the path where a file of the whole name is there.
    """
    kind, equals, rest = text.partition("=")
    if not equals or not kind or not rest:
        raise UsageError(
            f"control {text!r}: expected KIND=PATH[@weight[,start-end]], such as depth=room.png@0.8,0-0.6"
        )
    if exists(rest):
        return ControlRequest(kind, rest)
    match = _SUFFIX.fullmatch(rest)
    if match is None:
        path, at, suffix = rest.rpartition("@")
        if at and exists(path):
            raise UsageError(
                f"control {text!r}: {suffix!r} is no weight[,start-end], such as 0.8 or 0.8,0-0.6"
            )
        return ControlRequest(kind, rest)
    window = () if match["start"] is None else (float(match["start"]), float(match["end"]))
    return ControlRequest(kind, match["path"], float(match["weight"]), *window)


def parse_numbers(what: str, text: str, *, whole: bool = False) -> tuple[float, ...]:
    """`"999,749,499"` as numbers (int with `whole`); raises UsageError. Their order is the sampler's business."""
    try:
        numbers = tuple((int if whole else float)(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{what} {text[:80]!r}: expected numbers with commas between, 999,749,499 say"
        ) from None
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{what} {text[:80]!r}: expected finite numbers")
    return numbers


def check_text(what: str, text: object) -> str:
    """`text` if a tokenizer and a file can hold it; raises UsageError for NUL and lone surrogates."""
    if not isinstance(text, str):
        raise UsageError(f"{what} {text!r}: expected text")
    if "\0" in text:
        raise UsageError(f"{what}: holds a NUL character at place {text.index(chr(0))}: remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what}: what stands at place {error.start} is no character (half a surrogate pair, or bytes that "
            "are no UTF-8): remove it"
        ) from None
    return text


@dataclass(frozen=True)
class Request:
    """What to draw. Every field but `prompt` may be left out; `plan` fills in what a model is meant for."""

    prompt: str | None = None
    negative: str | None = None
    controls: tuple[ControlRequest, ...] | None = None
    derive: tuple[str, ...] = ()
    """Kinds whose hint is made from the map given for them, or else from the depth map."""
    size: Size | None = None
    """(height, width) in pixels."""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    rescale: float | None = None
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

    def merged(self, over: Request) -> Request:
        """This request with everything that `over` says said instead.

        A control of `over` takes the place of all of its kind here (and keeps the weight and window of a single
        one, where it says none); an empty tuple drops every one. A schedule (steps, timesteps or sigmas) takes
        the place of the schedule.
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
            kinds = {control.kind for control in over.controls}
            kept = (control for control in self.controls or () if control.kind not in kinds)
            said["controls"] = (*kept, *(self._inherited(control) for control in over.controls))
        return replace(self, **said)

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
        if self.negative is not None:
            check_text("negative prompt", self.negative)
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
        _check_number("eta", self.eta, 0.0, 1.0)
        if self.fit is not None and self.fit not in FITS:
            raise UsageError(f"fit {self.fit!r}: expected crop, pad or stretch")
        schedule = [name for name in ("steps", "timesteps", "sigmas") if getattr(self, name) is not None]
        if len(schedule) > 1:
            raise UsageError(f"{' and '.join(schedule)} were given: the schedule is set by one of them")
        for control in self.resolved():
            control.check()
        return self


def request_from_words(
    words: Mapping[str, Any],
    *,
    place: Callable[[str], str] = str,
    exists: Callable[[str], bool] = _exists,
) -> Request:
    """The request in the words of the command line: `{"prompt": ..., "depth": PATH, "size": "768x512", ...}`.

    `depth`, `normal`, `canny` and `control` (several texts, or "none" for none) become its controls, each path
    sent through `place` (`exists` is asked before that); texts for size, timesteps and sigmas are parsed. None was
    not said. Raises UsageError.
    """
    said = {key: value for key, value in words.items() if value is not None}
    controls = [ControlRequest(kind, said.pop(kind)) for kind in SUGAR if kind in said]
    texts = list(said.pop("control", ()))
    controls += [parse_control(text, exists) for text in texts if text != "none"]
    if controls and "none" in texts:
        raise UsageError("control none: drops every control, so it goes with no other")
    if controls or texts:
        said["controls"] = tuple(replace(control, path=place(control.path)) for control in controls)
    if isinstance(said.get("size"), str):
        said["size"] = parse_size(said["size"])
    for name in ("timesteps", "sigmas"):
        if isinstance(said.get(name), str):
            said[name] = parse_numbers(name, said[name], whole=name == "timesteps")
    said["derive"] = tuple(said.get("derive", ()))
    return Request(**said)


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name.replace('_', ' ')} {value!r}: expected a whole number from {low} to {high}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(f"{name} {value!r}: expected a number from {low:g} to {high:g}")
