"""Maps brought to the picture's size: by float resampling, within their own values, and never in silence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawdiff.errors import InputError, SizeError, UsageError
from rawdiff.geometry import size_like
from rawdiff.images import fit, read_depth, same_aspect

RNG = np.random.default_rng(0)


def test_the_right_size_is_left_alone_bit_for_bit() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    values = read_depth(levels).values
    told: list[str] = []
    fitted = fit(values, (256, 256), say=told.append)
    assert fitted is values
    assert len(np.unique(fitted)) == 65536
    assert not told


def test_resampling_keeps_more_than_8_bits() -> None:
    ramp = np.linspace(0, 1, 96 * 96, dtype=np.float32).reshape(96, 96)
    told: list[str] = []
    larger = fit(ramp, (192, 192), say=told.append)
    assert len(np.unique(larger)) > 20000
    assert told == ["map: 96x96 resampled to 192x192"]


def test_downwards_is_antialiased() -> None:
    """Stripes finer than the result vanish into their mean instead of beating against the grid."""
    stripes = np.tile(np.array([0, 1, 0], np.float32), (384, 128))  # [384,384], mean 1/3
    inside = fit(stripes, (120, 120), say=lambda _: None)[:, 8:-8]
    assert abs(inside - 1 / 3).max() < 0.05
    assert abs(stripes[:, ::3] - 1 / 3).max() > 0.3  # what picking pixels would give


def test_upwards_is_smooth_and_reproduces_slopes() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    large = fit(ramp, (256, 256), say=lambda _: None)
    steps = np.diff(large[100, 16:-16])
    np.testing.assert_allclose(steps, 1 / 63 / 4, atol=2e-6)


def test_overshoot_is_clamped_to_the_maps_own_values() -> None:
    step = np.full((40, 60), 0.3, np.float32)
    step[:, :30] = 0.7
    large = fit(step, (320, 480), say=lambda _: None)
    assert large.min() == np.float32(0.3)
    assert large.max() == np.float32(0.7)


def test_channels_are_resampled_apart() -> None:
    picture = RNG.random((60, 90, 3), dtype=np.float32)
    resized = fit(picture, (40, 64), "stretch", say=lambda _: None)
    for k in range(3):
        np.testing.assert_array_equal(
            resized[..., k], fit(picture[..., k], (40, 64), "stretch", lambda _: None)
        )


def test_another_aspect_is_refused_unless_told() -> None:
    values = RNG.random((1080, 1920), dtype=np.float32)
    with pytest.raises(InputError, match=r"1920x1080 .* 768x512: choose a size .* crop, pad or stretch"):
        fit(values, (512, 768))
    with pytest.raises(UsageError, match="expected crop, pad or stretch"):
        fit(values, (512, 768), "squash")  # type: ignore[arg-type]
    with pytest.raises(SizeError, match="not a multiple of 8"):
        fit(values, (512, 770), "crop")
    with pytest.raises(UsageError, match="float32"):
        fit(values.astype(np.float64), (512, 768), "crop")


def test_what_counts_as_the_same_aspect() -> None:
    assert same_aspect((667, 1000), (512, 768))  # 3:2 but for rounding
    assert same_aspect((1080, 1920), (432, 768))
    assert same_aspect((1080, 1920), (576, 1024))
    assert same_aspect((375, 500), (96, 128))
    assert not same_aspect((512, 512), (520, 512))
    assert not same_aspect((128, 128), (128, 136))
    assert not same_aspect((1080, 1920), (512, 768))
    assert not same_aspect((512, 768), (768, 512))


AREAS = [(64, 64), (128, 128), (96, 160), (512, 512), (768, 768), (1024, 1024)]


@settings(max_examples=3000, deadline=None, database=None)
@given(st.floats(0, 12), st.floats(0, 12), st.sampled_from(AREAS))
def test_a_size_made_for_the_shape_is_always_accepted(
    log_h: float, log_w: float, area: tuple[int, int]
) -> None:
    shape = int(2**log_h), int(2**log_w)
    try:
        size = size_like(shape, area)
    except SizeError:  # thinner than any picture
        return
    assert same_aspect(shape, size)


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (64, 65), (1000, 3), (3, 1000)])
def test_crop_keeps_the_middle_undistorted(shape: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32) + 0.5
    size = (128, 192)
    scale = max(size[0] / shape[0], size[1] / shape[1])
    for source, axis, extent in ((rows, 0, shape[0]), (columns, 1, shape[1])):
        cropped = fit(source / max(shape), size, "crop", lambda _: None) * max(shape)
        middle = (
            cropped.take(size[axis] // 2 - 1, axis).mean() / 2
            + cropped.take(size[axis] // 2, axis).mean() / 2
        )
        assert middle == pytest.approx(extent / 2, abs=0.02)
        if extent >= 64:
            slope = np.diff(cropped, axis=axis)[32:-32, 32:-32].mean()
            assert slope == pytest.approx(1 / scale, rel=0.02)


def test_pad_adds_far_edges_and_keeps_the_aspect() -> None:
    values = RNG.random((100, 300), dtype=np.float32) * 0.5 + 0.5
    told: list[str] = []
    padded = fit(values, (256, 384), "pad", told.append)
    assert told == ["map: 300x100 padded to 384x256 (itself 384x128)"]
    assert padded.shape == (256, 384)
    assert (padded[:64] == 0).all()
    assert (padded[192:] == 0).all()
    assert padded[64:192].min() >= 0.5


def test_stretch_uses_all_of_the_map() -> None:
    ramp = np.linspace(0, 1, 300, dtype=np.float32)[None].repeat(100, 0)
    wide = fit(ramp, (128, 128), "stretch", lambda _: None)
    assert wide[0, 0] < 0.01
    assert wide[0, -1] > 0.99


SIDES = st.integers(1, 60)
CELLS = st.integers(1, 12)


@settings(max_examples=300, deadline=None, database=None)
@given(SIDES, SIDES, CELLS, CELLS, st.sampled_from(["crop", "pad", "stretch"]))
def test_every_fit_gives_the_size_and_no_new_values(
    h: int, w: int, rows: int, columns: int, how: str
) -> None:
    values = np.random.default_rng(h * 61 + w).random((h, w), dtype=np.float32) * 0.5 + 0.25
    size = (rows * 8, columns * 8)
    fitted = fit(values, size, how, lambda _: None)  # type: ignore[arg-type]
    assert fitted.shape == size
    assert fitted.dtype == np.float32
    inside = fitted[fitted > 0]
    assert inside.min() >= values.min()
    assert inside.max() <= values.max()
    assert how == "pad" or (fitted > 0).all()
    assert not math.isnan(float(fitted.sum()))
