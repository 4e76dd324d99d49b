"""Reading pictures and maps: every format at full precision, and every bad file by its own line."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from rawdiff.errors import InputError
from rawdiff.images import DepthMap, open_source, read_depth, read_picture
from rawdiff.images.source import orient
from tests.image_files import SIGNATURE, chunk, chunks_of, join, npy, npy_header, pil, png, tiff

ALL_LEVELS = np.arange(65536, dtype=np.uint16).reshape(256, 256)
RAMP8 = np.arange(256, dtype=np.uint8).reshape(16, 16)


def write(folder: Path, data: bytes, name: str = "map") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refused(folder: Path, data: bytes, *words: str) -> None:
    """Both readers refuse `data` on one line that holds all `words`."""
    for read in (read_depth, read_picture):
        with pytest.raises(InputError) as caught:
            read(write(folder, data))
        line = str(caught.value)
        assert "\n" not in line
        assert len(line) < 300
        assert all(word in line for word in words), line


# --- precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        png(ALL_LEVELS),
        png(np.stack([ALL_LEVELS] * 3, -1), 2),
        png(np.stack([ALL_LEVELS, np.full_like(ALL_LEVELS, 65535)], -1), 4),
        png(np.stack([ALL_LEVELS] * 3 + [np.full_like(ALL_LEVELS, 65535)], -1), 6),
        tiff(ALL_LEVELS),
        tiff(ALL_LEVELS, order=">"),
        tiff(np.stack([ALL_LEVELS] * 3, -1)),
        pil(Image.fromarray(ALL_LEVELS), "TIFF", compression="tiff_lzw"),
        pil(Image.fromarray(ALL_LEVELS), "TIFF", compression="zstd"),
        npy(ALL_LEVELS),
        npy(np.asfortranarray(ALL_LEVELS)),
        npy(ALL_LEVELS.astype(">u2")),
    ],
    ids=[
        "grey",
        "rgb",
        "grey-a",
        "rgba",
        "tiff",
        "tiff-be",
        "tiff-rgb",
        "lzw",
        "zstd",
        "npy",
        "npy-f",
        "npy-be",
    ],
)
def test_a_16_bit_map_keeps_its_65536_levels(tmp_path: Path, data: bytes) -> None:
    depth = read_depth(write(tmp_path, data))
    np.testing.assert_array_equal(depth.values, (ALL_LEVELS / 65535).astype(np.float32))
    assert len(np.unique(depth.values)) == 65536
    assert depth.policy == "full"
    assert depth.range == (0, 65535)
    picture = read_picture(tmp_path / "map")
    np.testing.assert_array_equal(picture[..., 1], depth.values)


def test_pillow_alone_would_have_lost_the_levels(tmp_path: Path) -> None:
    """The subject matters: the usual way turns the same file white."""
    with Image.open(write(tmp_path, png(ALL_LEVELS))) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = np.asarray(image.convert("RGB"))
    assert len(np.unique(usual)) <= 256


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_every_sample_kind(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.random.default_rng(1).integers(-100 if dtype[0] != "u" else 0, 101, (9, 14)).astype(dtype)
    if dtype == "u4":
        values = values + np.uint32(4_000_000_000)  # beyond int32
    samples = open_source(write(tmp_path, tiff(values, order=order)))
    np.testing.assert_array_equal(samples.array, values)
    low, high = float(values.min()), float(values.max())
    depth = read_depth(samples, depth_range="auto")
    expected = (values.astype(np.float64) - low) / (high - low)
    np.testing.assert_array_equal(depth.values, expected.astype(np.float32))


def test_tiff_of_12_bits_has_4095_as_white(tmp_path: Path) -> None:
    values = np.array([[0, 4095], [1, 2048]])
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.tolist())
    data = tiff(np.zeros((2, 2), np.uint16)).replace(
        struct.pack("<HHIHH", 258, 3, 1, 16, 0), struct.pack("<HHIHH", 258, 3, 1, 12, 0)
    )
    data = data[:8] + packed + data[8 + len(packed) :]
    depth = read_depth(write(tmp_path, data))
    assert depth.range == (0, 4095)
    np.testing.assert_array_equal(depth.values, (values / 4095).astype(np.float32))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits(tmp_path: Path, bits: int) -> None:
    width = 8 // bits
    levels = np.arange(width) % 2**bits
    row = 0
    for level in levels.tolist():
        row = row << bits | level
    header = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    data = join([(b"IHDR", header), (b"IDAT", zlib.compress(bytes([0, row]))), (b"IEND", b"")])
    depth = read_depth(write(tmp_path, data))
    np.testing.assert_allclose(depth.values[0], levels / (2**bits - 1), atol=1e-7)


def test_interlaced_png(tmp_path: Path) -> None:
    """Adam7: seven passes, each a small picture of its own; rows and filters are counted pass by pass."""
    for height, width in ((1, 1), (5, 3), (16, 16), (40, 33)):
        wide = np.random.default_rng(0).integers(0, 65536, (height, width), dtype=np.uint16)
        grids = (
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        )
        rows = [row for x, y, dx, dy in grids for row in wide[y::dy, x::dx] if row.size]
        raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
        header, _, end = chunks_of(png(wide))
        header = (b"IHDR", header[1][:12] + b"\1")
        data = join([header, (b"IDAT", zlib.compress(raw)), end])
        np.testing.assert_array_equal(open_source(write(tmp_path, data)).array, wide)
        refused(tmp_path, join([header, (b"IDAT", zlib.compress(raw[:-1])), end]), "truncated")
        bad = bytearray(raw)
        bad[-1 - 2 * rows[-1].size] = 5
        refused(tmp_path, join([header, (b"IDAT", zlib.compress(bytes(bad))), end]), "unknown filter")


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 90}), ("WEBP", {"lossless": True})]
)
def test_lossy_grey_stored_as_colour_is_taken(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    grey = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    depth = read_depth(write(tmp_path, pil(Image.fromarray(np.stack([grey] * 3, -1)), kind, **options)))
    assert abs(depth.values - grey / 255).max() < 0.02
    assert kind in depth.kind


def test_sources_of_every_kind_agree(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((24, 40), dtype=np.float32)
    path = write(tmp_path, npy(values), "map.npy")
    wanted = read_depth(path)
    for source in (
        str(path), values, values.astype(np.float64), values[None], values[..., None],
        values[None, ..., None],
        np.stack([values] * 3, -1), np.stack([values] * 3), np.asfortranarray(values),
        Image.fromarray(values), torch.from_numpy(values), torch.from_numpy(values)[None, None],
        torch.from_numpy(values).expand(3, -1, -1), torch.from_numpy(values).requires_grad_(),
    ):  # fmt: skip
        np.testing.assert_array_equal(read_depth(source).values, wanted.values)
    assert read_depth(values).sha256 == wanted.sha256  # as numpy.save writes it
    assert read_depth(torch.from_numpy(values).bfloat16()).values.shape == (24, 40)
    assert read_depth(torch.from_numpy(ALL_LEVELS)).policy == "full"
    assert read_depth(values.astype(np.float16)).kind == "float16 array"


def test_pictures_keep_their_colours(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    wide = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)
    np.testing.assert_array_equal(read_picture(colours), (colours / 255).astype(np.float32))
    np.testing.assert_array_equal(
        read_picture(write(tmp_path, png(colours, 2))), (colours / 255).astype(np.float32)
    )
    np.testing.assert_array_equal(
        read_picture(write(tmp_path, png(wide, 2))), (wide / 65535).astype(np.float32)
    )
    np.testing.assert_array_equal(
        read_picture(write(tmp_path, tiff(wide))), (wide / 65535).astype(np.float32)
    )
    floats = colours.astype(np.float32) / 255
    np.testing.assert_array_equal(read_picture(write(tmp_path, tiff(floats))), floats)
    np.testing.assert_array_equal(read_picture(torch.from_numpy(floats).permute(2, 0, 1)), floats)
    palette = Image.fromarray(colours).quantize(16)
    np.testing.assert_array_equal(
        read_picture(write(tmp_path, pil(palette, "PNG"))),
        np.asarray(palette.convert("RGB")).astype(np.float32) / 255,
    )
    with pytest.raises(InputError, match="expected 8 or 16 bits"):
        read_picture(colours.astype(np.float32))


# --- orientation, transparency, colour -------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_told(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.add.outer(np.arange(10) * 9, np.arange(16) * 5).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    image_with = image.copy()
    image_with.getexif()[274] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image_with))
    np.testing.assert_array_equal(orient(np.asarray(image), orientation), upright)
    wide = np.asarray(image).astype(np.uint16) * 257
    files = {
        "png": pil(image, "PNG", exif=exif),
        "png16": pil(Image.fromarray(wide), "PNG", exif=exif),
        "webp": pil(image.convert("RGB"), "WEBP", lossless=True, exif=exif),
        "tiff8": tiff(np.asarray(image), orientation=orientation),
        "tiff16": tiff(wide, orientation=orientation),
        "tiff64": tiff(wide.astype(np.float64) / 65535, orientation=orientation),
        "tiff16rgb": tiff(np.stack([wide] * 3, -1), orientation=orientation),
    }
    for name, data in files.items():
        depth = read_depth(write(tmp_path, data, name))
        np.testing.assert_array_equal(depth.values, (upright / 255).astype(np.float32), err_msg=name)
        assert ("orientation" in depth.note) == (orientation != 1)
    np.testing.assert_array_equal(read_depth(image_with).values, (upright / 255).astype(np.float32))


def test_transparency_is_refused_and_opaque_alpha_is_not(tmp_path: Path) -> None:
    half = np.full_like(RAMP8, 128)
    opaque = np.full_like(RAMP8, 255)
    refused(tmp_path, png(np.stack([RAMP8, half], -1), 4), "transparent")
    refused(tmp_path, png(np.stack([RAMP8] * 3 + [half], -1), 6), "transparent")
    refused(tmp_path, png(np.stack([ALL_LEVELS] * 4, -1), 6), "transparent")
    refused(
        tmp_path,
        png(np.stack([ALL_LEVELS] * 3, -1), 2, chunk(b"tRNS", struct.pack(">HHH", 5, 5, 5))),
        "transparent",
    )
    refused(tmp_path, png(ALL_LEVELS, 0, chunk(b"tRNS", struct.pack(">H", 5))), "transparent")
    refused(tmp_path, png(RAMP8, 0, chunk(b"tRNS", struct.pack(">H", 5))), "transparent")
    refused(tmp_path, pil(Image.fromarray(np.stack([RAMP8] * 3 + [half], -1)), "WEBP"), "transparent")
    for alpha in (np.stack([RAMP8, opaque], -1), np.stack([RAMP8] * 3 + [opaque], -1)):
        data = png(alpha, 4 if alpha.shape[2] == 2 else 6)
        np.testing.assert_array_equal(
            read_depth(write(tmp_path, data)).values, (RAMP8 / 255).astype(np.float32)
        )


def test_a_colour_picture_is_no_depth_map(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for data in (
        png(colours, 2),
        png(colours.astype(np.uint16) * 257, 2),
        pil(Image.fromarray(colours), "JPEG"),
    ):
        with pytest.raises(InputError, match="is a colour picture; expected a depth map in grey"):
            read_depth(write(tmp_path, data))
    almost = np.stack([RAMP8, RAMP8, RAMP8], -1)
    almost[3, 3, 2] ^= 1
    with pytest.raises(InputError, match="colour"):
        read_depth(almost)


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "HSV", "YCbCr", "RGBa"])
def test_other_colour_spaces_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match=f"colours of kind {mode}"):
        read_depth(Image.new(mode, (4, 4)))


# --- damage ------------------------------------------------------------------------------------------------


def test_foreign_files_are_named(tmp_path: Path) -> None:
    refused(tmp_path, b"", "empty")
    refused(tmp_path, pil(Image.fromarray(RAMP8), "GIF"), "GIF", "expected a PNG")
    refused(tmp_path, pil(Image.fromarray(RAMP8), "BMP"), "BMP")
    refused(tmp_path, b"<!doctype html>", "web page")
    refused(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid", "LFS pointer")
    refused(tmp_path, b"hello, world", "unknown kind")
    refused(tmp_path, pil(Image.fromarray(RAMP8), "GIF").replace(b"GIF8", b"\x89PN8"), "unknown")


def test_a_name_says_nothing_about_the_content(tmp_path: Path) -> None:
    path = tmp_path / "map.jpg"
    path.write_bytes(npy(ALL_LEVELS))
    assert read_depth(path).kind == "uint16 .npy"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, word in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "a folder"),
        ("a\0b", "cannot be opened"),
    ):
        with pytest.raises(InputError, match=word):
            read_depth(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="not an ordinary file"):
            read_depth(tmp_path / "pipe")


def test_truncated_anywhere(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (12, 12), dtype=np.uint16)
    for data in (png(noise), png(np.stack([noise] * 3, -1), 2), npy(noise)):
        for cut in (1, 5, 9, 20, 40, len(data) // 2, len(data) - 5, len(data) - 1):
            refused(tmp_path, data[:cut])
    soft = Image.fromarray((noise >> 8).astype(np.uint8)).resize((64, 64))
    for kind in ("JPEG", "WEBP"):
        data = pil(soft, kind)
        refused(tmp_path, data[: len(data) // 2])
    data = tiff(noise)
    for cut in (5, 9, 100, len(data) - 9):
        refused(tmp_path, data[:cut], "TIFF")


def test_a_lenient_library_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = pil(Image.fromarray(RAMP8).resize((64, 64)), "JPEG")
    refused(tmp_path, data[: len(data) // 2], "truncated")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_wrong_checksums_and_short_pixel_streams(tmp_path: Path) -> None:
    data = bytearray(png(ALL_LEVELS))
    data[-20] ^= 1
    refused(tmp_path, bytes(data), "wrong checksum in chunk IDAT")
    kinds = chunks_of(png(ALL_LEVELS))
    short = zlib.compress(zlib.decompress(kinds[1][1])[:-1])
    refused(tmp_path, join([kinds[0], (b"IDAT", short), kinds[2]]), "truncated", "of 131328 bytes")
    refused(tmp_path, join([kinds[0], (b"IDAT", b"nonsense"), kinds[2]]), "do not decompress")
    refused(tmp_path, join([kinds[0], kinds[2]]), "truncated")
    refused(tmp_path, join([kinds[1], kinds[2]]), "out of place")
    refused(tmp_path, join([kinds[0], kinds[0], kinds[1], kinds[2]]), "out of place")
    refused(tmp_path, join(kinds[:2]), "no IEND")
    refused(tmp_path, SIGNATURE + b"\0\0\0\x0d\0\0\0\0" + bytes(17), "no proper name")
    body = bytearray(zlib.decompress(kinds[1][1]))
    body[0] = 9  # no such filter
    refused(tmp_path, join([kinds[0], (b"IDAT", zlib.compress(bytes(body))), kinds[2]]), "unknown filter")


def test_bombs(tmp_path: Path) -> None:
    for width, height in ((12000, 12000), (2**31 - 1, 2**31 - 1), (2**26 + 1, 1)):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        refused(tmp_path, join([(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]), "limit")
    big = pil(Image.new("L", (9000, 9000)), "JPEG")
    assert len(big) < 2_000_000
    refused(tmp_path, big, "limit")
    wide = tiff(RAMP8).replace(
        struct.pack("<HHIHH", 256, 3, 1, 16, 0), struct.pack("<HHII", 256, 4, 1, 2**31)
    )
    refused(tmp_path, wide, "limit")
    rows = zlib.compress(b"\0" * (8192 * 8193 + 2**26))  # inflates beyond what the header asks for
    header = struct.pack(">IIBBBBB", 8192, 8192, 8, 0, 0, 0, 0)
    with pytest.raises(InputError, match="constant"):
        read_depth(write(tmp_path, join([(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")])))


def test_zero_sizes(tmp_path: Path) -> None:
    for width, height in ((0, 0), (0, 5), (5, 0)):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        refused(tmp_path, join([(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]), "empty")
        refused(tmp_path, npy(np.zeros((height, width), np.float32)), "empty")
        with pytest.raises(InputError, match="empty"):
            read_depth(Image.new("L", (width, height)))
        with pytest.raises(InputError, match="empty"):
            read_depth(torch.zeros(height, width))


def test_several_pictures_in_one_file(tmp_path: Path) -> None:
    frames = [Image.fromarray(RAMP8), Image.fromarray(255 - RAMP8)]
    animated = {"save_all": True, "append_images": frames[1:]}
    refused(tmp_path, pil(frames[0], "PNG", **animated), "animated")
    refused(tmp_path, pil(frames[0].convert("RGB"), "WEBP", **animated), "2 pictures")
    refused(tmp_path, pil(frames[0], "TIFF", **animated), "several pictures")


def test_tiffs_that_would_be_read_wrongly(tmp_path: Path) -> None:
    refused(tmp_path, tiff(ALL_LEVELS, photometric=0), "white as zero")
    refused(tmp_path, tiff(RAMP8.astype(np.float16)), "16-bit float samples cannot be read")
    refused(tmp_path, tiff(np.stack([ALL_LEVELS] * 3, -1), photometric=8), "colour kind 8")
    inverted = read_depth(write(tmp_path, tiff(RAMP8, photometric=0)))
    np.testing.assert_array_equal(inverted.values, ((255 - RAMP8) / 255).astype(np.float32))


def test_lying_and_hostile_npy(tmp_path: Path) -> None:
    four_tb = npy_header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }\n", b"\0" * 16
    )
    assert len(four_tb) < 128
    refused(tmp_path, four_tb, "claims shape (1000000, 1000000)", "holds 16")
    refused(tmp_path, npy(ALL_LEVELS) + b"\0", "more than one array")
    buffer = io.BytesIO()
    np.save(buffer, np.array([[1, None]], dtype=object), allow_pickle=True)
    refused(tmp_path, buffer.getvalue(), "object array")
    for text, word in (
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -2), }", "impossible"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4), }", "impossible"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 2), }", "impossible"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" + "1," * 70 + "), }", "impossible"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + "f" * 9000 + ",), }", "impossible"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (2, 2), }", "whole numbers or floats"),
        ("{'descr': '<f16', 'fortran_order': False, 'shape': (2, 2), }", "whole numbers or floats"),
        ("{'descr': '<M8[D]', 'fortran_order': False, 'shape': (2, 2), }", "whole numbers or floats"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 2), }", "a structure"),
        ("{'descr': '<f4'}", "lacks"),
        ("[1, 2]", "lacks"),
        ("__import__('os').abort()", "cannot be understood"),
        ("(" * 5000, "cannot be understood"),
        ("{'descr': '\\d', 0or 1}", "cannot be understood"),
        ("\xff\xfe", "cannot be understood"),
    ):
        refused(tmp_path, npy_header(text, b"\0" * 16), word)
    refused(tmp_path, b"\x93NUMPY\x09\x00\x10\x00", "version 9")
    refused(tmp_path, b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 99, "claims 4294967295 bytes")


def test_wrong_shapes_and_types() -> None:
    for array in (
        np.zeros(5), np.zeros((2, 3, 4)), np.zeros((5, 5, 4)), np.zeros((2, 5, 5)), np.zeros(()),
        np.zeros((3, 3, 3, 3)),
    ):  # fmt: skip
        with pytest.raises(InputError, match="expected \\(height, width\\)"):
            read_depth(array)
    for array in (
        np.zeros((4, 4), complex),
        np.full((4, 4), None),
        np.full((4, 4), "a"),
        np.zeros((4, 4), "M8[D]"),
    ):
        with pytest.raises(InputError, match="expected whole numbers or floats"):
            read_depth(array)
    with pytest.raises(InputError, match="masked"):
        read_depth(np.ma.masked_greater(RAMP8, 5))
    for tensor in (torch.zeros(4, 4, device="meta"), torch.zeros(4, 4).to_sparse()):
        with pytest.raises(InputError, match="tensor: cannot be read"):
            read_depth(tensor)
    with pytest.raises(InputError, match="a list is no picture"):
        read_depth([[0, 1]])  # type: ignore[arg-type]
    closed = Image.open(io.BytesIO(pil(Image.fromarray(RAMP8), "PNG")))
    closed.close()
    with pytest.raises(InputError, match="PIL image: cannot be read"):
        read_depth(closed)


def test_opened_samples_pass_through(tmp_path: Path) -> None:
    samples = open_source(write(tmp_path, png(ALL_LEVELS)))
    assert samples.size == (256, 256)
    assert isinstance(read_depth(samples), DepthMap)
    assert open_source(samples) is samples
