"""Hints: normals that agree with geometry, edges that agree with OpenCV, and what a net is shown."""

from __future__ import annotations

import builtins
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from rawdiff.errors import InputError, ResourceError, UsageError
from rawdiff.images import (
    canny,
    make_hint,
    normal_from_depth,
    read_depth,
    read_picture,
    read_recipe,
    save_hints,
)
from rawdiff.images.normals import FLAT_NORMAL, smooth_steps
from tests.image_files import png

FOCAL = 1.1


def rays(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """X to the right and Y down of the ray (X, Y, 1) through each pixel."""
    pixels = FOCAL * math.sqrt(height * width)
    x = (np.arange(width) + 0.5 - width / 2) / pixels
    y = (np.arange(height) + 0.5 - height / 2) / pixels
    return np.meshgrid(x, y)


def plane(height: int, width: int, a: float, b: float, c: float) -> np.ndarray:
    """Disparity of the plane a*x + b*y + c*z = 1, nearest 1."""
    x, y = rays(height, width)
    rho = a * x + b * y + c
    return (rho / rho.max()).astype(np.float32)


def sphere(
    height: int, width: int, radius: float = 1.0, distance: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """(disparity, true normal as x right, y up, z towards the viewer) of a sphere before nothing."""
    x, y = rays(height, width)
    squared = x * x + y * y + 1
    inside = distance**2 - squared * (distance**2 - radius**2)
    hit = inside > 0
    z = np.where(hit, (distance - np.sqrt(np.maximum(inside, 0))) / squared, np.inf)
    depth = np.where(hit, 1 / z, 0)
    with np.errstate(invalid="ignore"):
        normal = np.stack([x * z, -y * z, -(z - distance)], -1) / radius
    normal[~hit] = (0, 0, 1)
    return (depth / depth.max()).astype(np.float32), normal


def degrees(colours: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The angle between colours with red to the right and true normals."""
    found = colours * 2.0 - 1
    cosine = (found * normal).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(normal, axis=-1)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


# --- normals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "c"), [(0, 0, 1), (0.3, 0, 1), (-0.3, 0, 1), (0, 0.4, 1), (0.2, -0.3, 0.8), (0, 1.2, 0.9)]
)
def test_planes_are_exact(a: float, b: float, c: float) -> None:
    colours = normal_from_depth(plane(96, 128, a, b, c), focal=FOCAL, red="right")
    normal = np.array([-a, b, c]) / math.sqrt(a * a + b * b + c * c)
    np.testing.assert_allclose(colours, np.broadcast_to(normal * 0.5 + 0.5, colours.shape), atol=2e-3)


def test_colours_of_the_normal_controlnets() -> None:
    """Blue towards the viewer, green up, red to the left."""
    facing = normal_from_depth(plane(64, 64, 0, 0, 1))[32, 32]
    np.testing.assert_allclose(facing, FLAT_NORMAL, atol=1e-4)
    floor = normal_from_depth(plane(64, 64, 0, 1.2, 1))[40, 32]  # nearer further down: seen from above
    assert floor[1] > 0.75
    assert abs(floor[0] - 0.5) < 1e-3
    left_facing = normal_from_depth(plane(64, 64, 1.2, 0, 1))[32, 32]  # nearer to the right: it faces left
    assert left_facing[0] > 0.75
    assert normal_from_depth(plane(64, 64, 1.2, 0, 1), red="right")[32, 32][0] < 0.25


@pytest.mark.parametrize("size", [(96, 96), (128, 192)])
def test_a_sphere(size: tuple[int, int]) -> None:
    depth, normal = sphere(*size)
    colours = normal_from_depth(depth, focal=FOCAL, red="right")
    on_it = depth > 0
    angles = degrees(colours, normal)[on_it]
    assert np.median(angles) < 1
    assert np.percentile(angles, 90) < 6
    np.testing.assert_allclose(colours[~on_it], np.broadcast_to(FLAT_NORMAL, colours[~on_it].shape))
    assert np.median(degrees(normal_from_depth(depth, focal=FOCAL, red="left"), normal)[on_it]) > 20


def test_eight_bit_stairs_are_smoothed() -> None:
    depth, normal = sphere(192, 288, radius=1.5)
    stairs = (np.round(depth * 255) / 255).astype(np.float32)
    on_it = depth > 0.02
    rough = np.median(degrees(normal_from_depth(stairs, red="right"), normal)[on_it])
    smooth = np.median(degrees(normal_from_depth(smooth_steps(stairs, 1 / 255), red="right"), normal)[on_it])
    assert smooth < rough / 2
    assert smooth < 5
    assert smooth_steps(depth, 1 / 65535) is depth


def test_one_row_and_bad_arguments() -> None:
    assert normal_from_depth(np.linspace(0, 1, 8, dtype=np.float32)[None]).shape == (1, 8, 3)
    for bad in ({"focal": 0}, {"focal": math.nan}, {"red": "up"}):
        with pytest.raises(UsageError, match="normals"):
            normal_from_depth(plane(8, 8, 0, 0.1, 1), **bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="float32 depth map"):
        normal_from_depth(np.zeros((8, 8, 3), np.float32))


# --- edges -----------------------------------------------------------------------------------------------


def test_canny_is_opencvs() -> None:
    picture = np.asarray(Image.effect_noise((96, 64), 60).resize((192, 128)).convert("RGB"))
    edges = canny(read_picture(picture), 100, 200)
    np.testing.assert_array_equal(edges, (cv2.Canny(picture, 100, 200) > 0).astype(np.float32))
    assert 0 < edges.mean() < 0.5
    assert canny(read_picture(picture), 20, 60).sum() > edges.sum()
    for low, high in ((200, 100), (-1, 5), (0, math.nan)):
        with pytest.raises(UsageError, match="canny thresholds"):
            canny(read_picture(picture), low, high)


def test_canny_without_opencv_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ResourceError, match=r"libGL.*pip install opencv-python") as caught:
        canny(np.zeros((8, 8), np.float32))
    assert "\n" not in str(caught.value)


# --- hints -----------------------------------------------------------------------------------------------


def test_a_depth_hint_is_the_map_in_three_channels(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / "room.png"
    path.write_bytes(png(levels))
    told: list[str] = []
    hint = make_hint("depth", path, (256, 256), say=told.append)
    assert hint.tensor.shape == (3, 256, 256)
    assert hint.tensor.dtype == torch.float32
    for k in range(3):
        assert torch.equal(hint.tensor[k], torch.from_numpy((levels / 65535).astype(np.float32)))
    assert told == [f"depth from {path}: 16-bit PNG, 0..65535 taken as 0..1 (full)"]
    assert hint.sha256 == read_depth(path).sha256
    assert json.loads(json.dumps(hint.description)) == hint.description
    assert hint.description["fit"] == "as it is"


def test_what_is_done_is_told() -> None:
    metres = np.linspace(1, 9, 60 * 90).reshape(60, 90)
    told: list[str] = []
    make_hint("depth", metres, (64, 64), fit="pad", depth_range=(2, 8), depth_invert=True, say=told.append)
    assert len(told) == 2
    assert "2..8 taken as 0..1 (given), inverted" in told[0]
    assert "clipped" in told[0]
    assert told[1] == "array: 90x60 padded to 64x64 (itself 64x43)"


def test_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    make_hint("depth", plane(64, 64, 0, 0.3, 1), (32, 32))
    out = capsys.readouterr()
    assert not out.out
    assert "64x64 resampled to 32x32" in out.err


def test_ready_made_hints_keep_their_colours() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("normal", "canny", "openpose"):
        hint = make_hint(kind, colours, (64, 64), say=lambda _: None)
        assert torch.equal(hint.tensor, torch.from_numpy((colours / 255).astype(np.float32)).permute(2, 0, 1))


def test_derived_normals() -> None:
    depth, _ = sphere(96, 144)
    hint = make_hint("normal", depth, (96, 144), derive=True, say=lambda _: None)
    np.testing.assert_array_equal(hint.tensor.numpy().transpose(1, 2, 0), normal_from_depth(depth))
    assert hint.description["derived"] is True
    eight = make_hint(
        "normal", (depth * 255).round().astype(np.uint8), (96, 144), derive=True, say=lambda _: None
    )
    assert (eight.tensor - hint.tensor).abs().mean() < 0.02


def test_derived_edges_from_a_map_and_from_a_picture() -> None:
    depth, _ = sphere(96, 144)
    from_map = make_hint("canny", depth, (96, 144), derive=True, say=lambda _: None)
    np.testing.assert_array_equal(from_map.tensor[0].numpy(), canny(depth))
    assert from_map.tensor.sum() > 100
    picture = np.zeros((96, 144, 3), np.uint8)
    picture[20:60, 30:90, 0] = 255
    from_picture = make_hint("canny", picture, (96, 144), derive=True, say=lambda _: None)
    assert from_picture.tensor[0].sum() > 100
    assert from_picture.description["canny_thresholds"] == [100, 200]


def test_padding_makes_no_edges_and_no_slopes() -> None:
    bright = plane(64, 128, 0.2, 0.1, 1)
    assert bright.min() > 0.5
    edges = make_hint("canny", bright, (128, 128), fit="pad", derive=True, say=lambda _: None)
    assert not edges.tensor.any()
    normals = make_hint("normal", bright, (128, 128), fit="pad", derive=True, say=lambda _: None)
    colours = normals.tensor.numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(colours[:32], np.broadcast_to(np.float32(FLAT_NORMAL), (32, 128, 3)))
    np.testing.assert_allclose(colours[32], colours[60], atol=0.01)


def test_no_edges_are_told() -> None:
    told: list[str] = []
    make_hint("canny", plane(64, 64, 0.1, 0, 1), (64, 64), derive=True, say=told.append)
    assert any("no edges at thresholds 100, 200" in line for line in told)


def test_hints_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="a depth hint cannot be derived"):
        make_hint("depth", plane(8, 8, 0, 0.1, 1), (8, 8), derive=True)
    step = np.zeros((64, 640), np.uint8)
    step[:, :100] = 200
    with pytest.raises(InputError, match="left after cropping is constant"):
        make_hint("depth", step, (64, 64), fit="crop", say=lambda _: None)
    with pytest.raises(
        InputError, match=r"^array: the depth map of 640x64 has another aspect .* the depth map's aspect"
    ):
        make_hint("depth", step, (64, 64), say=lambda _: None)
    with pytest.raises(InputError, match=r"^array: the map for normal of 640x64 has another aspect"):
        make_hint("normal", step, (64, 64), derive=True, say=lambda _: None)


def test_saved_hints_are_what_the_nets_saw(tmp_path: Path) -> None:
    depth, _ = sphere(64, 96)
    hints = [make_hint("depth", depth, (64, 96), say=lambda _: None)] * 2
    hints.append(make_hint("normal", depth, (64, 96), derive=True, say=lambda _: None))
    paths = save_hints(tmp_path, "cube", hints)
    assert [p.name for p in paths] == ["cube-depth.png", "cube-depth-2.png", "cube-normal.png"]
    again = read_depth(paths[0])
    assert again.kind == "16-bit PNG"
    assert abs(again.values - depth).max() <= 0.5 / 65535 + 1e-7
    assert abs(read_picture(paths[2]) - hints[2].tensor.numpy().transpose(1, 2, 0)).max() <= 0.5 / 255 + 1e-6
    assert read_recipe(paths[2])["hint"] == hints[2].description
