"""Canny edges (Canny 1986, as OpenCV does them), from a picture or from a depth map."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rawdiff.errors import UsageError
from rawdiff.images.opencv import opencv

__all__ = ["canny"]


def canny(array: NDArray[np.float32], low: float = 100, high: float = 200) -> NDArray[np.float32]:
    """Edges [H,W] float32, 0 or 1, of a picture [H,W,3] or a map [H,W], float32 in 0..1.

    `low` and `high` are gradient thresholds in 8-bit units, as everyone quotes them for ControlNet (100 and
    200); of a picture's three channels the steepest counts. Raises UsageError, and ResourceError without
    OpenCV.
    """
    if array.dtype != np.float32 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UsageError(
            f"canny: got {array.dtype} of shape {array.shape}; expected float32 [H,W] or [H,W,3]"
        )
    if not (math.isfinite(low) and math.isfinite(high) and 0 <= low <= high):
        raise UsageError(f"canny thresholds {low:g}, {high:g}: expected 0 <= low <= high")
    levels = np.rint(array * np.float32(255)).clip(0, 255).astype(np.uint8)
    edges = opencv().Canny(np.ascontiguousarray(levels), float(low), float(high))
    return (np.asarray(edges) > 0).astype(np.float32)
