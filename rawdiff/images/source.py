"""Whatever a person hands over as a picture or map -> samples at full precision, with where they came from.

Paths are read once into memory, so that the bytes that are hashed are the bytes that are decoded. PIL
images, arrays and tensors are hashed as `numpy.save` would write them.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rawdiff.errors import InputError
from rawdiff.images import files
from rawdiff.images.npy import read_npy
from rawdiff.images.opencv import decode_opencv
from rawdiff.images.pillow import decode_pillow, exif_orientation, pixels_of, strict_pillow
from rawdiff.images.png_chunks import strip_png
from rawdiff.images.tiff_tags import TiffTags, read_tiff_tags

__all__ = ["ImageSource", "Samples", "open_source", "orient"]

ImageSource = str | os.PathLike[str] | Image.Image | NDArray[Any] | torch.Tensor
"""A path, PIL image, array [H,W] or [H,W,3], or tensor [H,W] or [3,H,W], with any ones before or after.

A PIL image has the precision that Pillow gave it: a 16-bit colour PNG is down to 8 bits there; hand over
its path instead.
"""

_GREY_TOLERANCE = {"JPEG": 2, "WEBP": 2}  # lossy colour transforms bring grey back within a level or two


@dataclass(frozen=True)
class Samples:
    """Samples as stored, upright, before any meaning is given to their values."""

    array: NDArray[Any]  # [H,W] or [H,W,3]; bool, integers or floats in native byte order
    white: float | None  # the largest value that the format can hold, where that is a range people use
    name: str
    kind: str  # "16-bit PNG", "float32 array", ...
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        return int(self.array.shape[0]), int(self.array.shape[1])

    def grey(self) -> NDArray[Any] | None:
        """[H,W] if there is one channel or all are alike (lossy formats: within two levels), else None."""
        if self.array.ndim == 2:
            return self.array
        red, green, blue = (self.array[..., k] for k in range(3))
        tolerance = next((t for kind, t in _GREY_TOLERANCE.items() if kind in self.kind), 0)
        if not tolerance or self.array.dtype != np.uint8:
            return red if np.array_equal(red, green) and np.array_equal(green, blue) else None
        spread = self.array.max(axis=2) - self.array.min(axis=2)
        if int(spread.max()) > tolerance:
            return None
        return red if not spread.any() else self.array.mean(axis=2, dtype=np.float64)


def open_source(source: ImageSource | Samples) -> Samples:
    """Read `source` at full precision; InputError says on one line what is wrong. Samples pass through."""
    if isinstance(source, Samples):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source))
    if isinstance(source, Image.Image):
        return _open_pil(source)
    if isinstance(source, torch.Tensor):
        return _in_memory(_tensor_array(source), "tensor", "tensor")
    if isinstance(source, np.ndarray):
        return _in_memory(source, "array", "array")
    raise InputError(
        f"a {type(source).__name__} is no picture; expected a path, a PIL image, an array or a tensor"
    )


def orient(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """[H,W,...] turned upright from EXIF orientation 1..8 (CIPA DC-008, section 4.6.4)."""
    turned = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: array.swapaxes(0, 1)[:, ::-1],
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: array.swapaxes(0, 1)[::-1],
    }[orientation]
    return np.ascontiguousarray(turned)


def _open_path(path: Path) -> Samples:
    data = files.read_bytes(path)
    name, kind = str(path), files.sniff(data, str(path))
    white: float | None = None
    orientation = 1
    if kind == "npy":
        array = _shaped(read_npy(data, name), name)
        label = f"{array.dtype.name} .npy"
    elif kind == "PNG":
        array, bits, orientation = _decode_png(data, name)
        label = f"{bits}-bit PNG"
    elif kind == "TIFF":
        tags = read_tiff_tags(data, name)
        array, orientation = _decode_tiff(tags, name), tags.orientation
        label = f"{tags.bits}-bit {tags.format} TIFF"
        white = 2.0**tags.bits - 1 if tags.format == "uint" and 8 < tags.bits <= 16 else None
    else:
        array, orientation = decode_pillow(data, kind, name)
        label = f"8-bit {kind}"
    return _samples(array, white, name, label, files.sha256(data), orientation)


def _open_pil(image: Image.Image) -> Samples:
    name = "PIL image"
    try:
        with strict_pillow():
            files.check_pixels(image.height, image.width, name)
            orientation = exif_orientation(image)
            image.load()
            array = pixels_of(image, name)
    except InputError:
        raise
    except Exception as problem:  # a lazily opened file can fail in any way here
        raise InputError(f"{name}: cannot be read ({str(problem)[:80]})") from None
    return _samples(array, None, name, f"PIL image of mode {image.mode}", _hash(array), orientation)


def _in_memory(array: NDArray[Any], name: str, what: str) -> Samples:
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name}: is masked; fill the masked values first")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InputError(f"{name}: holds {array.dtype}; expected whole numbers or floats of at most 64 bits")
    digest = _hash(array)
    array = _shaped(array, name, channels_first=what == "tensor")
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return _samples(array, None, name, f"{array.dtype.name} {what}", digest, 1)


def _samples(
    array: NDArray[Any], white: float | None, name: str, label: str, digest: str, orientation: int
) -> Samples:
    files.check_pixels(array.shape[0], array.shape[1], name)
    notes: tuple[str, ...] = ()
    if orientation != 1:
        array = orient(array, orientation)
        notes = (f"turned upright by its EXIF orientation {orientation}",)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        raise InputError(
            f"{name}: holds {nan} NaN and {infinite} infinite of {array.size} values; fill them first"
        )
    if white is None:
        white = {"bool": 1.0, "uint8": 255.0, "uint16": 65535.0}.get(array.dtype.name)
    return Samples(array, white, name, label, digest, notes)


def _decode_png(data: bytes, name: str) -> tuple[NDArray[Any], int, int]:
    header = strip_png(data, name)
    if header.bits == 16 and header.colour_type != 0:
        array = decode_opencv(header.stripped, name)
        if array.dtype != np.uint16 or array.shape[:2] != (header.height, header.width) or array.ndim != 3:
            raise InputError(
                f"{name}: 16-bit PNG came out as {array.dtype} {array.shape}; save it as 16-bit grey"
            )
        if array.shape[2] == 4 and int(array[..., 3].min()) < 65535:
            raise InputError(f"{name}: has transparent pixels; flatten it onto a background first")
        array = np.ascontiguousarray(array[..., :3])
    else:
        array, _ = decode_pillow(header.stripped, "PNG", name)
    orientation = 1
    if header.exif is not None:
        holder = Image.new("L", (1, 1))
        holder.info["exif"] = header.exif
        with strict_pillow():
            orientation = exif_orientation(holder)
    return array, header.bits, orientation


def _decode_tiff(tags: TiffTags, name: str) -> NDArray[Any]:
    if tags.pages != 1:
        raise InputError(f"{name}: holds several pictures; expected one (save the page you want)")
    if tags.photometric == 0 and (tags.bits > 8 or tags.format != "uint"):
        raise InputError(f"{name}: TIFF stores white as zero; save it with black as zero (BlackIsZero)")
    if tags.photometric > 2 and (tags.bits > 8 or tags.format != "uint"):
        raise InputError(
            f"{name}: TIFF of colour kind {tags.photometric} at {tags.bits} bits; save it as grey or RGB"
        )
    one = tags.samples == 1
    if (tags.format == "uint" and (tags.bits <= 8 or (one and tags.bits in (12, 16)))) or (
        one and (tags.bits, tags.format) in ((16, "int"), (32, "int"), (32, "float"))
    ):
        array, _ = decode_pillow(tags.upright, "TIFF", name)
    else:
        array = _decode_tiff_opencv(tags, name)
    if array.shape[:2] != (tags.height, tags.width):
        raise InputError(f"{name}: TIFF claims {tags.width}x{tags.height} pixels but decodes to another size")
    return array


def _decode_tiff_opencv(tags: TiffTags, name: str) -> NDArray[Any]:
    expected = f"{tags.format}{tags.bits}"
    if tags.samples not in (1, 3) or expected not in (
        "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"
    ):  # fmt: skip
        raise InputError(
            f"{name}: TIFF of {tags.samples} x {tags.bits}-bit {tags.format} samples cannot be read; "
            "save it as 16-bit grey, float32 or .npy"
        )
    array = decode_opencv(tags.upright, name)
    if array.dtype.name != expected or (1 if array.ndim == 2 else array.shape[2]) != tags.samples:
        raise InputError(f"{name}: TIFF of {expected} came out as {array.dtype}; save it as .npy")
    return array


def _tensor_array(tensor: torch.Tensor) -> NDArray[Any]:
    try:
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError, NotImplementedError) as problem:
        raise InputError(f"tensor: cannot be read ({str(problem).splitlines()[0][:80]})") from None


def _shaped(array: NDArray[Any], name: str, channels_first: bool = False) -> NDArray[Any]:
    """[H,W] or [H,W,3] from that with leading or trailing ones, or from [3,H,W]."""
    given = tuple(array.shape)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[0] == 3 and (channels_first or array.shape[2] != 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3):
        raise InputError(f"{name}: has shape {given}; expected (height, width), or three colour channels")
    files.check_pixels(array.shape[0], array.shape[1], name)
    return array


def _hash(array: NDArray[Any]) -> str:
    digest = hashlib.sha256()

    class _Sink:
        def write(self, data: bytes) -> None:
            digest.update(data)

    np.lib.format.write_array(_Sink(), np.asarray(array), allow_pickle=False)
    return digest.hexdigest()
