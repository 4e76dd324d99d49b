"""Recipes: canonical JSON and ids, reading back what may be hostile, the line for other programs; requests."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawdiff import images, recipe
from rawdiff.errors import InputError, UsageError
from rawdiff.jobs.request import ControlRequest, Request
from rawdiff.jobs.words import parse_control, parse_numbers, request_from_words

DIGEST = "0123456789abcdef" * 4
PICTURE: dict[str, Any] = {
    "prompt": "a red cube on grass",
    "negative": "blurry",
    "size": [512, 768],
    "seed": 7,
    "guidance": 4.0,
    "rescale": 0.5,
    "clip_skip": 1,
    "guess": False,
    "sampler": {
        "class": "DDIMScheduler",
        "config": {"beta_start": 0.00085, "trained_betas": None, "clip_sample": False},
        "steps": 20,
        "timesteps": None,
        "sigmas": None,
        "eta": 0.25,
    },
    "controls": [
        {
            "kind": "depth",
            "sha256": DIGEST,
            "derive": False,
            "weight": 0.8,
            "start": 0.0,
            "end": 0.6,
            "fit": "crop",
            "depth_range": [500.0, 8000.0],
            "depth_invert": True,
            "weights": {"config.json": DIGEST},
        }
    ],
    "weights": {"unet/diffusion_pytorch_model.safetensors": DIGEST, "unet/config.json": DIGEST[::-1]},
    "noise": 1,
    "hints": 1,
    "dtype": "float32",
}
MADE: dict[str, Any] = {
    "rawdiff": "0.1.0",
    "torch": "2.13.0",
    "diffusers": "0.42.1",
    "transformers": "5.23.0",
    "model": {"name": "embedded", "kind": "embedded", "revision": None},
    "sampler": None,
    "inputs": ["maps/room.png"],
    "nets": [{"name": "nets/depth", "kind": "folder"}],
    "device": "cpu",
    "threads": 2,
    "batch": [0, 1],
    "pixels": DIGEST,
}

WHOLE: dict[str, Any] = {
    **PICTURE,
    "loras": [
        {"sha256": DIGEST, "config": None, "scale": 0.8},
        {"sha256": DIGEST[::-1], "config": DIGEST, "scale": -1.0},
    ],
    "embeddings": [{"sha256": DIGEST, "trigger": "<zorb>"}],
    "repeats": ["kv"],
}
"""With all that a picture has only where it was asked for."""
WHOLE_MADE = {**MADE, "loras": ["paper", "my loras/a, b.safetensors"], "embeddings": ["words/zorb.pt"]}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value that holds no other."""
    if isinstance(value, dict):
        return [way for key, inner in value.items() for way in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [way for k, inner in enumerate(value) for way in leaves(inner, (*path, k))]
    return [path]


def changed(value: Any, way: tuple[Any, ...], to: Any) -> Any:
    """A copy of `value` with one value replaced."""
    whole = copy.deepcopy(value)
    place = whole
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = to
    return whole


def other(value: Any) -> Any:
    """A value of the same type that is another."""
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, (int, float)) else f"{value}x"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_canonical_json_is_one_and_survives_reading(value: Any) -> None:
    data = recipe.canonical(value)
    assert recipe.canonical(json.loads(data)) == data
    assert data.isascii()


def test_canonical_json_forgets_order_and_how_a_whole_number_is_written() -> None:
    assert recipe.canonical({"b": 4.0, "a": (1, 2.5)}) == b'{"a":[1,2.5],"b":4}'
    assert recipe.canonical({"a": [1.0, 2.5], "b": 4}) == b'{"a":[1,2.5],"b":4}'
    assert recipe.canonical("é\ud800") == rb'"\u00e9\ud800"'


