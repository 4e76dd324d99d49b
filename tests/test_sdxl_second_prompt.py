"""A second prompt, for SDXL's second text encoder: equal to diffusers', in recipes, saved runs; refused elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rawdiff import Model, Run, images
from rawdiff.errors import UsageError
from tests.cli_run import pixels, rawdiff
from tests.reference import check, error, hint, load, matters, reference, silent
from tests.small_models import TEXT_WIDTH, small_folder, small_scheduler
from tests.small_runs import CALL, called
from tests.small_sdxl import SECOND_WIDTH, small_sdxl

PROMPT, OTHER = "a red cube on grass", "the blue sphere"
QUICK = ("--steps", "2", "--size", "48x64", "--seed", "3")
FIRST, SECOND = slice(TEXT_WIDTH), slice(TEXT_WIDTH, TEXT_WIDTH + SECOND_WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sdxl(tmp_path_factory.mktemp("model") / "sdxl")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(folder))
    return tmp_path


def diffused(model: Model, prompt: Any = PROMPT, **call: Any) -> Any:
    return reference(model, small_scheduler(), prompt, **{**CALL, **call})


def context(run: Run) -> Any:
    [found] = run.conditions.contexts
    return found


# Against diffusers.


def test_a_second_prompt(model: Model) -> None:
    run = check(called(model, prompt_2=OTHER), diffused(model, prompt_2=OTHER))
    matters(run, called(model))
    matters(run, called(model, OTHER))
    matters(run, called(model, OTHER, prompt_2=PROMPT))
    plain, own = context(called(model)), context(called(model, prompt_2=OTHER))
    assert torch.equal(own.cond[..., FIRST], plain.cond[..., FIRST])
    assert error(own.cond[..., SECOND], plain.cond[..., SECOND]) > 1e-3
    assert error(own.cond_pooled, plain.cond_pooled) > 1e-3


def test_both_for_each_picture(model: Model) -> None:
    prompts, seconds = [PROMPT, OTHER], ["grass and sand", PROMPT]
    negatives, negatives_2 = ["a sphere", "red"], ["blue", "the cube"]
    call = {
        "seeds": [3, 4],
        "prompt_2": seconds,
        "negative_prompt": negatives,
        "negative_prompt_2": negatives_2,
    }
    options: dict[str, Any] = {"seed": [3, 4], "prompt_2": seconds, "negative": negatives}
    run = check(
        called(model, prompts, negative_2=negatives_2, clip_skip=1, **options),
        diffused(model, prompts, clip_skip=1, **call),
    )
    matters(run, called(model, prompts, clip_skip=1, **options))
    matters(run, called(model, prompts, negative_2=negatives_2[::-1], clip_skip=1, **options))


def test_beginning_from_a_picture(model: Model) -> None:
    image = hint((64, 64), 1)
    call = {"image": image, "strength": 0.6, "size": (64, 64), "num_inference_steps": 6}
    options = {"image": image, "strength": 0.6, "size": (64, 64), "steps": 6}
    run = check(called(model, prompt_2=OTHER, **options), diffused(model, prompt_2=OTHER, **call))
    matters(run, called(model, **options))


def test_a_second_negative_prompt_alone(model: Model) -> None:
    """diffusers drops it for zeros unless the first is an empty text; here it is read, and the first is that text."""
    theirs = diffused(model, negative_prompt="", negative_prompt_2=OTHER)
    run = check(called(model, negative_2=OTHER), theirs)
    matters(run, called(model))
    matters(run, called(model, negative=OTHER))
    assert not context(called(model)).uncond.any()


def test_an_empty_one_is_the_first(model: Model) -> None:
    plain = context(called(model, negative="blue"))
    same = context(called(model, negative="blue", prompt_2="", negative_2=""))
    assert torch.equal(same.cond, plain.cond)
    assert torch.equal(same.uncond, plain.uncond)
    mixed = called(model, [PROMPT, "sand"], seed=[3, 4], prompt_2=["", OTHER])
    alone = [called(model), called(model, "sand", prompt_2=OTHER)]
    for k, one in enumerate(alone):
        assert error(context(mixed).cond[k : k + 1], context(one).cond) <= 1e-5
    assert mixed.recipe["prompt_2"] == ["", OTHER]
    assert "prompt_2" not in called(model, prompt_2=PROMPT).recipe  # the same text is none
    assert "negative_2" not in mixed.recipe


# In A1111's syntax.


def test_each_is_read_by_itself_in_chunks(model: Model) -> None:
    options = {"syntax": "a1111"}
    run = context(called(model, "a red", prompt_2="a (blue:1.4) BREAK cube", **options))
    assert run.cond.shape == (1, 154, TEXT_WIDTH + SECOND_WIDTH)
    first, empty = (context(called(model, text, **options)).cond for text in ("a red", " "))
    second = context(called(model, "a (blue:1.4) BREAK cube", **options))
    assert error(run.cond[..., FIRST], torch.cat([first, empty], dim=1)[..., FIRST]) <= 1e-6
    assert error(run.cond[..., SECOND], second.cond[..., SECOND]) <= 1e-6
    assert error(run.cond_pooled, second.cond_pooled) <= 1e-6


def test_it_may_change_in_mid_run(model: Model, tmp_path: Path) -> None:
    options: dict[str, Any] = {"syntax": "a1111", "prompt_2": "a [red:blue:0.5] cube"}
    run = called(model, "sand", **{**options, "sampler": "ddim"})
    assert [row.context for row in run.plan.rows] == [0, 0, 1, 1]
    before, after = run.conditions.contexts
    assert torch.equal(before.cond[..., FIRST], after.cond[..., FIRST])
    assert error(before.cond[..., SECOND], after.cond[..., SECOND]) > 1e-3
    next(run)
    saved = run.save(tmp_path / "half.run")
    list(run)
    resumed = model.resume(saved, say=silent)
    list(resumed)
    assert torch.equal(resumed.latents, run.latents)


# From the command line.


def test_a_recipe_makes_it_again(here: Path) -> None:
    words = ("gen", "-p", PROMPT, *QUICK, "--prompt-2", OTHER, "--negative-2", "blue")
    [planned] = rawdiff(*words, "--dry-run", "--json").ok().lines
    [first] = rawdiff(*words).ok().lines
    found = images.read_recipe(first)
    assert (found["picture"]["prompt_2"], found["picture"]["negative_2"]) == (OTHER, "blue")
    assert json.loads(planned)["id"] == found["id"]
    [again] = rawdiff("gen", "--from", first).ok().lines
    assert images.read_recipe(again)["id"] == found["id"]
    assert np.array_equal(pixels(again), pixels(first))
    told = [line.split(maxsplit=2) for line in rawdiff("info", first).ok().lines]
    assert ["prompt", "2", OTHER] in told
    assert ["negative", "2", "blue"] in told
    with Image.open(first) as picture:
        text = picture.text["parameters"]  # type: ignore[attr-defined]
    assert f"Prompt 2: {OTHER}, Negative prompt 2: blue" in text
    [plain] = rawdiff("gen", "-p", PROMPT, *QUICK).ok().lines
    assert not np.array_equal(pixels(plain), pixels(first))
    [dropped] = rawdiff("gen", "--from", first, "--prompt-2", "", "--negative-2", "").ok().lines
    assert images.read_recipe(dropped)["id"] == images.read_recipe(plain)["id"]
    [same] = rawdiff("gen", "--from", first, "-p", OTHER, "--negative-2", "").ok().lines
    assert "prompt_2" not in images.read_recipe(same)["picture"]


def test_a_line_of_a_batch(here: Path) -> None:
    line = {"prompt": PROMPT, "prompt_2": OTHER, "negative-2": "blue", "size": "48x64", "steps": 2, "seed": 3}
    (here / "m.jsonl").write_text(json.dumps(line))
    [drawn] = rawdiff("batch", "m.jsonl", "--out", "b").ok().lines
    [own] = rawdiff("gen", "-p", PROMPT, *QUICK, "--prompt-2", OTHER, "--negative-2", "blue").ok().lines
    assert images.read_recipe(drawn)["id"] == images.read_recipe(own)["id"]
    assert np.array_equal(pixels(drawn), pixels(own))


# Refused, and told.


@pytest.mark.parametrize(("name", "words"), [("prompt_2", "prompt 2"), ("negative_2", "negative 2")])
def test_a_model_with_one_text_encoder(tmp_path: Path, name: str, words: str) -> None:
    sd1 = small_folder(tmp_path / "sd1", nets=())
    expected = f"{words}: this model has one text encoder, only SDXL has two: leave it out"
    with pytest.raises(UsageError, match=expected):
        load(sd1).prepare(PROMPT, **{name: OTHER}, say=silent)
    option = f"--{name.replace('_', '-')}"
    said = rawdiff("gen", "-p", PROMPT, *QUICK, "--model", sd1, option, OTHER, "--dry-run")
    assert said.code == 2
    assert said.error == f"error: {expected}"
    rawdiff("gen", "-p", PROMPT, *QUICK, "--model", sd1, option, "", "--dry-run").ok()


def test_what_makes_no_sense(model: Model, here: Path) -> None:
    with pytest.raises(UsageError, match=r"prompt 2 5: expected text, or a list of texts"):
        called(model, prompt_2=5)
    with pytest.raises(UsageError, match=r"negative prompt 2: 3 given for 2 images; expected 1 or 2"):
        called(model, [PROMPT, OTHER], seed=[3, 4], negative_2=["a", "b", "c"])
    with pytest.raises(UsageError, match="the second prompt asks for a LoRA"):
        called(model, prompt_2="a <lora:paper:1>", syntax="a1111")
    said = rawdiff("gen", "-p", "a", "--prompt-2", "<lora:paper:1>", "--prompt-syntax", "a1111")
    assert (said.code, "move it to the prompt" in said.error) == (2, True)


def test_what_is_cut_and_has_no_effect_is_told(model: Model) -> None:
    said: list[str] = []
    called(model, prompt_2="cube " * 80, guidance=1.0, negative_2="blue", say=said.append)
    assert [line.split(";")[0] for line in said] == [
        "the negative prompt has no effect: guidance is off", "prompt of 82 tokens cut to 77",
    ]  # fmt: skip
    said.clear()
    called(model, "cube " * 80, say=said.append)
    assert len(said) == 1  # for both text encoders
    called(model, prompt_2="a (red:1.3) cube", say=said.append)
    assert "'(red:1.3)' in the prompt is read as plain text" in said[-1]
