"""`--size-ids`: what SDXL is told of sizes, in words; recipes, batches, what changes it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rawdiff import SizeIds, images
from rawdiff.errors import UsageError
from rawdiff.jobs.words import parse_size_ids
from tests.cli_run import pixels, rawdiff
from tests.reference import load, silent
from tests.small_models import small_folder
from tests.small_sdxl import small_sdxl

SAID = (
    "error: size ids 'original=0x0': expected original=WIDTHxHEIGHT, target=WIDTHxHEIGHT and crop=LEFT,TOP once each, "
    "with negative- before it for what guidance leads away from, or none"
)
QUICK = ("gen", "-p", "a red cube", "--steps", "2", "--size", "48x64", "--seed", "3")
TEXT = "original=768x512 crop=40,16 negative-target=128x100"
IDS = SizeIds(original=(512, 768), crop=(16, 40), negative=SizeIds(target=(100, 128)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sdxl(tmp_path_factory.mktemp("model") / "sdxl")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(folder))
    return tmp_path


def test_words_are_read_as_from_python(here: Path, folder: Path) -> None:
    path = rawdiff(*QUICK, "--size-ids", TEXT).ok().lines[0]
    run = load(folder).prepare("a red cube", steps=2, size=(64, 48), seed=3, size_ids=IDS, say=silent)
    list(run)
    assert np.array_equal(pixels(path), np.asarray(run.image()))
    assert images.read_recipe(path)["picture"]["size_ids"] == IDS.describe()
    plain = rawdiff(*QUICK).ok().lines[0]
    assert not np.array_equal(pixels(plain), pixels(path))
    for none in ("none", "crop=0,0", "negative-crop=0,0"):
        [line] = rawdiff(*QUICK, "--size-ids", none, "--dry-run", "--json").ok().lines
        assert json.loads(line)["id"] == images.read_recipe(plain)["id"]


def test_a_recipe_keeps_them_until_others_are_given(here: Path) -> None:
    first = rawdiff(*QUICK, "--size-ids", TEXT).ok().lines[0]
    again = rawdiff("gen", "--from", first).ok().lines[0]
    assert np.array_equal(pixels(first), pixels(again))
    done = rawdiff("gen", "--from", first, "--size-ids", "none").ok()
    assert f"not the same as {first} in size_ids" in done.err
    assert images.read_recipe(done.lines[0])["id"] == images.read_recipe(rawdiff(*QUICK).ok().lines[0])["id"]
    sd1 = small_folder(here / "sd1", nets=())
    other = rawdiff("gen", "--from", first, "--model", sd1).ok().lines[0]
    assert "size_ids" not in images.read_recipe(other)["picture"]


def test_a_line_of_a_batch(here: Path) -> None:
    line = {"prompt": "a red cube", "size": "48x64", "steps": 2, "seed": 3, "size-ids": TEXT}
    (here / "m.jsonl").write_text(json.dumps(line))
    [drawn] = rawdiff("batch", "m.jsonl", "--out", "b").ok().lines
    [own] = rawdiff(*QUICK, "--size-ids", TEXT).ok().lines
    assert images.read_recipe(drawn)["id"] == images.read_recipe(own)["id"]


@pytest.mark.parametrize(
    "text",
    [
        "768x512",
        "original=768",
        "crop=1x2",
        "crop=-1,0",
        "crop=0,0 crop=0,0",
        "original=1x1,crop=0,0",
        "none x",
        "",
        " ",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^size ids .*: expected original=WIDTHxHEIGHT"):
        parse_size_ids(text)


def test_refused(here: Path) -> None:
    said = rawdiff(*QUICK, "--size-ids", "original=0x0", "--dry-run")
    assert (said.code, said.error) == (2, SAID)
    sd1 = small_folder(here / "sd1", nets=())
    said = rawdiff(*QUICK, "--size-ids", TEXT, "--model", sd1, "--dry-run")
    assert said.code == 2
    assert "this model is told no sizes, only SDXL is" in said.error
    rawdiff(*QUICK, "--size-ids", "none", "--model", sd1, "--dry-run").ok()
