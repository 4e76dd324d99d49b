"""A Request from words: those of the command line, or of a manifest's line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rawdiff.errors import UsageError
from rawdiff.geometry import parse_size
from rawdiff.jobs.request import ControlRequest, FileRequest, Request

__all__ = ["parse_control", "parse_numbers", "request_from_words"]

SUGAR = ("depth", "normal", "canny")
"""Kinds of control with an option of their own."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|[+-]?inf"
_SUFFIX = re.compile(rf"(?P<path>.+)@(?P<weight>{_NUMBER})(?:,(?P<start>{_NUMBER})-(?P<end>{_NUMBER}))?")


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


def request_from_words(
    words: Mapping[str, Any],
    *,
    place: Callable[[str], str] = str,
    exists: Callable[[str], bool] = _exists,
) -> Request:
    """The request in the words of the command line: `{"prompt": ..., "depth": PATH, "size": "768x512", ...}`.

    `depth`, `normal`, `canny` and `control` (several texts, or "none" for none) become its controls, `image` and
    `mask` its files, each path sent through `place` (`exists` is asked before that); texts for size, timesteps and
    sigmas are parsed. None was not said. Raises UsageError.
    """
    said = {key: value for key, value in words.items() if value is not None}
    controls = [ControlRequest(kind, said.pop(kind)) for kind in SUGAR if kind in said]
    texts = list(said.pop("control", ()))
    controls += [parse_control(text, exists) for text in texts if text != "none"]
    if controls and "none" in texts:
        raise UsageError("control none: drops every control, so it goes with no other")
    if controls or texts:
        said["controls"] = tuple(replace(control, path=place(control.path)) for control in controls)
    for name in ("image", "mask"):
        if name in said:
            said[name] = FileRequest(place(said[name]))
    if isinstance(said.get("size"), str):
        said["size"] = parse_size(said["size"])
    for name in ("timesteps", "sigmas"):
        if isinstance(said.get(name), str):
            said[name] = parse_numbers(name, said[name], whole=name == "timesteps")
    said["derive"] = tuple(said.get("derive", ()))
    return Request(**said)
