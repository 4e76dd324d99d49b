"""Mutated files: one of our own errors or a valid result, in bounded time, whatever the bytes."""

from __future__ import annotations

import random
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rawdiff.errors import InputError
from rawdiff.images import open_source, read_depth, read_picture, read_recipe
from rawdiff.images.png import encode_png
from tests.image_files import chunks_of, join, npy, pil, png, tiff

WIDE = np.random.default_rng(0).integers(0, 65536, (7, 9), dtype=np.uint16)
SOFT = np.add.outer(np.arange(24) * 5, np.arange(32) * 4).astype(np.uint8)
SLOWEST_S = 2.0
FUZZ = settings(
    max_examples=1500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CHUNKS = st.tuples(
    st.sampled_from([b"tRNS", b"PLTE", b"eXIf", b"gAMA", b"acTL", b"tEXt"]), st.binary(max_size=20)
)
SIGNATURES = [
    *(b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBP", b"\x93NUMPY\1\0"),
    *(b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0"),
]


def holds(path: Path, data: bytes) -> bool:
    """Read `data` every way; True if a depth map came out, valid in every respect."""
    path.write_bytes(data)
    started = time.process_time()
    accepted = False
    try:
        depth = read_depth(path)
        accepted = True
        assert depth.values.dtype == np.float32
        assert depth.values.ndim == 2
        assert depth.values.size > 0
        assert np.isfinite(depth.values).all()
        assert depth.values.min() >= 0
        assert depth.values.max() <= 1
        assert depth.values.min() < depth.values.max()
    except InputError as error:
        one_line(error)
    try:
        picture = read_picture(path)
        assert picture.dtype == np.float32
        assert picture.shape[2:] == (3,)
        assert np.isfinite(picture).all()
        assert picture.min() >= 0
        assert picture.max() <= 1
    except InputError as error:
        one_line(error)
    assert time.process_time() - started < SLOWEST_S
    return accepted


def one_line(error: InputError) -> None:
    assert "\n" not in str(error)


def flipped(data: bytes, seed: int) -> bytes:
    """`data` with one to four bytes changed, cut, doubled or inserted."""
    chance = random.Random(seed)
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found))
        kind = chance.randrange(6)
        if kind <= 2:
            found[at] = chance.choice([0, 1, 127, 128, 255, found[at] ^ 1 << chance.randrange(8)])
        elif kind == 3:
            del found[at : at + chance.randint(1, 8)]
        elif kind == 4:
            found[at:at] = found[at : at + chance.randint(1, 16)]
        else:
            found[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 4)))
        if not found:
            break
    return bytes(found)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (png(WIDE), 3000),
        (png(np.stack([WIDE] * 3, -1), 2), 1500),
        (png(np.stack([WIDE, np.full_like(WIDE, 65535)], -1), 4), 800),
        (npy(WIDE), 3000),
        (npy(WIDE / 65535), 1500),
        (tiff(WIDE), 1500),
        (tiff(WIDE.astype(np.float64)), 1000),
        (tiff(np.stack([WIDE] * 3, -1)), 1000),
        (pil(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw"), 1000),
        (pil(Image.fromarray(SOFT), "JPEG"), 1000),
        (pil(Image.fromarray(SOFT), "WEBP"), 800),
    ],
    ids=[
        "png16",
        "png48",
        "png32",
        "npy-int",
        "npy-float",
        "tiff16",
        "tiff64",
        "tiff48",
        "lzw",
        "jpeg",
        "webp",
    ],
)
def test_mutated_files(tmp_path: Path, data: bytes, count: int) -> None:
    path = tmp_path / "map"
    assert open_source_works(path, data)
    accepted = sum(holds(path, flipped(data, seed)) for seed in range(count))
    assert accepted < count  # the mutations bite


def open_source_works(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    return open_source(path).array.size > 0


@FUZZ
@given(
    width=st.integers(0, 12),
    height=st.integers(0, 12),
    bits=st.sampled_from([0, 1, 2, 4, 8, 16, 16, 16, 32]),
    colour_type=st.integers(0, 7),
    rest=st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 2)),
    raw=st.binary(max_size=400),
    exact=st.booleans(),
    extra=st.lists(CHUNKS, max_size=2),
)
def test_structured_pngs(
    tmp_path: Path,
    width: int,
    height: int,
    bits: int,
    colour_type: int,
    rest: tuple[int, int, int],
    raw: bytes,
    exact: bool,
    extra: list[tuple[bytes, bytes]],
) -> None:
    """Sound chunks around any header and any pixels: what a decoder meets once the checksums agree."""
    if exact:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour_type, 1)
        need = height * (1 + (width * bits * channels + 7) // 8)
        raw = (raw * (need // max(1, len(raw)) + 1))[:need]
        row = need // max(1, height)
        raw = b"".join(bytes([raw[i] % 5]) + raw[i + 1 : i + row] for i in range(0, len(raw), max(1, row)))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, *rest)
    holds(tmp_path / "map", join([(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]))


@FUZZ
@given(
    descr=st.sampled_from(["<f4", ">u2", "|u1", "<i8", "|O", "<c8", "<f2", "|b1", "<U3", "|V4", "", "<f3"]),
    fortran=st.sampled_from(["True", "False", "1", "None"]),
    shape=st.lists(st.integers(-1, 6) | st.integers(10**6, 10**20), max_size=5),
    body=st.binary(max_size=200),
    exact=st.booleans(),
    version=st.sampled_from([1, 1, 1, 2, 3, 0, 200]),
    claimed=st.none() | st.integers(0, 65535),
)
def test_structured_npys(
    tmp_path: Path,
    descr: str,
    fortran: str,
    shape: list[int],
    body: bytes,
    exact: bool,
    version: int,
    claimed: int | None,
) -> None:
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {tuple(shape)}, }}\n".encode()
    count = int(np.prod([min(n, 100) for n in shape])) if all(0 <= n < 100 for n in shape) else 0
    if exact and descr[-1:].isdigit():
        need = count * int(descr[-1])
        body = (body * (need // max(1, len(body)) + 1))[:need]
    length = struct.pack("<H" if version == 1 else "<I", len(header) if claimed is None else claimed)
    holds(tmp_path / "map", b"\x93NUMPY" + bytes([version, 0]) + length + header + body)


@FUZZ
@given(st.binary(max_size=300), st.sampled_from(SIGNATURES))
def test_any_bytes_after_any_signature(tmp_path: Path, data: bytes, signature: bytes) -> None:
    assert not holds(tmp_path / "map", signature + data) or signature[:2] in (b"\x93N", b"II", b"MM")


def test_mutated_recipes(tmp_path: Path) -> None:
    """read_recipe gives a dictionary or our error, also where the text is damaged under a right checksum."""
    path = tmp_path / "a.png"
    data = encode_png(
        np.repeat(SOFT[..., None], 3, 2), {"prompt": "a cube", "seed": 7, "list": [1.5, None, True]}
    )
    kinds = chunks_of(data)
    accepted = 0
    for seed in range(1500):
        if seed % 2:
            path.write_bytes(flipped(data, seed))
        else:
            path.write_bytes(join([(k, flipped(b, seed) if k == b"tEXt" else b) for k, b in kinds]))
        try:
            assert isinstance(read_recipe(path), dict)
            accepted += 1
        except InputError as error:
            one_line(error)
    assert 0 < accepted < 1500
