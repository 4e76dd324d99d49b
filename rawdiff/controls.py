"""Which ControlNets take part in a run, and what they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rawdiff import images
from rawdiff.errors import UsageError
from rawdiff.geometry import FACTOR, Size, check_size, size_like
from rawdiff.limits import check_few
from rawdiff.plan import Window
from rawdiff.say import Say

__all__ = ["Control", "choose_size", "gather", "make_hints", "recall"]

LARGE_PX = 1024 * 1024
"""The largest picture that keeps its size where nobody asks for one."""


@dataclass(frozen=True, eq=False)
class Control:
    """One ControlNet in a run; several of a kind may take part, with maps and windows of their own."""

    kind: str
    """"depth", "normal", "canny", or whatever the net was made for."""
    source: Any
    """What it is shown: a path, PIL image, array or tensor."""
    weight: float = 1.0
    start: float = 0.0
    """Where in the run it begins to take part, 0 to 1."""
    end: float = 1.0
    net: Any = None
    """Folder, hub id or module; by default the model's own net of this kind."""
    derive: bool = False
    """Whether `source` is a depth map (for canny: or a picture) that the hint is to be made from."""

    def describe(
        self,
        hint: images.Hint,
        weights: Mapping[str, str] | None,
        *,
        fit: images.Fit,
        depth_range: images.DepthRange,
        depth_invert: bool,
    ) -> dict[str, Any]:
        """What an account says of it: how it is used, how its map is read, the hint's own words, the net's hashes."""
        of_depth = self.kind == "depth" or self.derive
        span = depth_range if of_depth else None
        return {
            "kind": self.kind,
            "derive": self.derive,
            "weight": float(self.weight),
            "start": float(self.start),
            "end": float(self.end),
            "fit": fit,
            "depth_range": span if span is None or span == "auto" else [float(v) for v in span],
            "depth_invert": depth_invert if of_depth else None,
            "net": None if self.net is None or self.is_module else str(self.net),
            "module": self.is_module,
            "weights": weights,
            "sha256": hint.sha256,
            "hint": hint.description,
        }

    @classmethod
    def from_recipe(cls, entry: Mapping[str, Any]) -> Control:
        """The control that `describe` described, without its source."""
        return cls(entry["kind"], None, entry["weight"], entry["start"], entry["end"], entry["net"])

    @property
    def is_module(self) -> bool:
        """Whether its net was given as a module, which no file names."""
        return isinstance(self.net, nn.Module)

    @property
    def window(self) -> Window:
        """Weight, start and end; raises UsageError if they make no sense."""
        return Window(self.weight, self.start, self.end)


def gather(depth: Any, normal: Any, canny: Any, controls: Sequence[Control]) -> tuple[Control, ...]:
    """The short forms and the long ones together, in that order."""
    if isinstance(controls, (str, Control)) or not isinstance(controls, Sequence):
        raise UsageError(
            f"controls is a {type(controls).__name__}: expected a list of rawdiff.Control(kind, source, ...)"
        )
    short = [
        Control(k, v) for k, v in (("depth", depth), ("normal", normal), ("canny", canny)) if v is not None
    ]
    for control in controls:
        if not isinstance(control, Control):
            raise UsageError(
                f"controls holds a {type(control).__name__}: expected rawdiff.Control(kind, source, ...)"
            )
        if not isinstance(control.kind, str):
            raise UsageError(f"control kind {control.kind!r}: expected text, such as 'depth'")
        if not isinstance(control.derive, bool):
            raise UsageError(f"control derive {control.derive!r}: expected True or False")
        if control.source is None:
            raise UsageError(f"control {control.kind!r} has no source: give a path, picture, array or tensor")
    check_few("controls", (*short, *controls))
    return (*short, *controls)


def recall(
    path: str | Path, entries: Sequence[Mapping[str, Any]], modules: Sequence[nn.Module]
) -> tuple[Control, ...]:
    """The controls that a saved recipe describes, with their nets' modules where it was made with such.

    Raises UsageError for modules that are missing, or not one for each control.
    """
    wanted = tuple(Control.from_recipe(entry) for entry in entries)
    if isinstance(modules, nn.Module) or not isinstance(modules, Sequence):
        raise UsageError(f"modules is a {type(modules).__name__}: expected a list, one for each control")
    if modules:
        if len(modules) != len(wanted) or not all(isinstance(module, nn.Module) for module in modules):
            raise UsageError(f"{path}: expected {len(wanted)} modules, one for each control, in their order")
        return tuple(replace(control, net=net) for control, net in zip(wanted, modules, strict=True))
    if any(entry["module"] for entry in entries):
        raise UsageError(f"{path}: was made with modules as ControlNets: give them again")
    return wanted


def choose_size(
    size: Size | None, native: Size, samples: Sequence[images.Samples], image: images.Samples | None = None
) -> Size:
    """`size` checked; without one the first map's shape brought to the native area, or the native size.

    An image to begin from keeps its own size, if that is a multiple of 8 and not too large to be drawn at once; else
    its shape comes before those of maps.
    """
    if size is not None:
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise UsageError(f"size {size!r}: expected (height, width) in pixels")
        return check_size((size[0], size[1]))
    if image is not None:
        height, width = image.size
        is_whole = height % FACTOR == 0 and width % FACTOR == 0
        return (
            check_size(image.size)
            if is_whole and height * width <= LARGE_PX
            else size_like(image.size, native)
        )
    if not samples:
        return check_size(native)
    return size_like(samples[0].size, native)


def make_hints(
    controls: Sequence[Control],
    samples: Sequence[images.Samples],
    size: Size,
    *,
    fit: images.Fit,
    depth_range: images.DepthRange,
    depth_invert: bool,
    say: Say,
) -> tuple[images.Hint, ...]:
    """What each net is shown, brought to `size`; raises InputError, UsageError."""
    return tuple(
        images.make_hint(
            control.kind,
            opened,
            size,
            fit=fit,
            depth_range=depth_range,
            depth_invert=depth_invert,
            derive=control.derive,
            say=say,
        )
        for control, opened in zip(controls, samples, strict=True)
    )
