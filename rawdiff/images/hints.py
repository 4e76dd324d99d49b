"""Hints: what a ControlNet is shown, [3,H,W] in 0..1 at the picture's size, and how it came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rawdiff.errors import InputError, UsageError
from rawdiff.geometry import Size
from rawdiff.images.depth import DepthRange, read_depth, read_picture
from rawdiff.images.edges import canny
from rawdiff.images.fitting import Fit, Placement, plan_fit, say_placement
from rawdiff.images.normals import FLAT_NORMAL, normal_from_depth, smooth_steps
from rawdiff.images.png import write_next
from rawdiff.images.source import ImageSource, Samples, open_source
from rawdiff.say import Say, say_on_stderr

__all__ = ["DERIVABLE", "HINTS_VERSION", "Hint", "make_hint", "save_hints"]

DERIVABLE = ("normal", "canny")
"""Kinds of hint that can be made from a depth map (canny: from any picture)."""

HINTS_VERSION = 1
"""Changes whenever a map gives another hint than it gave before: thresholds, focal length, resampling, fitting."""

CANNY_THRESHOLDS = (100.0, 200.0)
FOCAL = 1.1


@dataclass(frozen=True)
class Hint:
    """What one ControlNet is shown."""

    kind: str
    tensor: torch.Tensor  # [3,H,W] float32 0..1
    sha256: str  # of the input file's bytes
    description: dict[str, Any]  # plain values, for a recipe


def make_hint(
    kind: str,
    source: ImageSource | Samples,
    size: Size,
    *,
    fit: Fit = None,
    depth_range: DepthRange = None,
    depth_invert: bool = False,
    derive: bool = False,
    canny_thresholds: tuple[float, float] = CANNY_THRESHOLDS,
    focal: float = FOCAL,
    say: Say = say_on_stderr,
) -> Hint:
    """Make the hint of `kind` at `size` (height, width) from a path, PIL image, array or tensor.

    "depth" reads a depth map. Any other kind is taken as a ready-made map of that kind, unless `derive`:
    then "normal" is computed from a depth map, and "canny" from a depth map or (where it has colour) a
    picture. What was done to the input is told through `say`, a line each. Raises InputError, UsageError
    and SizeError.
    """
    if derive and kind not in DERIVABLE:
        raise UsageError(f"a {kind} hint cannot be derived; expected {' or '.join(DERIVABLE)}")
    samples = open_source(source)
    if kind == "depth" or (derive and (kind == "normal" or samples.grey() is not None)):
        depth = read_depth(samples, depth_range=depth_range, invert=depth_invert)
        values, described = depth.values, depth.describe()
        if kind == "normal":
            values = smooth_steps(values, depth.step)
        told = depth.note
    else:
        values = read_picture(samples)
        notes = list(samples.notes)
        described = {"source": samples.name, "sha256": samples.sha256, "format": samples.kind, "notes": notes}
        told = "; ".join((samples.kind, *notes))
    say(f"{kind} from {samples.name}: {told}")
    what = f"map for {kind}" if derive else f"{kind} map"
    placement = plan_fit(samples.size, size, fit, name=samples.name, what=what)
    say_placement(placement, samples.size, samples.name, say)
    inner = placement.resample(values)
    if kind == "depth" and inner.min() == inner.max():
        raise InputError(
            f"{samples.name}: what is left after cropping is constant; pad or stretch it instead"
        )
    colours = _colours(kind, inner, derive, canny_thresholds, focal, placement)
    if derive and kind == "canny":
        described["canny_thresholds"] = list(canny_thresholds)
        if not colours.any():
            say(
                f"{kind} from {samples.name}: no edges at thresholds "
                f"{canny_thresholds[0]:g}, {canny_thresholds[1]:g}"
            )
    if derive and kind == "normal":
        described["focal"] = focal
    described |= {
        "kind": kind,
        "derived": derive,
        "size": list(samples.size),
        "fit": placement.how,
        "hint_size": list(size),
    }
    tensor = torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1)))  # [3,H,W] fp32 0..1
    return Hint(kind, tensor, samples.sha256, described)


def save_hints(folder: str | Path, stem: str, hints: Sequence[Hint]) -> list[Path]:
    """Write what the nets were shown as `stem-KIND.png`, never over a file: depth as 16-bit grey, the rest
    as 8-bit RGB.

    The description goes along as the `rawdiff` text chunk. Raises ResourceError.
    """
    return [
        write_next(folder, f"{stem}-{hint.kind}", _levels(hint), {"hint": hint.description}) for hint in hints
    ]


def _colours(
    kind: str,
    inner: NDArray[np.float32],
    derive: bool,
    thresholds: tuple[float, float],
    focal: float,
    placement: Placement,
) -> NDArray[np.float32]:
    """The finished hint, [H,W,3]; derived before padding, so that the border is no edge and no slope."""
    fill: tuple[float, ...] = FLAT_NORMAL if kind == "normal" else (0.0, 0.0, 0.0)
    if derive and kind == "normal":
        inner = normal_from_depth(inner, focal=focal)
    elif derive and kind == "canny":
        inner = canny(inner, *thresholds)
    if inner.ndim == 2:
        inner = np.repeat(inner[..., None], 3, axis=2)
    return placement.pad(inner, fill)


def _levels(hint: Hint) -> NDArray[Any]:
    """[H,W] uint16 for depth, [H,W,3] uint8 for the rest."""
    colours = hint.tensor.numpy().transpose(1, 2, 0)
    if hint.kind == "depth":
        return np.rint(colours[..., 0].astype(np.float64) * 65535).astype(np.uint16)
    return np.rint(colours.astype(np.float64) * 255).astype(np.uint8)
