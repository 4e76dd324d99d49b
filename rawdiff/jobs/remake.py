"""A picture made again from the text in its file, the pixels unseen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rawdiff import paths, recipe, weights
from rawdiff.arguments import check_size_ids
from rawdiff.conditions import SizeIds
from rawdiff.errors import InputError, UsageError, WeightsError
from rawdiff.images import HINTS_VERSION
from rawdiff.jobs.extras import EmbeddingRequest, LoraRequest
from rawdiff.jobs.place import Place
from rawdiff.jobs.request import ControlRequest, FileRequest, Request
from rawdiff.nets import exact
from rawdiff.noise import NOISE_VERSION

__all__ = ["Remake", "check_same", "find_source", "open_remake"]


@dataclass(frozen=True)
class Remake:
    """What a picture's recipe asks for."""

    path: Path
    recipe: Mapping[str, Any]
    request: Request
    model: str
    revision: str | None
    nets: Mapping[str, Mapping[str, Any]]
    dtype: str

    @property
    def vae(self) -> Mapping[str, Any] | None:
        """What the recipe says of another's VAE, if there was one."""
        found: Mapping[str, Any] | None = self.recipe["made"].get("vae")
        return found

    @property
    def sampler(self) -> Mapping[str, Any]:
        """What the recipe says of the sampler."""
        found: Mapping[str, Any] = self.recipe["picture"]["sampler"]
        return found


def open_remake(path: str | Path) -> Remake:
    """Read the recipe of a picture and turn it back into a request; raises InputError."""
    path = Path(path)
    found = recipe.read(path)
    picture, made = found["picture"], found["made"]
    if picture["noise"] != NOISE_VERSION:
        raise InputError(
            f"{path}: was made with noise of version {picture['noise']}, and a seed gives other noise here "
            f"(version {NOISE_VERSION}): use the rawdiff {made['rawdiff']} that made it"
        )
    if picture["hints"] != HINTS_VERSION and (picture["controls"] or "image" in picture):
        raise InputError(
            f"{path}: was made with hints of version {picture['hints']}, and a map gives another hint here (version "
            f"{HINTS_VERSION}): use the rawdiff {made['rawdiff']} that made it"
        )
    controls, sampler = picture["controls"], picture["sampler"]
    first: Mapping[str, Any] = next((c for c in controls if c["depth_invert"] is not None), {})
    span = first.get("depth_range")
    image = picture.get("image", {})
    names = made.get("image", {})
    masked = image.get("mask") is not None
    try:
        request = Request(
            prompt=picture["prompt"],
            negative=picture["negative"],
            prompt_2=picture.get("prompt_2"),
            negative_2=picture.get("negative_2"),
            controls=tuple(_control(c, file) for c, file in zip(controls, made["inputs"], strict=True)),
            size=(picture["size"][0], picture["size"][1]),
            seed=picture["seed"],
            steps=sampler["steps"],
            guidance=picture["guidance"],
            rescale=picture["rescale"],
            guidance_end=picture.get("guidance_end"),
            clip_skip=picture["clip_skip"],
            guess=picture["guess"],
            eta=sampler["eta"],
            sampler=made["sampler"],
            timesteps=None if sampler["timesteps"] is None else tuple(sampler["timesteps"]),
            sigmas=None if sampler["sigmas"] is None else tuple(sampler["sigmas"]),
            fit=next((c["fit"] for c in (*controls, *([image] if image else []))), None),
            image=FileRequest(names["path"], image["sha256"]) if image else None,
            mask=FileRequest(names["mask"], image["mask"]) if masked else None,
            strength=image.get("strength"),
            paste=image.get("paste"),
            blend=image.get("blend"),
            depth_range=(span[0], span[1]) if isinstance(span, list) else span,
            depth_invert=first.get("depth_invert"),
            loras=tuple(_named(LoraRequest, found, "loras")),
            embeddings=tuple(_named(EmbeddingRequest, found, "embeddings")),
            syntax=picture.get("syntax"),
            repeats=tuple(picture.get("repeats", ())),
            size_ids=SizeIds.from_recipe(picture["size_ids"]) if "size_ids" in picture else None,
        ).check()
        exact.without(request.repeats)
        check_size_ids(request.size_ids, told=True)
    except UsageError as error:
        raise InputError(f"{path}: its recipe cannot be used: {error}") from None
    model = made["model"]
    nets = {c["kind"]: net for c, net in zip(controls, made["nets"], strict=True) if net is not None}
    return Remake(path, found, request, model["name"], model["revision"], nets, picture["dtype"])


def find_source(remake: Remake, source: Mapping[str, Any], what: str, option: str) -> str:
    """What a recipe's model or net is to be opened by: a folder or file stays one, here or beside the picture.

    Raises WeightsError for one that is not there, rather than ask a hub for one of the same name.
    """
    name, kind = str(source["name"]), source["kind"]
    if kind not in ("folder", "file"):
        return name
    given = paths.expanded(name)
    for place in (given, remake.path.parent / given):
        if paths.is_folder(place) if kind == "folder" else weights.is_file(place):
            return name if place == given else str(place)
    raise WeightsError(
        f"{remake.path}: {what} is a {kind}, {name}, and it is neither here nor beside the picture: name it with "
        f"{option}"
    )


