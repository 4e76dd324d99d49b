"""OpenCV, imported when first needed and kept quiet."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rawdiff.errors import InputError, ResourceError

__all__ = ["decode_opencv", "opencv"]


def opencv() -> Any:
    """The cv2 module; ResourceError where it is not installed or lacks a system library."""
    try:
        import cv2
    except ImportError as problem:
        raise ResourceError(
            f"OpenCV cannot be imported ({problem}); edges and some 16- and 32-bit files need it: "
            "pip install opencv-python (or opencv-python-headless)"
        ) from None
    return cv2


def decode_opencv(data: bytes, name: str) -> NDArray[Any]:
    """The first picture in `data` as stored, [H,W] or [H,W,C], colour as RGB(A), not turned; InputError."""
    cv2 = opencv()
    log = cv2.utils.logging
    last = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError):
        array = None
    finally:
        log.setLogLevel(last)
    if array is None:
        raise InputError(
            f"{name}: is damaged or in an unusual encoding; save it again, uncompressed or as .npy"
        )
    if array.ndim == 3 and array.shape[2] in (3, 4):
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    return np.ascontiguousarray(array)
