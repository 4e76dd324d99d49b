"""Pillow, held to its word: four formats, no bombs, no truncated files, no silent loss of bits.

Only 8-bit pictures are ever converted between modes here: Pillow's `convert` clips 16-bit ones to white.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from rawdiff.errors import InputError
from rawdiff.images.files import check_pixels

__all__ = ["decode_pillow", "exif_orientation", "pixels_of", "strict_pillow"]

_PLAIN = {"1", "L", "I;16", "I;16L", "I;16B", "I;16N", "I", "F", "RGB"}
_WITH_ALPHA = {"LA": "L", "RGBA": "RGB", "PA": "RGB", "P": "RGB"}
_ORIENTATION = 274


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Bombs are errors, truncated files too (whatever another library switched on); warnings are silent."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def decode_pillow(data: bytes, kind: str, name: str) -> tuple[NDArray[Any], int]:
    """(pixels as stored, EXIF orientation 1..8) of the one picture in `data`; InputError."""
    try:
        with strict_pillow(), Image.open(io.BytesIO(data), formats=[kind]) as image:
            check_pixels(image.height, image.width, name)
            if kind != "JPEG" and getattr(image, "n_frames", 1) != 1:
                raise InputError(f"{name}: holds {getattr(image, 'n_frames', 0)} pictures; expected one")
            orientation = exif_orientation(image)
            image.load()
            return pixels_of(image, name), orientation
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name}: claims more pixels than the limit; make it smaller first") from None
    except Exception as problem:  # the parsers let nearly anything escape
        reason = " ".join(str(problem).split())[:80] or type(problem).__name__
        raise InputError(
            f"{name}: {kind} is truncated or damaged ({reason}); make or fetch it again"
        ) from None


def exif_orientation(image: Image.Image) -> int:
    """1..8; 1 where the EXIF data are absent or cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged comment is no reason to refuse the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def pixels_of(image: Image.Image, name: str) -> NDArray[Any]:
    """A loaded picture's samples, [H,W] or [H,W,3], at full precision; InputError for transparency, CMYK."""
    mode = image.mode
    if mode not in _PLAIN and mode not in _WITH_ALPHA:
        raise InputError(f"{name}: has colours of kind {mode}; convert it to grey or RGB first")
    if mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        _refuse_transparency(image, name)
    if mode in _WITH_ALPHA:
        image = image.convert(_WITH_ALPHA[mode])  # 8 bits a sample: nothing is lost
    array = np.asarray(image)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _refuse_transparency(image: Image.Image, name: str) -> None:
    if image.mode in _PLAIN and image.mode not in ("1", "L", "RGB"):
        seen = bool((np.asarray(image) == image.info["transparency"]).any())
    else:
        seen = int(np.asarray(image.convert("RGBA"))[..., 3].min()) < 255
    if seen:
        raise InputError(f"{name}: has transparent pixels; flatten it onto a background first")
