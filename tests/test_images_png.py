"""PNGs with their recipe: what goes in comes out, from the text chunk alone; hostile chunks are bounded."""

from __future__ import annotations

import io
import json
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, PngImagePlugin

from rawdiff.errors import InputError, NonFiniteError, UsageError
from rawdiff.images import encode_png, read_recipe, read_text, to_pil, to_uint8, write_next, write_png
from tests.image_files import SIGNATURE, chunk, chunks_of, join, png

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
RECIPE: dict[str, Any] = {
    "prompt": "a red cube on grass, Würfel, 立方体 🎲",
    "seed": 0,
    "guidance": 4.0,
    "steps": [1, 2],
    "x": None,
}
PARAMETERS = (
    "a red cube on grass\nNegative prompt: blur\nSteps: 20, Sampler: DDIM, CFG scale: 4.0, Size: 32x24"
)


def test_round_trip(tmp_path: Path) -> None:
    path = write_png(tmp_path / "cube.png", PICTURE, RECIPE, PARAMETERS)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), PICTURE)
        assert image.text["parameters"] == PARAMETERS  # type: ignore[attr-defined]
        assert json.loads(image.text["rawdiff"]) == RECIPE  # type: ignore[attr-defined]
    assert read_recipe(path) == RECIPE
    assert read_text(path)["parameters"] == PARAMETERS


@pytest.mark.parametrize("text", ["plain", "Würfel é", "立方体 🎲", "two\nlines"])
def test_text_is_never_compressed(tmp_path: Path, text: str) -> None:
    data = encode_png(PICTURE, RECIPE, text)
    kinds = chunks_of(data)
    latin = text.isascii() or "Würfel" in text
    bodies = [body for kind, body in kinds if kind in (b"tEXt", b"iTXt")]
    assert not any(kind == b"zTXt" for kind, _ in kinds)
    assert bodies[0] == b"parameters\0" + (text.encode("latin-1") if latin else b"\0\0\0\0" + text.encode())
    assert bodies[1] == b"rawdiff\0" + json.dumps(RECIPE).encode()
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert read_text(path) == {"parameters": text, "rawdiff": json.dumps(RECIPE)}


def test_the_recipe_needs_no_pixels(tmp_path: Path) -> None:
    kinds = chunks_of(encode_png(PICTURE, RECIPE, PARAMETERS))
    blank = zlib.compress(bytes(24 * 97))
    for pixels in (blank, b"", b"damage"):
        path = tmp_path / "blank.png"
        path.write_bytes(join([(kind, pixels if kind == b"IDAT" else body) for kind, body in kinds]))
        assert read_recipe(path) == RECIPE
    damaged = bytearray(join(kinds))
    damaged[damaged.index(b"IDAT") + 9] ^= 255  # a wrong checksum where nobody looks
    path.write_bytes(damaged)
    assert read_recipe(path) == RECIPE


def test_kinds_of_picture(tmp_path: Path) -> None:
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = PICTURE[..., 0]
    for name, picture in (
        ("wide", wide),
        ("grey", grey),
        ("colour", Image.fromarray(PICTURE)),
        ("wide-pil", Image.fromarray(wide)),
    ):
        path = write_png(tmp_path / f"{name}.png", picture, {})
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(picture))
    palette = Image.fromarray(PICTURE).quantize(8)
    for bad in (
        PICTURE.astype(np.float32),
        PICTURE[..., :2],
        PICTURE[:0],
        palette,
        Image.new("HSV", (4, 4)),
        np.zeros(5, np.uint8),
    ):
        with pytest.raises(UsageError, match="picture: got"):
            write_png(tmp_path / "bad.png", bad, {})
    assert not (tmp_path / "bad.png").exists()


@pytest.mark.parametrize(
    "recipe", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}, {"x": np.float32(1)}, {1j: 2}]
)
def test_recipes_that_are_no_json(recipe: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="recipe: cannot be written as JSON"):
        encode_png(PICTURE, recipe)


def test_texts_that_no_png_can_hold() -> None:
    for bad in ("a\0b", "half \ud800 pair"):
        with pytest.raises(UsageError, match="parameters: holds NUL or half"):
            encode_png(PICTURE, {}, bad)
    with pytest.raises(UsageError, match="over 4 MiB"):
        encode_png(PICTURE, {"x": "y" * 2**22})
    odd = {"prompt": "a\0b \ud800 \u2028"}  # in JSON they are escaped
    data = encode_png(PICTURE, odd)
    assert b"\\u0000b \\ud800" in data


def test_a_large_recipe_stays_readable_by_pillow(tmp_path: Path) -> None:
    large = {"x": "y" * 3_000_000}
    path = write_png(tmp_path / "large.png", PICTURE, large)
    with Image.open(path) as image:
        image.load()
    assert read_recipe(path) == large


# --- hostile chunks -----------------------------------------------------------------------------------------


def with_text(folder: Path, kind: bytes, body: bytes, times: int = 1) -> Path:
    kinds = chunks_of(png(PICTURE, 2))
    path = folder / "hostile.png"
    path.write_bytes(join([kinds[0], *[(kind, body)] * times, *kinds[1:]]))
    return path