@pytest.mark.parametrize("value", [math.nan, math.inf, object()])
def test_canonical_json_refuses_what_json_has_not(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        recipe.canonical({"x": value})


IMAGE: dict[str, Any] = {"sha256": DIGEST, "mask": DIGEST[::-1], "strength": 0.7, "paste": True, "fit": None}


def with_image(**changes: Any) -> dict[str, Any]:
    names = {"path": "room.png", "mask": "mask.png"}
    return recipe.build({**PICTURE, "image": {**IMAGE, **changes}}, {**MADE, "image": names})


@pytest.mark.parametrize("key", IMAGE)
def test_an_image_decides_and_is_checked(key: str) -> None:
    built = with_image()
    assert recipe.check(built, "a.png") == built
    value = "crop" if key == "fit" else other(IMAGE[key])
    assert (
        len({found["id"] for found in (built, with_image(**{key: value}), recipe.build(PICTURE, MADE))}) == 3
    )
    with pytest.raises(InputError, match=r"picture\.image is"):
        recipe.check(with_image(**{key: [1]}), "a.png")
    for bad in (
        with_image(mask=None),
        recipe.build(built["picture"], MADE),
        recipe.build(PICTURE, built["made"]),
    ):
        with pytest.raises(InputError, match="an image or a mask without a name, or a name without one"):
            recipe.check(bad, "a.png")


def test_the_id_is_golden() -> None:
    # Pictures drawn by an older rawdiff are told by this: it changes only with FORMAT.
    assert recipe.job_id(PICTURE) == "20b798ebe7f81434e4118022f3ed951c7f08134fb629755eb34fef94a7d09a55"


@pytest.mark.parametrize("way", leaves(WHOLE), ids=lambda way: ".".join(map(str, way)))
def test_everything_that_decides_changes_the_id(way: tuple[Any, ...]) -> None:
    value: Any = WHOLE
    for key in way:
        value = value[key]
    assert recipe.job_id(changed(WHOLE, way, other(value))) != recipe.job_id(WHOLE)
    [name] = recipe.differences(WHOLE, changed(WHOLE, way, other(value)))
    assert name.replace("[", ".").replace("]", "").split(".")[0] == way[0]


def test_versions_paths_and_devices_do_not_decide() -> None:
    elsewhere = {**MADE, "torch": "3", "device": "cuda", "inputs": ["/other/room.png"], "rawdiff": "9"}
    assert recipe.build(PICTURE, MADE)["id"] == recipe.build(PICTURE, elsewhere)["id"]


def test_a_recipe_is_read_back_from_a_picture_whatever_its_pixels(tmp_path: Path) -> None:
    built = recipe.build(PICTURE, MADE)
    path = images.write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8), built, "x")
    assert recipe.read(path) == built
    assert recipe.read(path)["id"] == recipe.job_id(json.loads(json.dumps(PICTURE)))


@pytest.mark.parametrize("part", ["picture", "made"])
def test_a_recipe_with_a_value_of_another_type_is_refused_by_name(part: str) -> None:
    built = recipe.build(WHOLE, WHOLE_MADE)
    for way in leaves(built[part]):
        if part == "picture" and way[:2] == ("sampler", "config"):
            continue  # plain values of any type
        for wrong in ({"a": 1}, "\ud800" if way[-1] in ("weight", "seed", "threads") else [[[]]]):
            bad = changed(built, (part, *way), wrong)
            bad["id"] = recipe.job_id(bad["picture"])
            with pytest.raises(InputError, match=r"a\.png: its recipe is no recipe") as caught:
                recipe.check(bad, "a.png")
            assert str(way[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("picture"), "holds no recipe of a picture"),
        (lambda r: r.update(format=2), "recipe of format 2, expected 1"),
        (lambda r: r.update(format=True), "recipe of format True, expected 1"),
        (lambda r: r["picture"].update(seed=8), "its recipe was changed"),
        (lambda r: r["picture"].update(colour="red"), "picture has an unknown 'colour'"),
        (lambda r: r["picture"].pop("seed"), "picture has no 'seed'"),
        (lambda r: r["made"].update(inputs=[]), "0 inputs for 1 maps"),
        (lambda r: r.update(made=None), "made is a NoneType"),
        (lambda r: r["picture"].update(loras=[]), r"picture.loras is '\[\]'"),
        (lambda r: r["picture"]["loras"].pop(), "2 names of loras for 1 of them"),
        (lambda r: r["made"].pop("embeddings"), "0 names of embeddings for 1 of them"),
        (lambda r: r["picture"]["loras"][0].pop("config"), r"picture.loras\[0\] has no 'config'"),
        (lambda r: r["picture"]["embeddings"].append(5), "picture.embeddings is "),
    ],
)
def test_a_recipe_that_was_meddled_with_is_refused(change: Any, words: str) -> None:
    built = recipe.build(copy.deepcopy(WHOLE), copy.deepcopy(WHOLE_MADE))
    change(built)
    with pytest.raises(InputError, match=words) as caught:
        recipe.check(built, "a.png")
    assert "\n" not in str(caught.value)


@given(way=st.sampled_from(leaves(recipe.build(WHOLE, WHOLE_MADE))), value=JSON)
@settings(max_examples=200, deadline=None)
def test_a_hostile_recipe_is_refused_or_is_one(way: tuple[Any, ...], value: Any) -> None:
    bad = changed(recipe.build(WHOLE, WHOLE_MADE), way, value)
    if way[0] == "picture":
        bad["id"] = recipe.job_id(bad["picture"])
    with contextlib.suppress(InputError):
        recipe.check(bad, "a.png")


# ---- the line for other programs


