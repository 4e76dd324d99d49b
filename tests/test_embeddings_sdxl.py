"""Textual inversion for SDXL: equal to diffusers' own loading into both text encoders; what does not fit is refused."""

from __future__ import annotations

import copy
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rawdiff import Model, Run, images
from rawdiff.errors import WeightsError
from rawdiff.weights import read_embedding
from tests.cli_run import pixels, rawdiff
from tests.reference import check, error, load, matters, reference
from tests.small_models import TEXT_WIDTH, small_folder, small_scheduler
from tests.small_runs import CALL, called
from tests.small_sdxl import SECOND_WIDTH, small_sdxl

PROMPT = "a red zorb on grass"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sdxl(tmp_path_factory.mktemp("model") / "sdxl")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def vectors(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"clip_l": TEXT_WIDTH, "clip_g": SECOND_WIDTH}
    return {name: 0.5 * torch.randn(count, width, generator=generator) for name, width in widths.items()}


def written(path: Path, held: dict[str, Tensor]) -> Path:
    save_file(held, path)
    return path


def prepared(model: Model, prompt: Any, *embeddings: Any, **options: Any) -> Run:
    return called(model, prompt, embeddings=embeddings, **options)


def with_inversion(model: Model, **words: dict[str, Tensor]) -> Model:
    """A model of its own, changed by diffusers: each tensor into the text encoder that it is for."""
    from diffusers import StableDiffusionXLPipeline

    other = copy.copy(model)
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        setattr(other, name, copy.deepcopy(getattr(model, name)))
    pipeline = StableDiffusionXLPipeline(
        vae=other.vae, unet=other.unet, scheduler=small_scheduler(), add_watermarker=False,
        text_encoder=other.text_encoder, text_encoder_2=other.text_encoder_2,
        tokenizer=other.tokenizer, tokenizer_2=other.tokenizer_2,
    )  # fmt: skip
    for word, held in words.items():
        for name, number in (("clip_l", ""), ("clip_g", "_2")):
            place = {part: getattr(other, part + number) for part in ("text_encoder", "tokenizer")}
            pipeline.load_textual_inversion(held[name], token=word, **place)
    return other


@pytest.mark.parametrize("count", [1, 3])
def test_against_diffusers(model: Model, tmp_path: Path, count: int) -> None:
    held = vectors(count)
    path = written(tmp_path / "zorb.safetensors", held)
    theirs = reference(with_inversion(model, zorb=held), small_scheduler(), PROMPT, **CALL)
    run = check(prepared(model, PROMPT, path), theirs)
    matters(run, prepared(model, PROMPT))
    for name, other in vectors(count, 1).items():  # each encoder's own vectors count
        changed = written(tmp_path / f"{name}.safetensors", {**held, name: other})
        matters(run, prepared(model, PROMPT, (changed, "zorb")))


def test_several_in_both_prompts_of_a_batch(model: Model, tmp_path: Path) -> None:
    first, second = vectors(2), vectors(1, 1)
    paths = [written(tmp_path / f"{k}.safetensors", held) for k, held in enumerate((first, second))]
    given = [(paths[0], "zorb"), (paths[1], "kubist")]
    prompts, negatives = ["a zorb on kubist", "kubist,zorb the blue sphere zorb"], ["kubist", "zorb"]
    call = {**CALL, "seeds": [3, 4], "negative_prompt": negatives, "clip_skip": 1}
    other = with_inversion(model, zorb=first, kubist=second)
    theirs = reference(other, small_scheduler(), prompts, **call)
    options: dict[str, Any] = {"seed": [3, 4], "negative": negatives, "clip_skip": 1}
    run = check(prepared(model, prompts, *given, **options), theirs)
    matters(run, prepared(model, prompts, given[0], **options))
    matters(run, prepared(model, prompts, given[1], **options))


def test_in_chunks_and_with_weights(model: Model, tmp_path: Path) -> None:
    path = written(tmp_path / "zorb.safetensors", vectors(3))
    run = prepared(model, "red " * 74 + "(zorb:1.3) blue", path, syntax="a1111")
    cond = run.conditions.contexts[0].cond
    assert cond.shape == (1, 154, TEXT_WIDTH + SECOND_WIDTH)
    plain = prepared(model, "red " * 74 + "zorb blue", path, syntax="a1111").conditions.contexts[0].cond
    for columns in (slice(TEXT_WIDTH), slice(TEXT_WIDTH, None)):
        assert error(cond[:, 77:, columns], plain[:, 77:, columns]) > 1e-3
        assert torch.equal(cond[:, :77, columns], plain[:, :77, columns])


def test_the_command_and_its_recipe(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(folder))
    path = written(tmp_path / "zorb.safetensors", vectors(2))
    words = ("gen", "-p", PROMPT, "--steps", "2", "--size", "48x64", "--seed", "3")
    planned = rawdiff(*words, "--embedding", path, "--dry-run").ok()
    assert f"embedding {path} for zorb, 2 vectors" in planned.lines
    first = rawdiff(*words, "--embedding", path).ok().lines[0]
    digest = sha256(path.read_bytes()).hexdigest()
    assert images.read_recipe(first)["picture"]["embeddings"] == [{"sha256": digest, "trigger": "zorb"}]
    again = rawdiff("gen", "--from", first).ok().lines[0]
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(rawdiff(*words).ok().lines[0]))
    told = rawdiff(*words, "-p", "a cube", "--embedding", path).ok()
    assert "the embedding 'zorb' has no effect: no prompt has this word, as it is read" in told.err


def test_one_for_another_family(model: Model, folder: Path, tmp_path: Path) -> None:
    """On one line, from Python and from the command line before a weight is read."""
    single = written(tmp_path / "word.safetensors", {"emb_params": vectors(1)["clip_l"]})
    words = rf"its vectors of width {TEXT_WIDTH} are for one text encoder, and this model has two \(SDXL\): expected"
    with pytest.raises(WeightsError, match=words):
        prepared(model, "a word", single)
    said = rawdiff("gen", "-p", "x", "--model", folder, "--embedding", single, "--dry-run")
    assert said.code == 4
    assert "expected a file with clip_l and clip_g" in said.error
    wide = written(tmp_path / "wide.safetensors", {**vectors(1), "clip_g": torch.randn(1, TEXT_WIDTH)})
    with pytest.raises(WeightsError, match=rf"clip_g has width {TEXT_WIDTH}, expected {SECOND_WIDTH}, as"):
        prepared(model, "a wide", wide)
    sd1 = small_folder(tmp_path / "sd1", nets=())
    both = written(tmp_path / "both.safetensors", vectors(1))
    with pytest.raises(
        WeightsError, match=r"made for a model with two text encoders \(SDXL\), and this model has one"
    ):
        prepared(load(sd1), "a both", both)
    said = rawdiff("gen", "-p", "x", "--model", sd1, "--embedding", both, "--dry-run")
    assert said.code == 4
    assert f"expected vectors of width {TEXT_WIDTH} alone" in said.error


@pytest.mark.parametrize("form", ["safetensors", "pickle", "one vector"])
def test_layouts(tmp_path: Path, form: str) -> None:
    held = vectors(1 if form == "one vector" else 3)
    path = tmp_path / "zorb.pt"
    if form == "pickle":
        torch.save(held, path)
    else:
        save_file(
            {name: tensor[0] if form == "one vector" else tensor for name, tensor in held.items()}, path
        )
    found = read_embedding(path)
    assert found.trigger == "zorb"
    assert torch.equal(found.vectors, held["clip_l"])
    assert found.vectors_2 is not None
    assert torch.equal(found.vectors_2, held["clip_g"])
