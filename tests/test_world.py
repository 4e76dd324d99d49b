"""The embedded model's world: what it draws, what it says of it, and the metrics that read it back."""

from __future__ import annotations

import math
import random
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.embedded import bank, data, metrics
from scripts.embedded.bank import load_bank
from scripts.embedded.captions import SHAPE_WORDS, caption, captions
from scripts.embedded.data import mirror
from scripts.embedded.palette import COLOURS, FLOORS, SHAPES, SKIES, oklab
from scripts.embedded.text import load_tokenizer, token_ids
from scripts.embedded.twins import Exchanged, difference, exchanged
from scripts.embedded.words import answers
from scripts.embedded.world import MAX_OBJECTS, Renders, Scenes, render, sample_scenes

NATIVE = (128, 128)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(40, 4242)


@pytest.fixture(scope="module")
def true(scenes: Scenes) -> Renders:
    parts = [render(scenes[b : b + 1], NATIVE) for b in range(len(scenes))]  # small parts stay in the cache
    return Renders(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Renders)))


def one_sphere(scenes: Scenes) -> Scenes:
    """Scene 0 with a single sphere in the middle, seen from its own height."""
    scene = scenes[:1]
    scene.kind = torch.tensor([[SHAPES.index("sphere"), -1, -1]])
    scene.centre = torch.tensor([[[0.0, 5.0], [0.0, 0.0], [0.0, 0.0]]])
    scene.radius = torch.full((1, 3), 0.8)
    scene.height = torch.full((1, 3), 1.6)
    scene.eye, scene.horizon, scene.focal = torch.tensor([0.8]), torch.tensor([0.5]), torch.tensor([1.0])
    return scene


def test_the_same_seed_gives_the_same_scenes_and_another_gives_others() -> None:
    first, again, other = sample_scenes(5, 1), sample_scenes(5, 1), sample_scenes(5, 2)
    assert torch.equal(first.centre, again.centre)
    assert torch.equal(render(first, (64, 64)).picture, render(again, (64, 64)).picture)
    assert not torch.equal(first.centre, other.centre)


def test_the_depth_of_a_sphere_is_exact(scenes: Scenes) -> None:
    side = 129  # a ray through the very middle
    made = render(one_sphere(scenes), (side, side), supersample=1)
    middle = side // 2
    assert int(made.ids[0, middle, middle]) == 0
    near, floor = made.disparity[0, 0, middle, middle], made.disparity[0, 0, -1, middle]
    eye, focal = 0.8, float(side)
    floor_z = eye * focal / (side - 0.5 - side / 2)
    assert float(near / floor) == pytest.approx(floor_z / (5.0 - 0.8), rel=1e-4)
    normal = made.normal[0, :, middle, middle] * 2 - 1
    assert torch.allclose(normal, torch.tensor([0.0, 0.0, 1.0]), atol=1e-2)
    width = int((made.ids[0, middle] == 0).sum())
    assert width == pytest.approx(2 * focal * 0.8 / math.sqrt(5.0**2 - 0.8**2), abs=2)


def test_sky_is_zero_and_the_nearest_point_is_one(true) -> None:
    sky = true.ids == MAX_OBJECTS + 1
    assert (true.disparity[:, 0][sky] == 0).all()
    assert torch.allclose(true.disparity.amax((1, 2, 3)), torch.ones(40))
    assert (true.disparity[:, 0][~sky] > 0).all()


def test_a_batch_draws_what_each_scene_draws_alone(scenes: Scenes, true) -> None:
    alone = render(scenes[7:8], NATIVE)
    assert torch.allclose(alone.picture[0], true.picture[7], atol=1e-5)


@pytest.mark.parametrize("size", [(56, 128), (144, 96), (96, 144)])
def test_objects_are_well_seen_in_pictures_of_any_shape(size: tuple[int, int]) -> None:
    wide = sample_scenes(12, 9, size)
    ids = render(wide, size, supersample=1).ids
    for b in range(12):
        for k in range(MAX_OBJECTS):
            if wide.kind[b, k] >= 0:
                seen = (ids[b] == k).nonzero()
                edge = (seen[:, 1] == 0) | (seen[:, 1] == size[1] - 1)
                assert len(seen) >= 20
                assert float(edge.float().mean()) < 0.05  # a rim may touch the edge, no more


