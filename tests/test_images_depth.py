"""The range policy of depth maps: explicit, recorded, and refusing to guess."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rawdiff.errors import InputError, UsageError
from rawdiff.images import parse_depth_range, read_depth

METRES = np.linspace(0.5, 12, 48 * 64, dtype=np.float32).reshape(48, 64)


@pytest.mark.parametrize(
    ("array", "low", "high", "policy"),
    [
        (np.arange(16, dtype=np.uint8).reshape(4, 4), 0, 255, "full"),
        (np.arange(16, dtype=np.uint16).reshape(4, 4), 0, 65535, "full"),
        (np.arange(16).reshape(4, 4) > 7, 0, 1, "full"),
        (np.linspace(0.2, 0.7, 16).reshape(4, 4), 0, 1, "unit"),
        (np.linspace(0.2, 0.7, 16, dtype=np.float16).reshape(4, 4), 0, 1, "unit"),
    ],
)
def test_defaults(array: np.ndarray, low: float, high: float, policy: str) -> None:
    depth = read_depth(array)
    assert (depth.range, depth.policy) == ((low, high), policy)
    np.testing.assert_array_equal(depth.values, (array.astype(np.float64) / high).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_whole_numbers_without_an_agreed_range_are_refused(dtype: type) -> None:
    array = np.arange(100, dtype=dtype).reshape(10, 10)
    with pytest.raises(InputError, match=r"0\.\.99.*give a depth range"):
        read_depth(array)
    np.testing.assert_allclose(read_depth(array, depth_range=(0, 99)).values, array / 99, rtol=1e-6)
    np.testing.assert_allclose(read_depth(array, depth_range="auto").values, array / 99, rtol=1e-6)


def test_floats_beyond_0_to_1_are_refused() -> None:
    with pytest.raises(InputError, match=r"values 0\.5\.\.12; .*give a depth range"):
        read_depth(METRES)
    with pytest.raises(InputError):
        read_depth(METRES / 12 - 0.1)


def test_metres_with_a_range_and_inverted() -> None:
    depth = read_depth(METRES, depth_range=(1, 10), invert=True)
    np.testing.assert_allclose(depth.values, 1 - np.clip((METRES - 1) / 9, 0, 1), atol=1e-6)
    assert depth.policy == "given"
    assert depth.inverted
    assert "beyond the range and was clipped" in depth.note
    assert depth.values[0, 0] == 1  # near
    assert depth.values[-1, -1] == 0  # far


def test_invert_keeps_every_level_of_16_bits() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(np.unique(read_depth(levels, invert=True).values)) == 65536


def test_auto_stretches_to_the_whole_range() -> None:
    depth = read_depth(METRES, depth_range="auto")
    assert (float(depth.values.min()), float(depth.values.max())) == (0, 1)
    assert depth.range == (0.5, 12)


def test_a_map_that_uses_little_of_its_range_gets_a_remark() -> None:
    millimetres = np.linspace(500, 4000, 64 * 64).astype(np.uint16).reshape(64, 64)
    assert "uses only 500..4000 of its range" in read_depth(millimetres).note
    assert "uses only" not in read_depth(millimetres, depth_range="auto").note
    assert "uses only" not in read_depth(millimetres * 16).note


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("depth_range", [None, "auto", (0, 1)])
def test_not_finite_is_refused_under_every_policy(value: float, depth_range: object) -> None:
    array = np.linspace(0, 1, 64).reshape(8, 8)
    array[2, 3] = value
    with pytest.raises(InputError, match=r"NaN and .* infinite of 64 values"):
        read_depth(array, depth_range=depth_range)  # type: ignore[arg-type]


def test_constant_maps_are_refused_under_every_policy() -> None:
    for value in (0, 7, 255):
        with pytest.raises(InputError, match=f"every pixel is {value}; a constant map"):
            read_depth(np.full((8, 8), value, np.uint8))
    with pytest.raises(InputError, match="constant"):
        read_depth(np.full((8, 8), 0.25), depth_range="auto")
    with pytest.raises(InputError, match=r"after the range 20\.\.30"):
        read_depth(METRES, depth_range=(20, 30))
    with pytest.raises(InputError, match="constant"):
        read_depth(np.array([[7]], np.uint8))
    with pytest.raises(InputError, match="constant"):
        read_depth(0.5 + np.linspace(0, 1e-12, 64).reshape(8, 8))


@pytest.mark.filterwarnings("error")
def test_values_too_far_apart() -> None:
    for depth_range in ("auto", None):
        with pytest.raises(InputError):
            read_depth(np.array([[-1.7e308, 1.7e308]]), depth_range=depth_range)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [(1, 1), (2, 1), (0, np.nan), (0, np.inf), (-1.7e308, 1.7e308), (1,), (1, 2, 3), ("a", "b"), 5, "full"],
)
def test_bad_ranges(bad: object) -> None:
    with pytest.raises(UsageError, match="depth range"):
        read_depth(METRES, depth_range=bad)  # type: ignore[arg-type]


def test_ranges_as_text() -> None:
    assert parse_depth_range("500,8000") == (500, 8000)
    assert parse_depth_range(" 0.5 , 1e1 ") == (0.5, 10)
    assert parse_depth_range("AUTO") == "auto"
    for bad in ("", "5", "1,2,3", "8,5", "a,b", "nan,1", "0,inf", ","):
        with pytest.raises(UsageError, match="depth range"):
            parse_depth_range(bad)


def test_the_description_is_plain_json() -> None:
    described = read_depth(METRES, depth_range=(1, 10)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["range"] == [1, 10]
    assert described["range_policy"] == "given"
    assert len(described["sha256"]) == 64


def test_pil_modes() -> None:
    wide = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for image in (Image.fromarray(wide), Image.fromarray(wide.astype(">u2"))):
        np.testing.assert_array_equal(read_depth(image).values, (wide / 65535).astype(np.float32))
    with pytest.raises(InputError, match="give a depth range"):
        read_depth(Image.fromarray(wide.astype(np.int32)))
    assert read_depth(Image.fromarray(wide.astype(np.int32)), depth_range=(0, 65535)).values.max() == 1
    assert set(np.unique(read_depth(Image.fromarray(np.eye(8, dtype=bool))).values)) == {0, 1}
