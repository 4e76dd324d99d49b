"""Pictures as PNG with their recipe inside, and recipes read back without looking at a pixel.

Two text chunks, never compressed (a compressed one of over 1 MB makes a file that Pillow will not open):
`parameters`, the line that AUTOMATIC1111's tools read, and `rawdiff`, the full recipe as JSON.
"""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from rawdiff import strict_json
from rawdiff.errors import InputError, ResourceError, UsageError
from rawdiff.images import durable
from rawdiff.images.files import check_regular
from rawdiff.images.names import next_path
from rawdiff.images.pillow import decode_pillow
from rawdiff.images.png_chunks import read_chunk, walk_chunks

__all__ = ["MAX_TEXT_BYTES", "encode_png", "read_recipe", "read_text", "write_next", "write_png"]

MAX_TEXT_BYTES = 2**22
"""No text chunk is larger than this, written or read."""

RECIPE_KEY = "rawdiff"
PARAMETERS_KEY = "parameters"
Picture = NDArray[Any] | Image.Image


def write_png(
    path: str | Path, image: Picture, recipe: dict[str, Any], parameters: str = "", *, overwrite: bool = False
) -> Path:
    """Write a picture (uint8 [H,W,3] or [H,W], uint16 [H,W], or PIL) with its recipe, whole or not at all.

    Encoded in memory, read back and compared before it gets its name. Raises UsageError where the name is
    taken (unless `overwrite`) or the texts cannot be stored, ResourceError where writing fails.
    """
    return durable.write_file(path, encode_png(image, recipe, parameters), overwrite=overwrite)


def write_next(
    folder: str | Path, stem: str, image: Picture, recipe: dict[str, Any], parameters: str = ""
) -> Path:
    """As `write_png`, under the next free name from `stem`, however many processes write there."""
    data = encode_png(image, recipe, parameters)
    for _ in range(1000):
        path = next_path(folder, stem)
        try:
            return durable.publish(path, data)
        except FileExistsError:
            continue
    raise ResourceError(f"{folder}: no free name after 1000 tries; something else is writing there")


def encode_png(image: Picture, recipe: dict[str, Any], parameters: str = "") -> bytes:
    """The bytes of the PNG that `write_png` writes, verified by decoding them."""
    if isinstance(image, Image.Image) and image.mode not in ("L", "RGB", "I;16"):
        raise UsageError(f"picture: got a PIL image of mode {image.mode}; expected RGB, L or I;16")
    array = np.ascontiguousarray(np.asarray(image))
    kinds = {("uint8", 2), ("uint8", 3), ("uint16", 2)}
    if (
        (array.dtype.name, array.ndim) not in kinds
        or array.size == 0
        or (array.ndim == 3 and array.shape[2] != 3)
    ):
        raise UsageError(
            f"picture: got {array.dtype} {array.shape}; expected uint8 RGB or grey, or uint16 grey"
        )
    try:
        text = json.dumps(recipe, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise UsageError(f"recipe: cannot be written as JSON ({str(problem)[:80]})") from None
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_text(PARAMETERS_KEY, _storable(PARAMETERS_KEY, parameters))
    info.add_text(RECIPE_KEY, _storable(RECIPE_KEY, text))
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", pnginfo=info)
    data = buffer.getvalue()
    decoded, _ = decode_pillow(data, "PNG", "picture")
    texts = _read_text(io.BytesIO(data), "picture")
    if (
        not np.array_equal(decoded, array)
        or texts.get(RECIPE_KEY) != text
        or texts.get(PARAMETERS_KEY, "") != parameters
    ):
        raise ResourceError("picture: the PNG does not read back as it was written; is memory failing?")
    return data


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe in a PNG's `rawdiff` text chunk, whatever its pixels; InputError where there is none."""
    texts = read_text(path)
    if RECIPE_KEY not in texts:
        other = " (it has the parameters of another program)" if PARAMETERS_KEY in texts else ""
        raise InputError(f"{path}: holds no rawdiff recipe{other}; expected a PNG made by rawdiff, unedited")
    try:
        recipe = strict_json.loads(texts[RECIPE_KEY])
    except ValueError as problem:
        raise InputError(f"{path}: its recipe is not valid JSON ({str(problem)[:80]})") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: its recipe is a {type(recipe).__name__}; expected a JSON object")
    return recipe


def read_text(path: str | Path) -> dict[str, str]:
    """Every text chunk of a PNG by keyword (tEXt, iTXt and zTXt, each within MAX_TEXT_BYTES); InputError."""
    file = check_regular(path)
    try:
        with file.open("rb") as stream:
            return _read_text(stream, str(path))
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({(problem.strerror or str(problem)).lower()})") from None


def _read_text(stream: BinaryIO, name: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    total_bytes = 0
    for kind, length in walk_chunks(stream, name):
        if kind not in (b"tEXt", b"iTXt", b"zTXt"):
            continue
        total_bytes += length
        if total_bytes > 4 * MAX_TEXT_BYTES:
            raise InputError(
                f"{name}: holds more than {4 * MAX_TEXT_BYTES // 2**20} MiB of text; expected a recipe"
            )
        key, text = _parse_text(kind, read_chunk(stream, kind, length, name), name)
        if key in texts and key in (RECIPE_KEY, PARAMETERS_KEY):
            raise InputError(f"{name}: holds two texts called {key!r}; which is meant cannot be told")
        texts[key] = text
    return texts


def _parse_text(kind: bytes, data: bytes, name: str) -> tuple[str, str]:
    """(keyword, text) of one chunk; InputError for damage and for text that inflates beyond the limit."""
    key, found, rest = data.partition(b"\0")
    try:
        compressed = False
        if kind == b"zTXt":
            compressed, rest = True, rest[1:]
        elif kind == b"iTXt":
            compressed, rest = rest[0] == 1, rest[2:]
            _language, _, rest = rest.partition(b"\0")
            _translated, _, rest = rest.partition(b"\0")
        if compressed:
            inflate = zlib.decompressobj()
            rest = inflate.decompress(rest, MAX_TEXT_BYTES + 1)
            if not inflate.eof and len(rest) <= MAX_TEXT_BYTES:
                raise InputError(f"{name}: the text {key[:79]!r} is truncated")
        if not found or len(rest) > MAX_TEXT_BYTES:
            raise InputError(
                f"{name}: the text {key[:79]!r} has no end or is over {MAX_TEXT_BYTES // 2**20} MiB"
            )
        return key.decode("latin-1"), rest.decode("utf-8" if kind == b"iTXt" else "latin-1")
    except (IndexError, UnicodeDecodeError, zlib.error):
        raise InputError(f"{name}: the text {key[:79]!r} is damaged") from None


def _storable(key: str, text: str) -> str:
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"{key}: holds NUL or half of a surrogate pair, which no PNG text can; remove it")
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise UsageError(f"{key}: is over {MAX_TEXT_BYTES // 2**20} MiB of text; expected a recipe")
    return text
