"""`rawdiff prompt`, and `--prompt-syntax` from the command line to the recipe and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rawdiff import images
from rawdiff.weights.single import FAMILIES
from tests.cli_run import pixels, rawdiff
from tests.lora_files import kohya, random_changes, write
from tests.small_models import small_folder, small_text_encoder, small_unet

EMBEDDED = ("--model", str(FAMILIES.parent / "solids"), "--size", "128x128")
QUICK = ("--steps", "2", "--size", "64x64", "--seed", "3")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that brings a LoRA."""
    folder = small_folder(tmp_path_factory.mktemp("model") / "own", nets=())
    nets = {"unet": small_unet(0), "text_encoder": small_text_encoder(20)}
    (folder / "loras").mkdir()
    write(folder / "loras" / "paper.safetensors", kohya(random_changes(nets, 0)))
    table = json.loads((folder / "rawdiff.json").read_text())
    (folder / "rawdiff.json").write_text(json.dumps({**table, "loras": {"paper": "loras/paper.safetensors"}}))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(own))
    return tmp_path


def drawn(prompt: str, *words: str) -> str:
    [path] = rawdiff("gen", "-p", prompt, *QUICK, *words).ok().lines
    return path


A1111 = ("--prompt-syntax", "a1111")


def test_a_prompt_is_shown() -> None:
    text = "a (red:1.3) cube [on:grass:0.5] BREAK blue <lora:paper:0.8>"
    said = rawdiff("prompt", text, *A1111, "--steps", "10").ok().lines
    assert said[0] == "lora paper, scale 0.8"
    assert [line for line in said if not line.startswith(" ")][1:] == [
        "steps 0 to 4 of 10: a (red:1.3) cube on BREAK blue", "chunk 1: 4 of 75 tokens", "chunk 2: 1 of 75 tokens",
        "steps 5 to 9 of 10: a (red:1.3) cube grass BREAK blue", "chunk 1: 4 of 75 tokens", "chunk 2: 1 of 75 tokens",
    ]  # fmt: skip
    assert said[3].split() == ["id", "weight", "token"]
    assert said[5].split()[1:] == ["1.3", "red</w>"]
    found = json.loads(rawdiff("prompt", text, *A1111, "--json").ok().out)
    assert found["texts"][1]["from_step"] == 10
    first = found["texts"][0]["chunks"][0]
    assert first["tokens"] == ["a</w>", "red</w>", "cube</w>", "on</w>"]
    assert first["weights"] == [1.0, 1.3, 1.0, 1.0]
    assert found["loras"] == [{"name": "paper", "scale": 0.8}]


def test_what_is_cut_is_shown() -> None:
    said = rawdiff("prompt", "red " * 75 + "blue cube").ok().lines
    assert said[0] == "chunk 1: 75 of 75 tokens"
    assert said[-1] == "cut: blue cube"
    whole = rawdiff("prompt", "red " * 75 + "blue cube", *A1111).ok().lines
    assert [line for line in whole if line.startswith("c")] == [
        "chunk 1: 75 of 75 tokens", "chunk 2: 2 of 75 tokens",
    ]  # fmt: skip
    assert "--prompt-syntax a1111 reads it otherwise" in rawdiff("prompt", "a (red:1.3) cube").ok().out


