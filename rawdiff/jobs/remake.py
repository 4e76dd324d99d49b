"""A picture made again from the text in its file, the pixels unseen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rawdiff import recipe
from rawdiff.errors import InputError, UsageError, WeightsError
from rawdiff.jobs.request import ControlRequest, Request
from rawdiff.noise import NOISE_VERSION

__all__ = ["Remake", "check_weights", "open_remake"]


@dataclass(frozen=True)
class Remake:
    """What a picture's recipe asks for."""

    path: Path
    recipe: Mapping[str, Any]
    request: Request
    model: str
    revision: str | None
    nets: Mapping[str, str]
    dtype: str


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
    controls, sampler = picture["controls"], picture["sampler"]
    first: Mapping[str, Any] = next((c for c in controls if c["depth_invert"] is not None), {})
    span = first.get("depth_range")
    try:
        request = Request(
            prompt=picture["prompt"],
            negative=picture["negative"],
            controls=tuple(_control(c, file) for c, file in zip(controls, made["inputs"], strict=True)),
            size=(picture["size"][0], picture["size"][1]),
            seed=picture["seed"],
            steps=sampler["steps"],
            guidance=picture["guidance"],
            rescale=picture["rescale"],
            clip_skip=picture["clip_skip"],
            guess=picture["guess"],
            eta=sampler["eta"],
            sampler=made["sampler"],
            timesteps=None if sampler["timesteps"] is None else tuple(sampler["timesteps"]),
            sigmas=None if sampler["sigmas"] is None else tuple(sampler["sigmas"]),
            fit=next((c["fit"] for c in controls), None),
            depth_range=(span[0], span[1]) if isinstance(span, list) else span,
            depth_invert=first.get("depth_invert"),
        ).check()
    except UsageError as error:
        raise InputError(f"{path}: its recipe cannot be used: {error}") from None
    model = made["model"]
    nets = {c["kind"]: net for c, net in zip(controls, made["nets"], strict=True) if net is not None}
    return Remake(path, found, request, model["name"], model["revision"], nets, picture["dtype"])


def _control(entry: Mapping[str, Any], path: str) -> ControlRequest:
    window = (float(entry["weight"]), float(entry["start"]), float(entry["end"]))
    return ControlRequest(entry["kind"], path, *window, derive=entry["derive"], sha256=entry["sha256"])


def check_weights(
    remake: Remake, picture: Mapping[str, Any], *, other_model: bool, other_nets: Collection[str] = ()
) -> list[str]:
    """Raise WeightsError where weight files are not those of the recipe, though no others were asked for.

    Returns the names of everything else in which `picture` (what is to be drawn) differs from the recipe.
    """
    wanted = remake.recipe["picture"]
    if not other_model:
        _same(wanted["weights"], picture["weights"], f"{remake.path}: the model {remake.model}", "--model")
    by_kind = {control["kind"]: control["weights"] for control in wanted["controls"]}
    for control in picture["controls"]:
        kind = control["kind"]
        if kind in by_kind and kind not in other_nets and not other_model:
            _same(by_kind[kind], control["weights"], f"{remake.path}: the {kind} net", "--net")
    # Lists of controls are compared one by one only where there are as many.
    return [name for name in recipe.differences(wanted, picture) if "weights" not in name.split(".")]


def _same(wanted: Mapping[str, str], found: Mapping[str, str], what: str, option: str) -> None:
    changed = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if changed:
        raise WeightsError(
            f"{what} is not what the picture was made with: {changed[0]} has SHA-256 "
            f"{found.get(changed[0], 'none')[:12]}, expected {wanted.get(changed[0], 'none')[:12]}: get that one, or "
            f"choose with {option}"
        )