def test_the_parameters_text() -> None:
    text = recipe.write_parameters(recipe.build(PICTURE, MADE))
    assert text.split("\n")[:2] == ["a red cube on grass", "Negative prompt: blurry"]
    assert text.split("\n")[2].startswith(
        "Steps: 20, Sampler: DDIM, CFG scale: 4, Seed: 7, Size: 768x512, Model hash: 0123456789, Model: embedded"
    )
    assert (
        'ControlNet 0: "Module: none, Model: depth, Weight: 0.8, Guidance Start: 0, Guidance End: 0.6' in text
    )
    found = recipe.parse_parameters(text)
    assert found["Prompt"] == "a red cube on grass"
    assert found["Negative prompt"] == "blurry"
    assert found["Clip skip"] == "2"
    assert found["Version"] == "rawdiff 0.1.0"
    assert found["ControlNet 0"].startswith("Module: none, Model: depth")


@pytest.mark.parametrize(
    "prompt", ["", "one\ntwo", "a, b: c", "Steps: many, all of them", 'say "x"', "é\u4e16"]
)
def test_parameters_give_the_prompt_back(prompt: str) -> None:
    built = recipe.build({**PICTURE, "prompt": prompt, "negative": ""}, MADE)
    found = recipe.parse_parameters(recipe.write_parameters(built))
    assert found.get("Prompt", "") == prompt
    assert found["Seed"] == "7"


def test_loras_stand_in_the_prompt_as_other_programs_type_them() -> None:
    found = recipe.parse_parameters(recipe.write_parameters(recipe.build(WHOLE, WHOLE_MADE)))
    assert found["Prompt"] == "a red cube on grass <lora:paper:0.8> <lora:a_b:-1>"
    assert found["TI hashes"] == f"<zorb>: {DIGEST[:12]}"
    assert (found["Negative prompt"], found["Seed"]) == ("blurry", "7")


def test_parameters_of_another_program() -> None:
    text = (
        "masterpiece, (best:1.2)\nNegative prompt: bad,\nworse\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 512x512, "
        'Lora hashes: "a: 1, b: 2", Version: v1.9'
    )
    found = recipe.parse_parameters(text)
    assert found["Prompt"] == "masterpiece, (best:1.2)"
    assert found["Negative prompt"] == "bad,\nworse"
    assert found["Sampler"] == "DPM++ 2M Karras"
    assert found["Lora hashes"] == "a: 1, b: 2"
    assert recipe.parse_parameters("just words") == {"Prompt": "just words"}


HOSTILE = ("a", "a ", "a:", 'a:"', 'a:"b,', 'a:"\\",', " ", "-,", "a: ")


@pytest.mark.parametrize("piece", HOSTILE)
def test_parameters_are_read_once(piece: str) -> None:
    """In a moment; where each place was read on from to the end it was half a day."""
    start = time.monotonic()
    recipe.parse_parameters(piece * (2**20 // len(piece)))
    assert time.monotonic() - start < 10.0


# ---- requests


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("depth=a.png", ControlRequest("depth", "a.png")),
        ("depth=a=b.png", ControlRequest("depth", "a=b.png")),
        ("depth=a.png@0.8", ControlRequest("depth", "a.png", 0.8)),
        ("depth=a.png@-1", ControlRequest("depth", "a.png", -1.0)),
        ("depth=a@b.png@.5,0.1-0.6", ControlRequest("depth", "a@b.png", 0.5, 0.1, 0.6)),
        ("canny=a,b.png@1,0-1", ControlRequest("canny", "a,b.png", 1.0, 0.0, 1.0)),
        ("depth=a@b.png", ControlRequest("depth", "a@b.png")),
    ],
)
def test_a_control_is_parsed(text: str, expected: ControlRequest) -> None:
    assert parse_control(text) == expected


def test_a_path_with_an_at_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png@0.5").touch()
    Path("b.png").touch()
    assert parse_control("depth=a.png@0.5") == ControlRequest("depth", "a.png@0.5")
    with pytest.raises(UsageError, match=r"'half' is no weight"):
        parse_control("depth=b.png@half")