def test_a_lora_that_is_not_there_is_noted() -> None:
    """A run is refused; the prompt is shown all the same."""
    said = rawdiff("prompt", "a cube <lora:clay:1> <lora:paper:0.5>", *A1111).ok()
    line = "lora 'clay': this model brings none of that name (it has paper), and a run refuses it"
    assert said.lines[-1] == f"{line}; a file is given by --lora PATH@scale"
    assert said.lines[:2] == ["lora clay, scale 1", "lora paper, scale 0.5"]
    known = rawdiff("prompt", "a cube <lora:paper:0.5>", *A1111, "--json").ok().out
    assert json.loads(known)["notes"] == []
    assert rawdiff("gen", "-p", "a <lora:clay:1>", *QUICK, *A1111, "--dry-run").code == 2


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a ((red) cube", "the bracket of '((red) cube' is never closed: it weighs everything to the end"),
        ("a red) cube", "the bracket of 'a red)' closes nothing: it is read as text"),
        ("a red:1.2) cube", "the bracket of 'a red:1.2)' closes nothing: it is read as text"),
        (
            "[red:blue:0.5 cube",
            "the bracket of '[red:blue:0.5 cube' is never closed: it weighs everything to the end",
        ),
        ("a] (b [c", "the bracket of 'a]' closes nothing: it is read as text (and 2 others)"),
        (r"a (red) \( [on:grass:1] (b:1.2)", None),
        ("a cube AND (a cone:1.2)", "AND is read as a word: it joins no prompts here"),
        ("a cube and a cone, SAND", None),
    ],
)
def test_what_was_hardly_meant_so(prompt: str, note: str | None) -> None:
    """As they are read without a word elsewhere; here by `prompt` and by a run on one line."""
    expected = [] if note is None else [note]
    assert json.loads(rawdiff("prompt", prompt, *A1111, "--json").ok().out)["notes"] == expected
    told = rawdiff("gen", "-p", prompt, *QUICK, *A1111).ok().err.splitlines()
    assert [line for line in told if "bracket" in line or "AND" in line] == expected
    assert "bracket" not in rawdiff("prompt", prompt).ok().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["-p", "red " * 80 + "blue cube"],
            "prompt of 84 tokens cut to 77; left out: 'red red red red red blue cube'",
        ),
        (["-p", "a", "-n", "blue", "-g", "1"], "the negative prompt has no effect: guidance is off"),
        (["-p", "a", "-g", "1", "--guidance-end", "0.5"], "guidance end has no effect: guidance is off"),
        (["-p", "a (cube:1.2)"], "'(cube:1.2)' in the prompt is read as plain text"),
        (["-p", "a cube", "--embedding", "pylon", *EMBEDDED], "the embedding 'pylon' has no effect"),
        (
            ["-p", "pylon " + "red " * 78 + "blue cube", "--embedding", "pylon", *EMBEDDED],
            "prompt of 84 tokens cut to 77; left out: 'red red red red red blue cube'",
        ),
        (
            ["-p", "red " * 74 + "pylon cube and a pylon on grass", "--embedding", "pylon", *EMBEDDED],
            "prompt of 85 tokens cut to 77; left out: 'pylon cube and a pylon on grass'",
        ),
        (["-p", "a pylon", "-n", "blue", "--embedding", "pylon", *EMBEDDED], None),
    ],
)
def test_a_dry_run_tells_what_a_run_tells(words: list[str], line: str | None) -> None:
    planned = rawdiff("gen", *QUICK, *words, "--dry-run").ok().err.splitlines()
    told = rawdiff("gen", *QUICK, *words).ok().err.splitlines()
    assert [one.startswith(line or "") for one in planned] == [True] * (line is not None)
    assert set(planned) <= set(told)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["prompt", "a", "--prompt-syntax", "comfy"], "expected plain or a1111"),
        (["prompt", "a", "--steps", "0"], "steps 0: expected a whole number"),
        (["prompt", "a <lora::1>", *A1111], "is no name of a LoRA"),
        (["gen", "-p", "a", "--prompt-syntax", "comfy"], "expected plain or a1111"),
        (["gen", "-p", "a <lora:clay:1>", *A1111], "this model brings none of that name (it has paper)"),
        (["gen", "-p", "a", "-n", "<lora:paper:1>", *A1111], "move it to the prompt"),
    ],
)
def test_refused(here: Path, words: list[str], error: str) -> None:
    done = rawdiff(*words)
    assert done.code == 2
    assert error in done.error
    assert not list(here.glob("output_images/*.png"))


def test_a_tag_is_the_option() -> None:
    tagged = drawn("a red cube <lora:paper:0.8>", *A1111)
    given = drawn("a red cube", "--lora", "paper@0.8", *A1111)
    recipes = [images.read_recipe(path) for path in (tagged, given)]
    assert recipes[0]["picture"] == recipes[1]["picture"]
    assert recipes[0]["id"] == recipes[1]["id"]
    assert recipes[0]["picture"]["prompt"] == "a red cube"
    assert np.array_equal(pixels(tagged), pixels(given))
    assert not np.array_equal(pixels(tagged), pixels(drawn("a red cube", *A1111)))
    with Image.open(tagged) as picture:
        assert picture.text["parameters"].startswith("a red cube <lora:paper:0.8>\n")  # type: ignore[attr-defined]
    again = rawdiff("gen", "--from", tagged, "-p", "a blue cube <lora:paper:0.5>").ok().lines[0]
    assert images.read_recipe(again)["picture"]["loras"][0]["scale"] == 0.5


def test_tags_of_a_plain_prompt_are_read_when_it_is_made_again() -> None:
    plain = drawn("a red cube <lora:paper:0.8>")
    done = rawdiff("gen", "--from", plain, *A1111).ok()
    assert "not the same as" in done.err
    picture = images.read_recipe(done.lines[0])["picture"]
    assert picture == images.read_recipe(drawn("a red cube <lora:paper:0.8>", *A1111))["picture"]
    assert (picture["prompt"], picture["loras"][0]["scale"]) == ("a red cube", 0.8)


def test_the_syntax_is_in_the_recipe_and_made_again(here: Path) -> None:
    prompt = "a (red:1.5) cube [on:grass:1]"
    path = drawn(prompt, *A1111)
    assert images.read_recipe(path)["picture"]["syntax"] == "a1111"
    assert "prompt syntax" in rawdiff("info", path).ok().out
    [again] = rawdiff("gen", "--from", path).ok().lines
    assert np.array_equal(pixels(again), pixels(path))
    [plain] = rawdiff("gen", "--from", path, "--prompt-syntax", "plain").ok().lines
    assert not np.array_equal(pixels(plain), pixels(path))
    assert images.read_recipe(plain)["picture"] == images.read_recipe(drawn(prompt))["picture"]
    line = {"prompt": prompt, "prompt_syntax": "a1111", "size": "64x64", "steps": 2, "seed": 3}
    (here / "lines.jsonl").write_text(json.dumps(line))
    [batch] = rawdiff("batch", "lines.jsonl", "--out", "others").ok().lines
    assert images.read_recipe(batch)["id"] == images.read_recipe(path)["id"]
    assert np.array_equal(pixels(batch), pixels(path))
