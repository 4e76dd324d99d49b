"""`rawdiff gen --from`: the recorded sampler, maps, model and nets, or a refusal; nothing else in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from rawdiff import images, load
from rawdiff.arguments import describe_scheduler
from rawdiff.errors import InputError, UsageError
from rawdiff.images import hints
from rawdiff.jobs import remake as remakes
from rawdiff.jobs.recorded import recorded_scheduler
from rawdiff.jobs.request import ControlRequest, Request
from rawdiff.jobs.words import request_from_words
from rawdiff.study.sampler import find_sampler
from rawdiff.weights.schedulers import known_names, scheduler_from_name
from tests.cli_run import depth_map, pixels, rawdiff
from tests.reference import silent
from tests.small_models import small_folder

QUICK = ("gen", "-p", "x", "--steps", "2", "--size", "64x64", "--seed", "3")
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", "")  # as if it were not set
    small_folder(tmp_path / "own", nets=("depth",))
    return tmp_path


def defaults(folder: Path, **changes: Any) -> None:
    path = folder / "rawdiff.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_sampler_is_the_recorded_one_whatever_the_folder_names_now(here: Path) -> None:
    first = rawdiff(*QUICK, "--model", "own").ok()
    defaults(here / "own", sampler="euler a")
    other = rawdiff(*QUICK, "--model", "own").ok()
    again = rawdiff("gen", "--from", first.lines[0]).ok()
    assert not np.array_equal(pixels(first.lines[0]), pixels(other.lines[0]))  # it would have mattered
    run = load("own", device="cpu").prepare("x", steps=2, size=(64, 64), say=silent)
    found = find_sampler("default", "own", steps=2, say=silent)
    assert run.sampler.name == found.name == "euler a"  # the same choice behind every door
    assert np.array_equal(pixels(first.lines[0]), pixels(again.lines[0]))
    assert images.read_recipe(first.lines[0]) == images.read_recipe(again.lines[0])
    chosen = rawdiff("gen", "--from", first.lines[0], "--sampler", "euler a").ok()
    assert np.array_equal(pixels(other.lines[0]), pixels(chosen.lines[0]))
    assert "sampler.class, " in chosen.err


@pytest.mark.parametrize("name", known_names()[::5])
def test_a_sampler_is_built_again_from_its_class_and_every_setting(name: str) -> None:
    base = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    held = json.loads(json.dumps(describe_scheduler(scheduler_from_name(name, base))))
    rebuilt = recorded_scheduler(held, None)
    assert describe_scheduler(rebuilt) == held
    assert type(rebuilt) is getattr(diffusers, held["class"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class": "os.system"}, "none that rawdiff knows"),
        ({"config": {"num_train_timesteps": 10**12}}, "num_train_timesteps 1000000000000"),
        ({"config": {"no_such_setting": 1}}, "has no setting 'no_such_setting'"),
    ],
)
def test_a_sampler_that_cannot_be_built_is_refused(change: dict[str, Any], words: str) -> None:
    held = describe_scheduler(scheduler_from_name("ddim", {}))
    with pytest.raises(InputError, match=words):
        recorded_scheduler({**held, **change}, None)


def test_what_no_option_asked_for_is_refused_in_full(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rawdiff(*QUICK, "--model", "own").ok()
    open_remake = remakes.open_remake

    def later(path: Path) -> Any:
        """As if a later diffusers had settings more, and this one other values."""
        again = open_remake(path)
        config = {"beta_start": 0.5, "set_alpha_to_one": True, "steps_offset": 3}
        again.recipe["picture"]["sampler"]["config"].update(config)
        monkeypatch.setattr("rawdiff.jobs.planner.recorded_scheduler", lambda held, own: own)
        return again

    monkeypatch.setattr("rawdiff.jobs.generate.open_remake", later)
    done = rawdiff("gen", "--from", first.lines[0], "--guidance", "3")
    assert (done.code, done.out) == (3, "")
    names = "sampler.config.beta_start, sampler.config.set_alpha_to_one, sampler.config.steps_offset, and"
    assert f"would become another picture, in {names} no option asked for that" in done.error
    rawdiff("gen", "--from", first.lines[0], "--sampler", "ddim").ok()


def test_hints_of_another_version_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth_map(here / "d.png", (64, 64))
    mapped = rawdiff(*QUICK, "--model", "own", "--depth", "d.png").ok()
    assert images.read_recipe(mapped.lines[0])["picture"]["hints"] == images.HINTS_VERSION
    monkeypatch.setattr(remakes, "HINTS_VERSION", 2)
    assert "was made with hints of version 1" in rawdiff("gen", "--from", mapped.lines[0]).error


def test_what_makes_hints_is_of_their_version() -> None:
    # Change any of these, or how a hint is computed from them, and HINTS_VERSION is to be counted up.
    assert (images.HINTS_VERSION, hints.CANNY_THRESHOLDS, hints.FOCAL) == (1, (100.0, 200.0), 1.1)


# ---- one map replaced


def test_a_replaced_depth_map_is_also_what_hints_are_made_from() -> None:
    old = {"path": "a.png", "sha256": DIGEST}
    canny = ControlRequest("canny", "photo.png", 1.0, 0.0, 1.0, True, DIGEST[::-1])
    depth = ControlRequest("depth", weight=0.8, start=0.0, end=0.6, derive=False, **old)
    normal = ControlRequest("normal", weight=0.5, start=0.0, end=1.0, derive=True, **old)
    merged = Request("x", controls=(canny, depth, normal)).merged(request_from_words({"depth": "b.png"}))
    assert merged.controls is not None
    assert [c.kind for c in merged.controls] == ["canny", "depth", "normal"]  # order kept
    assert [c.path for c in merged.controls] == ["photo.png", "b.png", "b.png"]
    assert [c.sha256 for c in merged.controls] == [DIGEST[::-1], None, None]
    assert [c.window[0] for c in merged.controls] == [1.0, 0.8, 0.5]
    more = Request("x", controls=(depth, normal)).merged(request_from_words({"canny": "c.png"}))
    assert [c.path for c in more.controls or ()] == ["a.png", "a.png", "c.png"]
    with pytest.raises(UsageError, match="normal: was made from a depth map that 2 others replace"):
        Request("x", controls=(depth, normal)).merged(
            request_from_words({"control": ["depth=b.png", "depth=c.png"]})
        )


def test_the_last_map_takes_with_it_how_maps_are_used() -> None:
    depth = ControlRequest("depth", "a.png", 0.8, 0.0, 0.6, False, DIGEST)
    base = Request("x", controls=(depth,), fit="crop", guess=True, depth_range="auto", depth_invert=True)
    bare = base.merged(request_from_words({"control": ["none"]})).check()
    assert (bare.fit, bare.guess, bare.depth_range, bare.depth_invert) == (None, None, None, None)
    with pytest.raises(UsageError, match="fit: there is no map for it"):
        base.merged(request_from_words({"control": ["none"], "fit": "pad"})).check()


def test_a_map_that_cannot_be_read_does_not_hide_the_one_beside_the_picture(here: Path) -> None:
    depth_map(here / "d.png", (64, 64))
    first = rawdiff(*QUICK, "--model", "own", "--depth", "d.png", "-o", "sub/p.png").ok()
    (here / "d.png").rename(here / "sub" / "d.png")
    (here / "d.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    rawdiff("gen", "--from", first.lines[0]).ok()
    (here / "sub" / "d.png").unlink()
    assert "d.png: is not the recipe's depth map" in rawdiff("gen", "--from", first.lines[0]).error


# ---- folders


def test_a_model_folder_is_never_looked_for_on_a_hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "models").mkdir()
    (here / "own").rename(here / "models" / "own")  # "models/own" might be a hub's OWNER/NAME
    depth_map(here / "d.png", (64, 64))
    net = ("--net", "depth=models/own/controlnet_depth")
    words = ("--model", "models/own", *net, "--depth", "d.png")
    path = here / rawdiff(*QUICK, *words, "-o", "p.png").ok().lines[0]
    made = images.read_recipe(path)["made"]
    assert made["model"]["kind"] == "folder"
    assert made["nets"] == [{"name": "models/own/controlnet_depth", "kind": "folder"}]
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    beside = rawdiff("gen", "--from", path, "-o", "q.png").ok()
    assert np.array_equal(pixels(path), pixels(beside.lines[0]))
    (here / "models" / "own").rename(here / "gone")
    missing = rawdiff("gen", "--from", path)
    assert missing.code == 4
    assert "its model is a folder, models/own, and it is neither here nor beside the picture" in missing.error
    assert "--model FOLDER" in missing.error
    lost = rawdiff("gen", "--from", path, "--model", here / "gone")
    assert lost.code == 0  # with a model of one's own its nets count
