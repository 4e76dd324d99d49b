"""Depth maps: samples -> [H,W] float32 in 0..1, near is 1, by a range policy that is chosen, never guessed.

    stored as                    without a range                          with LO,HI      with "auto"
    bool, 1 to 16 bits unsigned  the whole range of the format (0..255,   (v-LO)/(HI-LO)  (v-min)/(max-min)
                                 0..4095, 0..65535) is 0..1               clipped
    float, all within 0..1       as it is                                 same            same
    float beyond 0..1            refused: metres? disparity?              same            same
    signed, or 32 bits and more  refused: no range that people agree on   same            same

Depth maps for ControlNets are white where near. A map of distances (near is small) needs `invert`, and
mostly a range: `depth_range=(500, 8000), invert=True` for millimetres. NaN, Inf and constant maps are
refused under every policy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rawdiff.errors import InputError, UsageError
from rawdiff.images.source import ImageSource, Samples, open_source

__all__ = ["DepthMap", "DepthRange", "parse_depth_range", "read_depth", "read_picture"]

DepthRange = tuple[float, float] | Literal["auto"] | None
"""(LO, HI) in the file's own units, "auto" for the map's least and greatest value, None for the format's."""

NARROW = 0.1  # a map that uses less of its range than this gets a remark


@dataclass(frozen=True)
class DepthMap:
    """A depth map whose values mean something: 1 is near, 0 is far."""

    values: NDArray[np.float32]  # [H,W] 0..1
    source: str
    sha256: str
    kind: str  # "16-bit PNG"
    range: tuple[float, float]  # what became 0 and 1, before inverting
    policy: str  # "full", "unit", "given" or "auto"
    inverted: bool
    notes: tuple[str, ...]
    step: float = 0.0  # between neighbouring values of the file, after scaling; 0 for floats

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.values.shape[0]), int(self.values.shape[1])

    @property
    def note(self) -> str:
        """The range policy and everything else worth knowing, on one line."""
        low, high = (f"{v:.7g}" for v in self.range)
        turned = ", inverted" if self.inverted else ""
        return "; ".join((f"{self.kind}, {low}..{high} taken as 0..1 ({self.policy}){turned}", *self.notes))

    def describe(self) -> dict[str, Any]:
        """Plain values for a recipe."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "format": self.kind,
            "size": list(self.size),
            "range": list(self.range),
            "range_policy": self.policy,
            "inverted": self.inverted,
            "notes": list(self.notes),
        }


def parse_depth_range(text: str) -> DepthRange:
    """`"500,8000"` as (500.0, 8000.0), `"auto"` as it is; UsageError."""
    if text.strip().lower() == "auto":
        return "auto"
    parts = re.split(r"\s*,\s*", text.strip())
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise UsageError(f"depth range {text!r}: expected LO,HI in the file's own units, or auto") from None
    return _check_range((low, high))


def read_depth(
    source: ImageSource | Samples, *, depth_range: DepthRange = None, invert: bool = False
) -> DepthMap:
    """Read a depth map at full precision.

    `source` is a path (PNG, TIFF, JPEG, WEBP, .npy), a PIL image, an array [H,W] or a tensor [H,W]; three
    equal channels count as one. Returns values [H,W] float32 in 0..1, near is 1 (after `invert`). Raises
    InputError for a map that cannot be used, UsageError for a range that cannot.
    """
    depth_range = _check_range(depth_range)
    samples = open_source(source)
    plane = samples.grey()
    if plane is None:
        raise InputError(f"{samples.name}: is a colour picture; expected a depth map in grey (near is white)")
    low, high, policy = _choose_range(samples, plane, depth_range)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = plane.astype(np.float64)
        least, most = float(scaled.min()), float(scaled.max())
        scaled -= low
        scaled /= high - low
    notes = samples.notes
    if policy == "given":
        outside = float(np.count_nonzero((scaled < 0) | (scaled > 1)) / scaled.size)
        if outside:
            notes += (f"{outside:.1%} of it lay beyond the range and was clipped",)
        np.clip(scaled, 0, 1, out=scaled)
    elif (most - least) < NARROW * (high - low):
        notes += (
            f"uses only {least:.6g}..{most:.6g} of its range (a depth range, or auto, would stretch it)",
        )
    if invert:
        np.subtract(1, scaled, out=scaled)
    values = scaled.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{samples.name}: values {least:g}..{most:g} are too far apart; give a depth range")
    if values.min() == values.max():
        which = f"{least:g}" if least == most else f"{values.flat[0]:g} after the range {low:g}..{high:g}"
        raise InputError(f"{samples.name}: every pixel is {which}; a constant map says nothing about depth")
    step = 0.0 if samples.array.dtype.kind == "f" else 1 / (high - low)
    return DepthMap(
        values, samples.name, samples.sha256, samples.kind, (low, high), policy, invert, notes, step
    )


def read_picture(source: ImageSource | Samples) -> NDArray[np.float32]:
    """Read a picture or ready-made hint as [H,W,3] float32 in 0..1 RGB, at full precision; grey fills all
    channels.

    Whole numbers of up to 16 bits are divided by the largest their format holds; floats must lie within
    0..1. Raises InputError.
    """
    samples = open_source(source)
    array = samples.array
    if samples.white is not None:
        values = np.divide(array, samples.white, dtype=np.float64).astype(np.float32)
    elif array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        values = array.astype(np.float32)
    else:
        raise InputError(
            f"{samples.name}: {samples.kind} with values {array.min():g}..{array.max():g}; "
            "expected 8 or 16 bits, or floats within 0..1"
        )
    return np.ascontiguousarray(values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2))


def _check_range(depth_range: DepthRange) -> DepthRange:
    if depth_range is None or depth_range == "auto":
        return depth_range
    try:
        low, high = (float(v) for v in depth_range)
    except (TypeError, ValueError):
        raise UsageError(f"depth range {depth_range!r}: expected two numbers (LO, HI), or auto") from None
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(high - low)) or low >= high:
        raise UsageError(
            f"depth range {low:g},{high:g}: expected finite LO below HI (to swap near and far, invert)"
        )
    return low, high


def _choose_range(samples: Samples, plane: NDArray[Any], depth_range: DepthRange) -> tuple[float, float, str]:
    """(low, high, policy); low < high."""
    least, most = float(plane.min()), float(plane.max())
    if isinstance(depth_range, tuple):
        return depth_range[0], depth_range[1], "given"
    if depth_range == "auto":
        return (least, most, "auto") if least < most else (least, least + 1, "auto")
    if samples.white is not None:
        return 0.0, samples.white, "full"
    if plane.dtype.kind == "f" and least >= 0 and most <= 1:
        return 0.0, 1.0, "unit"
    raise InputError(
        f"{samples.name}: {samples.kind} with values {least:.6g}..{most:.6g}; expected 8 or 16 bits, or "
        "floats within 0..1: give a depth range LO,HI in its units (or auto), and invert where near is small"
    )