def test_captions_name_the_objects_from_left_to_right_and_no_other_colour(scenes: Scenes, true) -> None:
    for b, text in enumerate(captions(scenes, 5)):
        there = scenes.kind[b] >= 0
        named = [word for word in re.findall(r"[a-z]+", text) if word in COLOURS]
        assert named == [COLOURS[int(c)] for c in scenes.colour[b][there]]
        words = "|".join(w for ws in SHAPE_WORDS.values() for w in ws)
        shapes = re.findall(words, text)
        assert [s in SHAPE_WORDS[SHAPES[int(k)]] for s, k in zip(shapes, scenes.kind[b][there], strict=True)]
        columns = [(true.ids[b] == k).nonzero()[:, 1].float().mean() for k in range(int(there.sum()))]
        assert columns == sorted(columns)


def test_a_mirrored_scene_is_captioned_as_the_mirror_shows_it(scenes: Scenes) -> None:
    turned = mirror(scenes)
    for b in range(len(scenes)):
        text, other = caption(scenes, b, random.Random(3)), caption(turned, b, random.Random(3))
        colours = [w for w in re.findall(r"[a-z]+", text) if w in COLOURS]
        assert [w for w in re.findall(r"[a-z]+", other) if w in COLOURS] == colours[::-1]


def test_every_metric_is_all_but_perfect_on_true_renders(scenes: Scenes, true) -> None:
    reading = metrics.read_colours(true.picture)
    right, counted = metrics.score_colours(reading, scenes, true.ids)
    sky, floor = metrics.score_surroundings(true.picture, scenes, true.ids)
    assert right / counted >= 0.99
    assert metrics.score_silhouette(reading, true.ids).mean() >= 0.97
    assert metrics.score_exact_colours(reading, scenes).float().mean() >= 0.99
    assert (sky & floor).float().mean() >= 0.99


def test_metrics_fall_when_the_pictures_are_of_other_scenes(scenes: Scenes, true) -> None:
    others = true.picture.roll(1, 0)
    reading = metrics.read_colours(others)
    right, counted = metrics.score_colours(reading, scenes, true.ids)
    sky, floor = metrics.score_surroundings(others, scenes, true.ids)
    assert right / counted < 0.3
    assert metrics.score_silhouette(reading, true.ids).mean() < 0.5
    assert metrics.score_exact_colours(reading, scenes).float().mean() < 0.3
    assert (sky & floor).float().mean() < 0.4