@pytest.mark.parametrize(
    ("text", "words"),
    [("a.png", "expected KIND=PATH"), ("=a.png", "expected KIND=PATH"), ("depth=", "expected KIND=PATH")],
)
def test_a_control_without_kind_or_path_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_control(text)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "no prompt"),
        ({"prompt": "a\0b"}, "prompt: holds a NUL character at place 1"),
        ({"prompt": "a\ud800"}, "prompt: what stands at place 1 is no character"),
        ({"prompt": "a", "negative": "\udcff"}, "negative prompt: what stands at place 0"),
        ({"steps": 0}, "steps 0: expected a whole number from 1"),
        ({"steps": -3}, "steps -3: expected a whole number from 1"),
        ({"guidance": math.nan}, "guidance nan: expected a number from 0"),
        ({"guidance": math.inf}, "guidance inf: expected a number from 0"),
        ({"guidance": -1.0}, "guidance -1.0: expected a number from 0"),
        ({"rescale": 1.5}, "rescale 1.5: expected a number from 0 to 1"),
        ({"rescale": math.nan}, "rescale nan: expected a number from 0 to 1"),
        ({"eta": -0.1}, "eta -0.1: expected a number from 0 to 1"),
        ({"clip_skip": -1}, "clip skip -1: expected a whole number from 0"),
        ({"seed": -1}, "seed -1: expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed 4294967296: expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32 - 2, "count": 3}, "the last of 3 would be 4294967296, beyond 4294967295"),
        ({"count": 0}, "count 0: expected a whole number from 1"),
        ({"size": "63x64"}, "size 63x64 is not a multiple of 8: use 56x64 or 64x64"),
        ({"size": "64"}, "expected WIDTHxHEIGHT"),
        ({"size": "0x64"}, "each side must lie between 8 and 8192"),
        ({"size": "65536x64"}, "each side must lie between 8 and 8192"),
        ({"fit": "squash"}, "fit 'squash': expected crop, pad or stretch"),
        ({"steps": 5, "timesteps": "9,5"}, "steps and timesteps were given"),
        ({"timesteps": "9,x"}, "timesteps '9,x': expected numbers"),
        ({"timesteps": "9.5"}, "timesteps '9.5': expected numbers"),
        ({"sigmas": "nan"}, "sigmas 'nan': expected finite numbers"),
        ({"depth": ""}, "control depth: its path is empty"),
        ({"depth": "a\0"}, "control depth: its path holds a NUL"),
        ({"control": ["depth=a@nan"]}, "control depth: weight nan"),
        ({"control": ["depth=a@1,0.5-0.5"]}, "control depth: window 0.5-0.5"),
        ({"control": ["depth=a@1,0-1.5"]}, "control depth: window 0-1.5"),
        ({"control": ["../x=a"]}, "control '../x': expected a kind"),
        ({"control": ["none"], "depth": "a"}, "control none: drops every control"),
        ({"derive": ["normal"]}, "derive normal: give the map to make it from"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(said: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        request_from_words({"prompt": "a cube", **said} if said else said).check()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.fixed_dictionaries(
        {"prompt": st.text(max_size=20)},
        optional={
            "size": st.text("0123456789x", max_size=8),
            "seed": st.integers(-5, 2**33),
            "count": st.integers(-1, 5),
            "steps": st.integers(-1, 10**5),
            "guidance": st.floats(),
            "rescale": st.floats(),
            "eta": st.floats(),
            "timesteps": st.text("0123456789,.-e", max_size=8),
            "control": st.lists(st.text(max_size=20), max_size=3),
            "depth": st.text(max_size=5),
            "derive": st.lists(st.sampled_from(["normal", "canny", ""]), max_size=2),
        },
    )
)
@settings(max_examples=200, deadline=None)
def test_any_words_are_a_request_or_one_of_our_errors(words: dict[str, Any]) -> None:
    with contextlib.suppress(UsageError):
        request = request_from_words(words).check()
        assert 0 <= (request.seed or 0) < 2**32
        assert request.steps is None or request.steps >= 1


def test_numbers_are_parsed() -> None:
    assert parse_numbers("timesteps", "999, 500,1", whole=True) == (999, 500, 1)
    assert parse_numbers("sigmas", "14.6,0.5,0") == (14.6, 0.5, 0.0)


def test_a_request_laid_over_another() -> None:
    depth = ControlRequest("depth", "a.png", 0.8, 0.0, 0.6, False, DIGEST)
    normal = ControlRequest("normal", "n.png", 1.0, 0.0, 1.0, False, DIGEST)
    base = Request(prompt="a cube", seed=7, steps=20, guidance=4.0, controls=(depth, normal))
    over = request_from_words({"depth": "b.png", "guidance": 0.0, "seed": 0})
    merged = base.merged(over)
    assert (merged.prompt, merged.seed, merged.guidance, merged.steps) == ("a cube", 0, 0.0, 20)
    assert merged.controls == (ControlRequest("depth", "b.png", 0.8, 0.0, 0.6, False, None), normal)
    assert base.merged(request_from_words({"control": ["none"]})).controls == ()
    assert base.merged(Request()) == base
    assert base.merged(Request(timesteps=(9, 5))).check().steps is None


def test_derive_names_the_map_or_takes_the_depth_map() -> None:
    words = {"prompt": "", "depth": "d.png", "canny": "photo.jpg", "derive": ["canny", "normal"]}
    depth, canny, normal = request_from_words(words).check().resolved()
    assert (depth.derive, canny.derive, normal.derive) == (None, True, True)
    assert (canny.path, normal.path) == ("photo.jpg", "d.png")