def recipe_refused(path: Path, words: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError, match=words) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"rawdiff\0not json", "not valid JSON"),
        (b"rawdiff\0" + b"[" * 100_000, "not valid JSON"),
        (b"rawdiff\0" + b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "not valid JSON"),
        (b'rawdiff\0{"a": NaN}', "NaN is not JSON"),
        (b'rawdiff\0{"a": -Infinity}', "not JSON"),
        (b'rawdiff\0{"a": 1e999}', "too large"),
        (b'rawdiff\0{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'rawdiff\0{"a": 1, "a": 2}', "a key occurs twice"),
        (b"rawdiff\0[1, 2]", "is a list; expected a JSON object"),
        (b"rawdiff\0null", "is a NoneType"),
        (b"rawdiff\0", "not valid JSON"),
        (b"rawdiff", "has no end"),
        (b"rawdiff\0" + b" " * (2**22 + 1), "over 4 MiB"),
        (b"prompt\0{}", "no rawdiff recipe"),
    ],
)
def test_bad_recipes(tmp_path: Path, body: bytes, words: str) -> None:
    recipe_refused(with_text(tmp_path, b"tEXt", body), words)


def test_bad_chunks(tmp_path: Path) -> None:
    recipe_refused(with_text(tmp_path, b"tEXt", b"rawdiff\0{}", times=2), "two texts called 'rawdiff'")
    recipe_refused(with_text(tmp_path, b"iTXt", b"rawdiff\0\0\0\0\0\xff\xfe"), "damaged")
    recipe_refused(with_text(tmp_path, b"iTXt", b"rawdiff\0"), "damaged")
    recipe_refused(with_text(tmp_path, b"zTXt", b"rawdiff\0\0nonsense"), "damaged")
    recipe_refused(with_text(tmp_path, b"zTXt", b"rawdiff\0\0" + zlib.compress(b"{}")[:-3]), "truncated")
    recipe_refused(with_text(tmp_path, b"zTXt", b"rawdiff\0\0" + zlib.compress(bytes(2**28))), "over 4 MiB")
    recipe_refused(with_text(tmp_path, b"tEXt", b"a\0" + b" " * 2**20, times=20), "more than 16 MiB of text")
    path = with_text(tmp_path, b"tEXt", b"rawdiff\0{}")
    path.write_bytes(path.read_bytes().replace(b"rawdiff\0{}", b"rawdiff\0[]"))
    recipe_refused(path, "wrong checksum in chunk tEXt")
    recipe_refused(with_text(tmp_path, b"tEXt", b"parameters\0Steps: 20"), "parameters of another program")
    path.write_bytes(b"GIF89a")
    recipe_refused(path, "not a PNG")
    recipe_refused(tmp_path / "none.png", "no such file")
    path.write_bytes(SIGNATURE + chunk(b"IHDR", bytes(13)) + b"\xff\xff\xff\xfftEXt")
    recipe_refused(path, "beyond the end")


def test_what_other_programs_rewrote_is_still_read(tmp_path: Path) -> None:
    text = json.dumps(RECIPE, ensure_ascii=False)
    for zipped in (False, True):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("rawdiff", text, zip=zipped)
        buffer = io.BytesIO()
        Image.fromarray(PICTURE).save(buffer, "PNG", pnginfo=info)
        path = tmp_path / "again.png"
        path.write_bytes(buffer.getvalue())
        assert read_recipe(path) == RECIPE
    assert read_recipe(with_text(tmp_path, b"zTXt", b"rawdiff\0\0" + zlib.compress(b'{"a": 1}'))) == {"a": 1}


# --- pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_diffusers(dtype: torch.dtype) -> None:
    image = (torch.linspace(-1.2, 1.2, 3 * 64 * 80).reshape(1, 3, 64, 80)).to(dtype)
    theirs = np.asarray(VaeImageProcessor().postprocess(image, output_type="pil")[0])
    np.testing.assert_array_equal(to_uint8(image)[0], theirs)
    np.testing.assert_array_equal(np.asarray(to_pil(image)), theirs)
    assert to_uint8(image[0]).shape == (64, 80, 3)


def test_halves_go_to_the_even_level() -> None:
    halves = (torch.arange(255, dtype=torch.float64) + 0.5) / 255
    exact = halves.float() * 255 % 1 == 0.5
    assert exact.sum() > 100
    levels = to_uint8((halves * 2 - 1)[exact].expand(3, 1, -1))[0, :, 0]
    assert (levels % 2 == 0).all()


def test_a_picture_of_nan_is_refused_and_not_black() -> None:
    image = torch.zeros(3, 8, 8)
    image[0, 3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        to_pil(image)
    for bad in (torch.zeros(4, 8, 8), torch.zeros(8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(UsageError, match="expected"):
            to_pil(bad)
    with pytest.raises(UsageError, match="expected one picture"):
        to_pil(torch.zeros(2, 3, 8, 8))


def test_next_names_never_collide(tmp_path: Path) -> None:
    names = [write_next(tmp_path, "cube", PICTURE, {}).name for _ in range(3)]
    assert names == ["cube.png", "cube-2.png", "cube-3.png"]