def test_oklab_of_white_and_red() -> None:
    lab = oklab(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    assert torch.allclose(lab[0], torch.tensor([1.0, 0.0, 0.0]), atol=1e-3)
    assert torch.allclose(lab[1], torch.tensor([0.628, 0.225, 0.126]), atol=1e-3)


def test_every_floor_and_sky_occurs(scenes: Scenes) -> None:
    assert set(scenes.floor.tolist()) == set(range(len(FLOORS)))
    assert set(scenes.sky.tolist()) == set(range(len(SKIES)))


def test_answers_say_what_a_scene_holds() -> None:
    scenes = sample_scenes(40, 5, (128, 128))
    true = answers(scenes)
    for b in range(len(scenes)):
        held = [(int(k), int(c)) for k, c in zip(scenes.kind[b], scenes.colour[b], strict=True) if k >= 0]
        kinds = [k for k in true["kind"][b].tolist() if k < len(SHAPES)]
        colours = [c for c in true["colour"][b].tolist() if c < len(COLOURS)]
        assert list(zip(kinds, colours, strict=True)) == held
        for shape in range(len(SHAPES)):
            asked = {c for k, c in held if k == shape}
            places = {place for place, (k, _) in enumerate(held) if k == shape}
            row = true["shape"][b, shape]
            assert set(row[: len(COLOURS)].nonzero()[:, 0].tolist()) == asked
            assert set(row[len(COLOURS) :].nonzero()[:, 0].tolist()) == places
    assert true["shape"].sum() > 0


def test_exchanged_scenes_differ_in_their_cubes_and_cylinders(scenes: Scenes, true: Renders) -> None:
    other = exchanged(scenes)
    cube, cylinder = SHAPES.index("cube"), SHAPES.index("cylinder")
    assert torch.equal(other.kind == cube, scenes.kind == cylinder)
    assert torch.equal(other.kind == cylinder, scenes.kind == cube)
    for b in range(len(scenes)):
        changed = ((scenes.kind[b] == cube) | (scenes.kind[b] == cylinder)).nonzero().flatten()
        found = render(other[b : b + 1], NATIVE)
        for k in range(MAX_OBJECTS):
            same = torch.equal(found.ids == k, true.ids[b : b + 1] == k)
            if scenes.kind[b, k] >= 0 and not len(changed):
                assert same
            if k in changed:
                assert not same
    twice = exchanged(other).kind
    assert torch.equal(twice, scenes.kind)


def test_captions_of_exchanged_scenes_name_their_shapes(scenes: Scenes) -> None:
    tokenizer = load_tokenizer()
    texts = captions(scenes, 7)
    tokens = token_ids(tokenizer, texts)
    told, differs = Exchanged(tokenizer)(tokens, torch.full((len(tokens),), 600))
    for b, text in enumerate(texts):
        words = re.findall(r"[a-z]+", tokenizer.decode(told[b], skip_special_tokens=True))
        kinds = [name for word in words for name, own in SHAPE_WORDS.items() if word in own]
        other = exchanged(scenes[b : b + 1])
        assert kinds == [SHAPES[int(k)] for k in other.kind[0] if k >= 0]
        assert bool(differs[b]) == any(word in text for word in ("cube", "box", "cylinder", "drum"))
    assert not Exchanged(tokenizer)(tokens, torch.full((len(tokens),), 990))[1].any()


def test_twins_of_other_scenes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = {
        "one": sample_scenes(6, 1),
        "twins": exchanged(sample_scenes(6, 1)),
        "others": sample_scenes(7, 1),
    }

    def opened(name: str) -> dict[str, Any]:
        return {
            "scenes": held[name],
            "ids": torch.zeros(6, 128, 128),
            "disparity": torch.zeros(6, 1, 128, 128),
        }

    monkeypatch.setattr(data, "load_bank", opened)
    monkeypatch.setattr(data, "_latents", lambda name, *rest: torch.zeros(len(held[name]), 2, 4, 16, 16))
    plan, given = [("one", 1.0, 2)], (torch.nn.Identity(), None, torch.device("cpu"), 0)
    for name, exchange in (("twins", True), ("one", False)):
        assert data.Batches(plan, *given, twins=name, exchange=exchange).banks[0].twins is not None
    for name, exchange in (("others", False), ("others", True), ("twins", False), ("one", True)):
        with pytest.raises(SystemExit, match=f"{name}: other scenes than those it is paired with"):
            data.Batches(plan, *given, twins=name, exchange=exchange)
    monkeypatch.setenv("RAWDIFF_TRAINING", str(tmp_path))
    with pytest.raises(SystemExit, match=r"none\.pt: no such bank"):
        load_bank("none")


@pytest.mark.parametrize("size", ["64", "130x128", "0x0"])
def test_a_bank_of_no_size_is_refused(
    size: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bank", "name", "--size", size])
    with pytest.raises(SystemExit, match="2"):
        bank.main()
    assert "error: size" in capsys.readouterr().err


def test_twins_differ_in_v_by_what_their_noise_says() -> None:
    g = torch.Generator().manual_seed(3)
    x0, twin, x = (torch.randn(2, 4, 3, 3, generator=g, dtype=torch.float64) for _ in range(3))
    a = torch.tensor([0.9, 0.05], dtype=torch.float64).view(-1, 1, 1, 1)
    v = [a.sqrt() * (x - a.sqrt() * own) / (1 - a).sqrt() - (1 - a).sqrt() * own for own in (x0, twin)]
    assert torch.allclose(difference(x0, twin, a), v[1] - v[0])