def _control(entry: Mapping[str, Any], path: str) -> ControlRequest:
    window = (float(entry["weight"]), float(entry["start"]), float(entry["end"]))
    return ControlRequest(entry["kind"], path, *window, derive=entry["derive"], sha256=entry["sha256"])


def _named(kind: Callable[..., Any], found: Mapping[str, Any], what: str) -> Iterator[Any]:
    """The LoRAs or embeddings of a recipe as requests."""
    names, entries = found["made"].get(what, ()), found["picture"].get(what, ())
    return (kind(name, **entry) for name, entry in zip(names, entries, strict=True))


def check_same(remake: Remake, picture: Mapping[str, Any], over: Request, place: Place) -> list[str]:
    """Raise WeightsError or InputError where `picture` (what is to be drawn) differs unasked from the recipe.

    `over` and `place` are what was asked for beside it. Returns the names of what differs because of that.
    """
    wanted = remake.recipe["picture"]
    other_model = place.model is not None or place.revision is not None
    if not other_model:
        before, now = wanted["weights"], picture["weights"]
        masks = recipe.is_masked(wanted) != recipe.is_masked(picture)
        if (
            masks or place.vae is not None
        ):  # which may take another UNet of the same model, or does another VAE
            shared = before.keys() & now.keys()
            before, now = ({name: side[name] for name in shared} for side in (before, now))
        _same(before, now, f"{remake.path}: the model {remake.model}", "--model")
    by_kind = {control["kind"]: control["weights"] for control in wanted["controls"]}
    for control in picture["controls"]:
        kind = control["kind"]
        if kind in by_kind and kind not in place.nets and not other_model:
            _same(by_kind[kind], control["weights"], f"{remake.path}: the {kind} net", "--net")
    # Lists of controls are compared one by one only where there are as many.
    found = recipe.differences(wanted, picture)
    asked = _asked(over, place, other_model)
    unasked = [name for name in found if not any(re.fullmatch(pattern, name) for pattern in asked)]
    if unasked:
        raise InputError(
            f"{remake.path}: would become another picture, in {', '.join(unasked)}, and no option asked for that: "
            f"use the rawdiff {remake.recipe['made']['rawdiff']} and diffusers "
            f"{remake.recipe['made']['diffusers']} that made it, or say what you want, with --sampler NAME say"
        )
    return [name for name in found if "weights" not in name.split(".")]


_OF_SCHEDULE = [r"sampler\.(steps|timesteps|sigmas)(\[.*)?"]
_CHANGES: dict[str, list[str]] = {
    "prompt": ["prompt(_2)?"],
    "negative": ["negative(_2)?"],
    "prompt_2": ["prompt_2"],
    "negative_2": ["negative_2"],
    "controls": [r"controls.*"],
    "derive": [r"controls.*"],
    "size": [r"size.*"],
    "seed": ["seed"],
    "size_ids": [r"size_ids.*"],
    "guidance": ["guidance"],
    "rescale": ["rescale"],
    "guidance_end": ["guidance_end"],
    "clip_skip": ["clip_skip"],
    "guess": ["guess"],
    "eta": [r"sampler\.eta"],
    "sampler": [r"sampler\..*"],
    "steps": _OF_SCHEDULE,
    "timesteps": _OF_SCHEDULE,
    "sigmas": _OF_SCHEDULE,
    "fit": [r"controls\[\d+\]\.fit", r"image\.fit"],
    "image": ["image", r"image\.(sha256|mask|paste|blend|fit|strength)"],
    "mask": [r"image\.(mask|paste|blend|strength)", r"weights.*"],
    "strength": [r"image\.strength"],
    "paste": [r"image\.paste"],
    "blend": [r"image\.blend"],
    "depth_range": [r"controls\[\d+\]\.depth_range.*"],
    "depth_invert": [r"controls\[\d+\]\.depth_invert"],
    "loras": [r"loras.*"],
    "embeddings": [r"embeddings.*"],
    "syntax": ["syntax", "prompt(_2)?", r"loras.*"],  # which may read tags in the prompt
}
"""What of a picture each word of a request may change."""


def _asked(over: Request, place: Place, other_model: bool) -> list[str]:
    said = [name for name in _CHANGES if getattr(over, name) not in (None, ())]
    said += [name for name in ("controls", "loras", "embeddings") if getattr(over, name) == ()]
    patterns = [pattern for name in said for pattern in _CHANGES[name]]
    if over.controls is not None:  # the last map takes with it what is said of maps
        patterns.append("guess")
    if other_model:
        patterns += [r"weights.*", r"sampler\..*", r"merge.*", "zeros", r"size_ids.*", r"image\.blend"]
    if place.vae is not None:
        patterns.append(r"weights.*")
    if other_model or place.nets:
        patterns.append(r"controls\[\d+\]\.weights.*")
    return patterns if place.dtype is None else [*patterns, "dtype"]


def _same(wanted: Mapping[str, str], found: Mapping[str, str], what: str, option: str) -> None:
    changed = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if changed:
        raise WeightsError(
            f"{what} is not what the picture was made with: {changed[0]} has SHA-256 "
            f"{found.get(changed[0], 'none')[:12]}, expected {wanted.get(changed[0], 'none')[:12]}: get that one, or "
            f"choose with {option}"
        )
