"""Bringing a map to the picture's size: same aspect resampled, another aspect only by an explicit choice.

Resampling is Catmull-Rom, widened by the factor of reduction (so antialiased) on the way down, in float:
no value is rounded to 8 bits. Overshoot is clamped to the values that the map has. Nothing is resampled
when the size is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rawdiff.errors import InputError, UsageError
from rawdiff.geometry import FACTOR, Size, check_size, format_size
from rawdiff.limits import FITS
from rawdiff.say import Say, say_on_stderr

__all__ = ["Fit", "Placement", "fit", "plan_fit", "same_aspect", "say_placement"]

Fit = Literal["crop", "pad", "stretch"] | None
"""What to do with a map of another aspect: cut edges, add black (far) ones, distort, or refuse (None)."""

ASPECT_TOLERANCE_PX = 0.75 * FACTOR


def same_aspect(shape: Size, size: Size) -> bool:
    """Whether `size` is `shape`'s aspect but for rounding to multiples of 8.

    So it is if one side lies within 6 pixels of what the other side and the map's aspect ask for: any
    multiple of 8 is within 4 of some exact size, `geometry.size_like` weighs both sides, and no side can be
    less than 8. A square map at 520x512 is not the same.
    """
    (h, w), (height, width) = shape, size
    tolerance_px = FACTOR if min(size) == FACTOR else ASPECT_TOLERANCE_PX
    return min(abs(width * h / w - height), abs(height * w / h - width)) <= tolerance_px


@dataclass(frozen=True)
class Placement:
    """Which part of a map goes where in the picture."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in the map's pixels
    inner: Size  # (height, width) that the box becomes
    offset: Size  # rows above it, columns left of it
    size: Size  # (height, width) of the whole
    how: str  # "as it is", "resampled", "cropped", "padded" or "stretched"

    def resample(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """[H,W] or [H,W,C] float32 -> [*inner] or [*inner,C], within the values that `array` has."""
        height, width = array.shape[:2]
        if self.inner == (height, width) and self.box == (0, 0, width, height):
            return array
        if array.ndim == 3:
            return np.stack([self.resample(array[..., k]) for k in range(array.shape[2])], axis=2)
        image = Image.fromarray(np.ascontiguousarray(array, np.float32))  # mode F
        wanted = (self.inner[1], self.inner[0])
        resized = np.asarray(image.resize(wanted, Image.Resampling.BICUBIC, box=self.box))
        clamped: NDArray[np.float32] = np.clip(resized, array.min(), array.max())
        return clamped

    def pad(self, array: NDArray[np.float32], fill: float | tuple[float, ...] = 0.0) -> NDArray[np.float32]:
        """[*inner] or [*inner,C] -> [*size] or [*size,C], `fill` around it."""
        if self.inner == self.size:
            return array
        whole = np.empty((*self.size, *array.shape[2:]), np.float32)
        whole[...] = fill
        top, left = self.offset
        whole[top : top + self.inner[0], left : left + self.inner[1]] = array
        return whole


def plan_fit(shape: Size, size: Size, fit: Fit = None, *, name: str = "map", what: str = "map") -> Placement:
    """Where a map of `shape` goes in a picture of `size`; InputError for another aspect without `fit`.

    `name` is its file's, and `what` it is ("depth map"): for the message.
    """
    if fit is not None and fit not in FITS:
        raise UsageError(f"fit {fit!r}: expected crop, pad or stretch")
    size = check_size(size)
    (h, w), (height, width) = shape, size
    everything = (0.0, 0.0, float(w), float(h))
    if shape == size:
        return Placement(everything, size, (0, 0), size, "as it is")
    if same_aspect(shape, size):
        return Placement(everything, size, (0, 0), size, "resampled")
    if fit == "stretch":
        return Placement(everything, size, (0, 0), size, "stretched")
    if fit == "crop":
        scale = max(height / h, width / w)
        cut_h, cut_w = min(h, height / scale), min(w, width / scale)
        left, top = (w - cut_w) / 2, (h - cut_h) / 2
        return Placement((left, top, left + cut_w, top + cut_h), size, (0, 0), size, "cropped")
    if fit == "pad":
        scale = min(height / h, width / w)
        inner = min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale)))
        offset = (height - inner[0]) // 2, (width - inner[1]) // 2
        return Placement(everything, inner, offset, size, "padded")
    raise InputError(
        f"{name}: the {what} of {format_size(shape)} has another aspect than the picture's {format_size(size)}: "
        f"choose a size of the {what}'s aspect, or fit it (--fit) by crop, pad or stretch"
    )


def fit(
    array: NDArray[np.float32],
    size: Size,
    fit: Fit = None,
    say: Say = say_on_stderr,
    *,
    name: str = "map",
    fill: float | tuple[float, ...] = 0.0,
) -> NDArray[np.float32]:
    """Bring [H,W] or [H,W,C] float32 to `size` (height, width), a multiple of 8, and say what was done.

    Returned as it is, the same object, when the size is right already. Raises InputError for another aspect
    unless `fit` says what to do, SizeError, and UsageError for anything but float32.
    """
    if array.dtype != np.float32 or array.ndim not in (2, 3) or array.size == 0:
        raise UsageError(f"fit: got {array.dtype} of shape {array.shape}; expected float32 [H,W] or [H,W,C]")
    placement = plan_fit((array.shape[0], array.shape[1]), size, fit, name=name)
    say_placement(placement, (array.shape[0], array.shape[1]), name, say)
    return placement.pad(placement.resample(array), fill)


def say_placement(placement: Placement, shape: Size, name: str, say: Say) -> None:
    """One line on what happens to the map, unless nothing does."""
    if placement.how != "as it is":
        inner = "" if placement.inner == placement.size else f" (itself {format_size(placement.inner)})"
        say(f"{name}: {format_size(shape)} {placement.how} to {format_size(placement.size)}{inner}")
