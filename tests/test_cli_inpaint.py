"""`rawdiff gen --image --mask`: recipes, pictures made again, batches, and what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rawdiff as package
from rawdiff import Model, images
from tests.cli_run import pixels, rawdiff, write_levels
from tests.reference import hint, silent
from tests.small_models import small_folder
from tests.small_runs import finished

SIZE = (48, 40)
IMAGE = hint(SIZE, 2)
MASK = np.pad(np.ones((24, 24), np.float32), ((8, 16), (8, 8)))
QUICK = ("gen", "-p", "x", "--steps", "3", "--seed", "7")
MASKED = (*QUICK, "--image", "room.png", "--mask", "mask.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=(), inpaint=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return package.load(folder, device="cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A folder to stand in, with an image and masks of its size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(folder))
    write_levels(IMAGE, tmp_path / "room.png")
    write_levels(MASK, tmp_path / "mask.png")
    write_levels(np.flip(MASK, 0), tmp_path / "other.png")
    return tmp_path


def test_a_picture_through_a_mask(here: Path, model: Model) -> None:
    done = rawdiff(*MASKED).ok()
    assert any(line.startswith("40x48, 3 steps of DDIM") for line in done.err.splitlines())
    path = done.lines[0]
    run = finished(model.prepare("x", image="room.png", mask="mask.png", steps=3, seed=7, say=silent))
    assert np.array_equal(np.asarray(run.image()), pixels(path))
    stays = MASK == 0
    assert np.array_equal(pixels(path)[stays], pixels("room.png")[stays])
    read = images.read_recipe(path)
    assert read["made"]["image"] == {"path": "room.png", "mask": "mask.png"}
    told = read["picture"]["image"]
    digest = {name: images.open_source(here / name).sha256 for name in ("room.png", "mask.png")}
    assert (told["sha256"], told["mask"]) == (digest["room.png"], digest["mask.png"])
    assert (told["strength"], told["paste"], told["fit"]) == (1.0, True, None)
    assert "unet_inpaint/config.json" in read["picture"]["weights"]
    assert "unet/config.json" not in read["picture"]["weights"]
    shown = rawdiff("info", path).ok().out
    assert "image     room.png (the same), strength 1" in shown
    assert "mask      mask.png (the same), what stays is pasted back" in shown
    assert "Denoising strength: 1" in Image.open(path).text["parameters"]  # type: ignore[attr-defined]
    told = json.loads(rawdiff("info", path, "--json").ok().out)
    assert told["image"]["mask"] == {"path": "mask.png", "sha256": digest["mask.png"], "now": "the same"}
    assert run.save_image(here / "again.png")
    assert images.read_recipe(here / "again.png")["id"] == read["id"]


def test_made_again_from_its_recipe_and_with_changes(here: Path) -> None:
    done = rawdiff(*MASKED, "--strength", "0.7").ok()
    assert any(line.startswith("40x48, the last 2 of 3 steps of DDIM") for line in done.err.splitlines())
    first = done.lines[0]
    again = rawdiff("gen", "--from", first).ok().lines[0]
    assert images.read_recipe(first) == images.read_recipe(again)
    assert np.array_equal(pixels(first), pixels(again))
    for words, changed in (
        (["--mask", "other.png"], "image.mask"),
        (["--strength", "1"], "image.strength"),
        (["--no-paste"], "image.paste"),
        (["--blend", "--no-paste"], "image.blend, image.paste"),
    ):
        done = rawdiff("gen", "--from", first, *words).ok()
        assert f"not the same as {first} in {changed}" in done.err
        assert not np.array_equal(pixels(first), pixels(done.lines[0]))
    write_levels(hint(SIZE, 9), here / "room.png")
    told = rawdiff("gen", "--from", first)
    assert told.code == 3
    assert "room.png: is not the recipe's image (its SHA-256 must begin with" in told.error
    assert "(changed)" in rawdiff("info", first).ok().out
    (here / "mask.png").unlink()
    told = rawdiff("gen", "--from", first, "--image", "room.png")
    assert told.code == 3
    assert "mask.png: the recipe's mask is not there" in told.error


def test_put_back_after_each_step(here: Path, model: Model) -> None:
    """Another id, made again from its recipe, told by info; a batch knows it too."""
    loose, done = (rawdiff(*MASKED, "--no-paste", *more).ok().lines[0] for more in ((), ("--blend",)))
    assert images.read_recipe(loose)["id"] != images.read_recipe(done)["id"]
    assert "blend" not in images.read_recipe(loose)["picture"]["image"]
    again = rawdiff("gen", "--from", done).ok().lines[0]
    assert np.array_equal(pixels(done), pixels(again))
    options: dict[str, Any] = {"steps": 3, "seed": 7, "paste": False, "blend": True, "say": silent}
    run = finished(model.prepare("x", image="room.png", mask="mask.png", **options))
    assert not run.state.by_hand
    own = run.save_image(here / "own.png")
    assert images.read_recipe(own)["id"] == images.read_recipe(done)["id"]
    assert np.array_equal(pixels(own), pixels(done))
    assert "what stays is put back after each step, and not pasted back" in rawdiff("info", done).ok().out
    assert "mask.png (the same), what stays is not pasted back" in rawdiff("info", loose).ok().out
    off = rawdiff("gen", "--from", done, "--no-blend").ok().lines[0]
    assert np.array_equal(pixels(off), pixels(loose))
    plain = small_folder(here / "plain", nets=())  # whose UNet has it put back in any case
    other = rawdiff("gen", "--from", done, "--model", plain).ok()
    assert "image.blend" in other.err
    direct = rawdiff(*MASKED, "--no-paste", "--model", plain).ok().lines[0]
    assert np.array_equal(pixels(other.lines[0]), pixels(direct))
    said = rawdiff(*MASKED, "--no-blend", "--model", plain)
    assert (said.code, "blend: the model has no inpainting UNet" in said.error) == (2, True)
    line = {"prompt": "x", "steps": 3, "seed": 7, "image": "room.png", "mask": "mask.png", "paste": False}
    Path("list.jsonl").write_text(json.dumps({**line, "blend": True}) + "\n")
    drawn = rawdiff("batch", "list.jsonl", "--out", "drawn").ok().lines[0]
    assert np.array_equal(pixels(drawn), pixels(done))
    [plan] = rawdiff(*MASKED, "--no-paste", "--blend", "--dry-run", "--json").ok().lines
    assert json.loads(plan)["id"] == images.read_recipe(done)["id"]


def test_a_picture_from_words_gets_an_image_and_a_mask_afterwards(here: Path) -> None:
    first = rawdiff(*QUICK, "--size", "40x48").ok().lines[0]
    done = rawdiff("gen", "--from", first, "--image", "room.png", "--mask", "mask.png").ok()
    direct = rawdiff(*MASKED).ok()
    assert np.array_equal(pixels(done.lines[0]), pixels(direct.lines[0]))


def test_a_dry_run_tells_the_plan(here: Path) -> None:
    done = rawdiff(*MASKED, "--dry-run").ok()
    assert "image from room.png, strength 1" in done.lines
    assert "mask from mask.png, what stays is pasted back" in done.lines
    blended = rawdiff(*MASKED, "--no-paste", "--blend", "--dry-run").ok().lines
    assert "mask from mask.png, what stays is put back after each step, and not pasted back" in blended
    loose = rawdiff(*MASKED, "--no-paste", "--dry-run").ok().lines
    assert "mask from mask.png, what stays is not pasted back" in loose
    assert not (here / "output_images").exists()
    [line] = rawdiff(*MASKED, "--dry-run", "--json").ok().lines
    drawn = rawdiff(*MASKED).ok().lines[0]
    assert json.loads(line)["id"] == images.read_recipe(drawn)["id"]


@pytest.mark.parametrize(
    ("words", "pasted"),
    [([], "pasted back"), (["--no-paste"], "not pasted back"), (["--blend"], "pasted back")],
)
def test_without_an_inpainting_unet_what_stays_is_put_back_and_a_plan_says_so(
    here: Path, words: list[str], pasted: str
) -> None:
    """A recipe does not tell what UNet it was, and `info` says nothing of the steps that might be wrong."""
    plain = small_folder(here / "plain", nets=())
    planned = rawdiff(*MASKED, *words, "--model", plain, "--dry-run").ok().lines
    assert f"mask from mask.png, what stays is put back after each step, and {pasted}" in planned
    drawn = rawdiff(*MASKED, *words, "--model", plain).ok().lines[0]
    assert f"mask.png (the same), what stays is {pasted}\n" in rawdiff("info", drawn).ok().out


def test_several_pictures_each_as_alone(here: Path) -> None:
    """What a run begins from is drawn with its own seed."""
    words = (*MASKED, "--strength", "0.7")
    several = rawdiff(*words, "--count", "3", "--out", "several").ok().lines
    for seed, path in zip((7, 8, 9), several, strict=True):
        alone = rawdiff(*words, "--seed", str(seed), "--out", f"{seed}.png").ok().lines[0]
        assert np.array_equal(pixels(path), pixels(alone))
    together = rawdiff(*words, "--count", "3", "--batch", "3", "--out", "together").ok().lines
    for one, other in zip(several, together, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1


def test_a_batch_line(here: Path) -> None:
    line = {"prompt": "x", "steps": 3, "seed": 7, "image": "room.png", "mask": "mask.png", "strength": 0.7}
    Path("list.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "paste": False}) + "\n")
    done = rawdiff("batch", "list.jsonl", "--out", "drawn").ok()
    alone = rawdiff(*MASKED, "--strength", "0.7").ok()
    assert np.array_equal(pixels(done.lines[0]), pixels(alone.lines[0]))
    assert not np.array_equal(pixels(done.lines[0]), pixels(done.lines[1]))
    assert "0 drawn, 2 already there" in rawdiff("batch", "list.jsonl", "--out", "drawn").ok().err


def test_paths_of_a_batch_are_the_manifests(here: Path) -> None:
    inside = {"prompt": "x", "steps": 3, "image": "room.png", "mask": "mask.png"}
    (here / "set").mkdir()
    for name in ("room.png", "mask.png"):
        (here / name).rename(here / "set" / name)
    manifest = here / "set" / "list.jsonl"
    manifest.write_text(json.dumps(inside) + "\n")
    assert len(rawdiff("batch", manifest, "--out", "drawn").ok().lines) == 1
    manifest.write_text(json.dumps({**inside, "mask": "../mask.png"}) + "\n")
    told = rawdiff("batch", manifest, "--out", "drawn")
    assert (told.code, "leads out of the manifest's folder" in told.error) == (3, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--mask", "mask.png"], 2, "mask: there is no image for it"),
        (["--strength", "0.5"], 2, "strength: there is no image for it"),
        (["--image", "room.png", "--strength", "0"], 2, "strength 0.0: expected a number above 0"),
        (["--image", "room.png", "--strength", "0.2"], 2, "strength 0.2: leaves none of 3 steps"),
        (["--image", "room.png", "--no-paste"], 2, "paste: there is no mask"),
        (["--image", ""], 2, "image '': expected the path of a picture"),
        (["--image", "nowhere.png"], 3, "nowhere.png"),
        (["--image", "room.png", "--mask", "small.png"], 3, "the mask is 40x40 and the image 40x48"),
        (["--image", "room.png", "--mask", "black.png"], 3, "black.png: the mask is white nowhere"),
        (
            ["--image", "room.png", "--size", "64x64"],
            3,
            "room.png: the image of 40x48 has another aspect than the picture's 64x64",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(here: Path, words: list[str], code: int, said: str) -> None:
    write_levels(MASK[:40], here / "small.png")
    write_levels(MASK * 0, here / "black.png")
    told = rawdiff(*QUICK, *words)
    assert told.code == code
    assert said in told.error
