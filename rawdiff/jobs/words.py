"""A Request from words: those of the command line, or of a manifest's line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rawdiff.errors import UsageError
from rawdiff.geometry import parse_size
from rawdiff.jobs.extras import EmbeddingRequest, LoraRequest
from rawdiff.jobs.request import ControlRequest, FileRequest, Request
from rawdiff.limits import is_name
from rawdiff.paths import is_there

__all__ = [
    "parse_control",
    "parse_embedding",
    "parse_lora",
    "parse_numbers",
    "parse_size_ids",
    "request_from_words",
]

SUGAR = ("depth", "normal", "canny")
"""Kinds of control with an option of their own."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|[+-]?inf"
_SUFFIX = re.compile(rf"(?P<path>.+)@(?P<weight>{_NUMBER})(?:,(?P<start>{_NUMBER})-(?P<end>{_NUMBER}))?")
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_SIZE_IDS = {"original": _SIZE, "crop": re.compile(r"(\d{1,6}),(\d{1,6})"), "target": _SIZE}
_SCALED = re.compile(rf"(?P<path>.+)@(?P<scale>{_NUMBER})")


def _exists(path: str) -> bool:
    return is_there(path)


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


def parse_lora(text: str, exists: Callable[[str], bool] = _exists) -> LoraRequest:
    """`PATH[@scale]` (or a name for PATH) as a LoraRequest; an `@` belongs to the path where a file is called so."""
    match = _SCALED.fullmatch(text)
    if exists(text) or match is None:
        path, at, suffix = text.rpartition("@")
        if at and not exists(text) and (exists(path) or (is_name(path) and is_name(suffix))):
            raise UsageError(f"lora {text!r}: {suffix!r} is no scale, such as 0.8")
        return LoraRequest(text)
    return LoraRequest(match["path"], float(match["scale"]))


def parse_embedding(text: str, exists: Callable[[str], bool] = _exists) -> EmbeddingRequest:
    """`PATH[=TRIGGER]` (or a name for PATH) as an EmbeddingRequest; an `=` may belong to the path likewise."""
    path, equals, trigger = text.rpartition("=")
    if not equals or exists(text):
        return EmbeddingRequest(text)
    if not path or not trigger:
        raise UsageError(f"embedding {text!r}: expected PATH[=TRIGGER], such as style.pt=zebra-stripes")
    return EmbeddingRequest(path, trigger)


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
    `mask` its files, each path sent through `place` (`exists` is asked before that), and so with `lora` and
    `embedding`; texts for size, its ids, timesteps and sigmas are parsed. None was not said. Raises UsageError.
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
    for name, several, parse in (("lora", "loras", parse_lora), ("embedding", "embeddings", parse_embedding)):
        if name in said:
            said[several] = _added(name, said.pop(name), parse, place, exists)
    for name in ("timesteps", "sigmas"):
        if isinstance(said.get(name), str):
            said[name] = parse_numbers(name, said[name], whole=name == "timesteps")
    if "prompt_syntax" in said:
        said["syntax"] = said.pop("prompt_syntax")
    if isinstance(said.get("size_ids"), str):
        said["size_ids"] = parse_size_ids(said["size_ids"])
    said["derive"] = tuple(said.get("derive", ()))
    return Request(**said)


def parse_size_ids(text: str) -> Any:
    """`"original=2048x1024 crop=LEFT,TOP negative-original=512x512"` as SizeIds; none: the size; raises UsageError."""
    said: dict[str, dict[str, Any]] = {"": {}, "negative-": {}}
    for word in [] if text.strip() == "none" else text.split() or [text]:
        of = "negative-" if word.startswith("negative-") else ""
        name, _, value = word.removeprefix(of).partition("=")
        match = _SIZE_IDS[name].fullmatch(value) if name in _SIZE_IDS.keys() - said[of].keys() else None
        if match is None:
            raise UsageError(
                f"size ids {word[:60]!r}: expected original=WIDTHxHEIGHT, target=WIDTHxHEIGHT and crop=LEFT,TOP once "
                "each, with negative- before it for what guidance leads away from, or none"
            )
        said[of][name] = (int(match[2]), int(match[1]))
    from rawdiff.conditions import SizeIds  # and torch with it

    own = SizeIds(**said[""])
    negative = SizeIds(**said["negative-"]) if said["negative-"] else own
    return own if negative == own else replace(own, negative=negative)


def _added(
    what: str,
    texts: Sequence[str],
    parse: Callable[[str, Callable[[str], bool]], Any],
    place: Callable[[str], str],
    exists: Callable[[str], bool],
) -> tuple[Any, ...]:
    if "none" in texts:
        if len(texts) > 1:
            raise UsageError(f"{what} none: drops every one, so it goes with no other")
        return ()
    found = [parse(text, exists) for text in texts]
    return tuple(one if is_name(one.name) else replace(one, name=_path(place(one.name))) for one in found)


def _path(text: str) -> str:
    """A path that is not taken for a name."""
    return f"./{text}" if is_name(text) else text
