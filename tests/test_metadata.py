"""The prompts and maps of metadata/: whole, exact, and what the scripts make again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rawdiff.errors import UsageError
from rawdiff.geometry import format_size, parse_size
from rawdiff.images.depth import read_depth
from rawdiff.jobs.manifest import read_manifest
from scripts.embedded.captions import FLOOR_WORDS, SHAPE_WORDS, SKY_WORDS
from scripts.embedded.palette import COLOURS
from scripts.embedded.world import Scenes, render
from scripts.metadata.files import write_map
from scripts.metadata.places import PLACES
from scripts.metadata.places import disparity as place_disparity
from scripts.metadata.raycast import Camera, Terrain, cast
from scripts.metadata.solids import DEMO, SOLIDS, SolidScene, build
from scripts.metadata.solids import disparity as solid_disparity
from scripts.metadata.surfaces import Ellipsoid, Frustum, Plane, RoundBox, Surface, box, prism

ROOT = Path(__file__).resolve().parents[1]
METADATA = ROOT / "metadata"
MANIFESTS = ("prompts.jsonl", "real_models.jsonl")


def entries(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (METADATA / name).read_text(encoding="utf-8").splitlines()]


def load(path: Path) -> NDArray[np.float64]:
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        assert array.dtype == np.float32
        return array.astype(np.float64)
    with Image.open(path) as picture:
        assert picture.mode == "I;16", f"{path}: not 16 bit"
        return np.asarray(picture).astype(np.float64) / 65535


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_is_whole(name: str) -> None:
    assert [item for item in read_manifest(METADATA / name) if isinstance(item.request, UsageError)] == []
    for entry in entries(name):
        assert (
            {"prompt", "depth", "size", "seed"}
            <= set(entry)
            <= {"prompt", "negative", "depth", "size", "seed"}
        )
        relative = Path(str(entry["depth"]))
        assert not relative.is_absolute()
        assert ".." not in relative.parts
        values = load(METADATA / relative)
        read = read_depth(METADATA / relative)
        assert read.policy in ("full", "unit"), "needs a range to be understood"
        assert np.abs(read.values - values).max() < 1e-7
        height, width = parse_size(str(entry["size"]))  # refuses what is no multiple of 8
        assert values.shape[1] * height == values.shape[0] * width, (
            "the map has another aspect than the picture"
        )
        assert values.max() == 1
        assert values.min() == 0
        assert len(np.unique(values)) > 256, "fewer levels than 8 bits have"


def test_every_map_is_listed_and_all_of_it_is_small() -> None:
    listed = {str(entry["depth"]) for name in MANIFESTS for entry in entries(name)}
    files = [path for path in METADATA.rglob("*") if path.is_file()]
    maps = {path.relative_to(METADATA).as_posix() for path in files if path.suffix in (".png", ".npy")}
    assert maps == listed == {s.path for s in (*SOLIDS, *PLACES)}
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert "No crop/2_nocrop.png" in listed


def test_manifests_say_what_the_scripts_say() -> None:
    for name, scenes in zip(MANIFESTS, (SOLIDS, PLACES), strict=True):
        for entry, scene in zip(entries(name), scenes, strict=True):
            size = scene.size if isinstance(scene, SolidScene) else scene.picture
            assert (entry["prompt"], entry["depth"], entry["size"], entry["seed"]) == (
                scene.prompt,
                scene.path,
                format_size(size),
                scene.seed,
            )
            assert entry.get("negative") == getattr(scene, "negative", None)


def test_the_demo_uses_the_first_entry() -> None:
    script = (ROOT / "scripts" / "demo").read_text(encoding="utf-8")
    assert DEMO.prompt in script
    assert f"metadata/{DEMO.path}" in script
    assert format_size(DEMO.size) in script


@pytest.mark.parametrize("scene", SOLIDS, ids=lambda s: s.path)
def test_prompts_describe_their_scenes(scene: SolidScene) -> None:
    words = "|".join(sorted({w for ways in SHAPE_WORDS.values() for w in ways}))
    named = re.findall(rf"\b({'|'.join(COLOURS)}) ({words})\b", scene.prompt)
    assert len(named) == len(scene.solids)
    for (colour, shape), solid in zip(named, scene.solids, strict=True):  # both from left to right
        assert colour == solid.colour
        assert shape in SHAPE_WORDS[solid.shape]
    assert any(words in scene.prompt for words in FLOOR_WORDS[scene.floor])
    assert any(words in scene.prompt for words in SKY_WORDS[scene.sky])


@pytest.mark.parametrize("scene", SOLIDS, ids=lambda s: s.path)
def test_scenes_lie_within_the_worlds_ranges(scene: SolidScene) -> None:
    """Nothing here asks the embedded model for what its training never showed."""
    assert 1.2 <= scene.eye <= 2.3
    assert 0.22 <= scene.horizon <= 0.46
    assert 0.95 <= scene.focal <= 1.25
    assert all(3.6 <= s.z <= 6.8 and 0.5 <= s.radius <= 1.05 for s in scene.solids)
    assert [s.across for s in scene.solids] == sorted(s.across for s in scene.solids)
    ids = render(_float32(build(scene)), (scene.size[0] // 4, scene.size[1] // 4), supersample=1).ids[0]
    for k in range(len(scene.solids)):
        seen = ids == k
        assert seen.float().mean() > 0.015, "hardly to be seen"
        border = torch.cat([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
        assert not border.any(), "cut off"


def _float32(scenes: Scenes) -> Scenes:
    for name, value in vars(scenes).items():
        if value.dtype == torch.float64:
            setattr(scenes, name, value.float())
    return scenes


@pytest.mark.parametrize(
    "path",
    [
        "solids/05_moonlight.png",
        "solids/12_native.npy",
        "real_models/street.png",
        "real_models/mountain_lake.npy",
    ],
)
def test_maps_are_made_again_exactly(path: str, tmp_path: Path) -> None:
    scene = next(s for s in (*SOLIDS, *PLACES) if s.path == path)
    values = solid_disparity(scene) if isinstance(scene, SolidScene) else place_disparity(scene)
    write_map(tmp_path / path, values)
    made, kept = load(tmp_path / path), load(METADATA / path)
    # To the last of 16 bits; of a float32 the last bit may hang on a machine's sine.
    assert np.abs(made - kept).max() <= (1e-7 if path.endswith(".npy") else 0)


@pytest.mark.parametrize("scene", SOLIDS, ids=lambda s: s.path)
def test_near_is_white_and_the_sky_black(scene: SolidScene) -> None:
    values = load(METADATA / scene.path)
    sky = values[: int(scene.horizon * scene.size[0] * 0.5)]
    floor = values[-1]
    assert np.median(sky) == 0
    assert np.median(floor) > 0.8


def test_near_is_white_in_places() -> None:
    for entry in entries("real_models.jsonl"):
        values = load(METADATA / str(entry["depth"]))
        height = len(values)
        assert values[-height // 20 :].mean() > values[height // 3 : height // 2].mean() + 0.2, entry["depth"]


# ------------------------------------------------------------------------------------------ the ray caster itself

ROUND = 0.4


def _distance_to(surface: str, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far points [N,3] lie from a surface's equation: 0 on it."""
    x, y, z = p.T
    if surface == "sphere":
        return np.abs(np.sqrt(x**2 + (y - 1) ** 2 + (z - 5) ** 2) - 1)
    if surface == "cylinder":
        return np.minimum(np.abs(np.hypot(x, z - 5) - 0.8), np.abs(y - 2))
    if surface == "cone":
        return np.abs(np.hypot(x, z - 5) - (2 - y) / 2)
    if surface == "box":
        return np.abs(np.maximum.reduce([np.abs(x) - 1, np.abs(y - 1) - 1, np.abs(z - 5) - 1]))
    if surface == "roof":
        return np.abs(np.maximum.reduce([np.abs(z - 5) + y - 1, np.abs(x) - 1, -y]))
    q = np.stack([np.abs(x), np.abs(y - 1), np.abs(z - 5)], axis=1) - (1 - ROUND)
    return np.abs(np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0) - ROUND)


@pytest.mark.parametrize(
    ("name", "surface"),
    [
        ("sphere", Ellipsoid((0, 1, 5), (1, 1, 1))),
        ("cylinder", Frustum((0, 0, 5), 2, 0.8, 0.8)),
        ("cone", Frustum((0, 0, 5), 2, 1, 0)),
        ("box", box((-1, 0, 4), (1, 2, 6))),
        ("roof", prism((-1, 0, 4), (1, 1, 6), ridge="x")),
        ("round box", RoundBox((0, 1, 5), (2, 2, 2), ROUND)),
    ],
)
@pytest.mark.parametrize("turn", [0.0, 0.25])
def test_rays_end_on_the_surface(name: str, surface: Surface, turn: float) -> None:
    camera = Camera((0.3, 2.4, -0.5), turn=turn, horizon=0.3)
    depth = cast([surface], camera, (48, 64))
    hit = np.isfinite(depth)
    assert 0.02 < hit.mean() < 0.6
    points = np.asarray(camera.eye) + camera.directions((48, 64))[hit] * depth[hit][:, None]
    assert _distance_to(name, points).max() < 2e-4
    whole = cast([_Unbounded(surface)], camera, (48, 64))  # the window in the picture leaves nothing out
    assert np.array_equal(whole, depth)


class _Unbounded:
    """A surface that hides how small it is."""

    ball = None

    def __init__(self, surface: Surface) -> None:
        self.hit = surface.hit


def test_a_flat_terrain_is_a_plane() -> None:
    camera = Camera((0, 3, 0), horizon=0.4)
    flat = cast([Terrain(lambda x, z: np.zeros_like(x * z), 2, 5000)], camera, (40, 40))
    plane = cast([Plane((0, 1, 0), 0.0)], camera, (40, 40))
    near = plane < 100
    assert near.mean() > 0.4
    assert np.abs(flat[near] / plane[near] - 1).max() < 1e-5
    assert np.isinf(flat[:15]).all()
