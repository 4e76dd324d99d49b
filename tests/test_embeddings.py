"""Textual inversion: equal to diffusers' own loading of it, nothing of the model changed, files read strictly."""

from __future__ import annotations

import copy
import json
import os
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from rawdiff import Model, Run
from rawdiff.errors import UsageError, WeightsError
from rawdiff.prompts import tokenize
from rawdiff.weights import read_embedding
from tests.lora_files import same, state
from tests.reference import END, check, error, load, matters, reference, silent
from tests.small_models import TEXT_WIDTH, small_folder, small_scheduler
from tests.small_runs import CALL, called
from tests.test_weights_files import mutate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_folder(tmp_path_factory.mktemp("model") / "small", nets=()))


def vectors(count: int, seed: int = 0, width: int = TEXT_WIDTH) -> Tensor:
    return 0.5 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def diffusers_file(path: Path, word: str, held: Tensor) -> Path:
    save_file({word: held.contiguous()}, path)
    return path


def prepared(model: Model, prompt: Any, *embeddings: Any, **options: Any) -> Run:
    return called(model, prompt, embeddings=embeddings, **options)


def with_inversion(model: Model, *files: tuple[Path, str | None]) -> Model:
    """A model of its own, changed by diffusers."""
    from diffusers import StableDiffusionPipeline

    other = copy.copy(model)
    other.text_encoder, other.tokenizer = copy.deepcopy(model.text_encoder), copy.deepcopy(model.tokenizer)
    pipeline = StableDiffusionPipeline(
        vae=other.vae, text_encoder=other.text_encoder, tokenizer=other.tokenizer, unet=other.unet,
        scheduler=small_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for path, token in files:
        pipeline.load_textual_inversion(str(path.parent), weight_name=path.name, token=token)
    return other


# ------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("count", [1, 3])
def test_against_diffusers(model: Model, tmp_path: Path, count: int) -> None:
    path = diffusers_file(tmp_path / "zorb.safetensors", "<zorb>", vectors(count))
    prompt = "a red <zorb> on grass"
    theirs = reference(with_inversion(model, (path, None)), small_scheduler(), prompt, **CALL)
    run = check(prepared(model, prompt, path), theirs)
    matters(run, prepared(model, prompt))
    other = diffusers_file(tmp_path / "other.safetensors", "<zorb>", vectors(count, 1))
    matters(run, prepared(model, prompt, other))
    if count > 1:
        matters(run, prepared(model, prompt, diffusers_file(path, "<zorb>", vectors(count)[:-1])))


def test_several_in_both_prompts_of_a_batch(model: Model, tmp_path: Path) -> None:
    first = diffusers_file(tmp_path / "a.safetensors", "<zorb>", vectors(2))
    second = diffusers_file(tmp_path / "b.safetensors", "<style>", vectors(1, 1)[0])
    prompts = ["a <zorb> on <style>", "<style>,<zorb> the blue sphere <zorb>"]
    negatives = ["<style>", ""]
    call = {**CALL, "seeds": [3, 4], "negative_prompt": negatives, "clip_skip": 1}
    other = with_inversion(model, (first, None), (second, "kubist"))
    prompts = [prompt.replace("<style>", "kubist") for prompt in prompts]
    theirs = reference(other, small_scheduler(), prompts, **{**call, "negative_prompt": ["kubist", ""]})
    options: dict[str, Any] = {"seed": [3, 4], "negative": ["kubist", ""], "clip_skip": 1}
    run = check(prepared(model, prompts, first, (second, "kubist"), **options), theirs)
    matters(run, prepared(model, prompts, first, **options))
    matters(run, prepared(model, prompts, (second, "kubist"), **options))
    matters(run, prepared(model, prompts, first, (second, "kubist"), **{**options, "negative": ""}))


def test_what_is_cut_is_cut_as_by_diffusers(model: Model, tmp_path: Path) -> None:
    """The end of a long prompt, in the middle of a word's vectors."""
    path = diffusers_file(tmp_path / "a.safetensors", "<zorb>", vectors(5))
    prompt = "cube " * 72 + "<zorb> red"
    other = with_inversion(model, (path, None))
    theirs = reference(other, small_scheduler(), prompt, **CALL)
    said: list[str] = []
    run = check(prepared(model, prompt, path, say=said.append), theirs)
    matters(run, prepared(model, "cube " * 72, path))
    assert [line.split(";")[0] for line in said] == ["prompt of 80 tokens cut to 77"]


def test_tokens_are_those_of_the_tokenizer(model: Model) -> None:
    """Without embeddings: cut and padded as the tokenizer itself does it."""
    prompts = ["", "a red cube", "grass " * 75, "grass " * 76, "blue sphere " * 60]
    options = {"max_length": 77, "truncation": True, "padding": "max_length"}
    expected = [model.tokenizer(prompt, **options).input_ids for prompt in prompts]
    assert tokenize(model.readers()[0].vocabulary, prompts, 77, silent).tolist() == expected


def test_the_model_stays_as_it_is(model: Model, tmp_path: Path) -> None:
    path = diffusers_file(tmp_path / "a.safetensors", "<zorb>", vectors(3))
    before, words = state({"text": model.text_encoder}), len(model.tokenizer)
    plain = prepared(model, "a <zorb>")
    list(prepared(model, "a <zorb>", path))
    assert same(state({"text": model.text_encoder}), before)
    assert len(model.tokenizer) == words
    list(plain)
    again = prepared(model, "a <zorb>")
    list(again)
    assert torch.equal(again.latents, plain.latents)


def test_a_trigger_is_found_whatever_its_case(model: Model, tmp_path: Path) -> None:
    """diffusers finds its first vector alone."""
    path = diffusers_file(tmp_path / "a.safetensors", "ZorbStyle", vectors(3))
    ends = []
    for prompt in ("a ZorbStyle", "a zorbstyle"):
        run = prepared(model, prompt, path)
        list(run)
        ends.append(run.latents)
    assert torch.equal(*ends)
    alone = prepared(model, "a zorbstyle", diffusers_file(path, "ZorbStyle", vectors(3)[:1]))
    list(alone)
    assert error(alone.latents, ends[0]) >= 100 * END


def test_a_word_that_no_prompt_has_is_told(model: Model, tmp_path: Path) -> None:
    path = diffusers_file(tmp_path / "a.safetensors", "<zorb>", vectors(2))
    said: list[str] = []
    prepared(model, "a cube", path, say=said.append)
    line = "the embedding '<zorb>' has no effect: no prompt has this word, as it is read"
    assert said == [line]
    said.clear()
    prepared(model, "a cube", path, negative="a <ZORB>", say=said.append)
    assert said == []
    prepared(model, "a cube", path, negative="a <ZORB>", guidance=1.0, say=said.append)
    assert said[0] == line
    said.clear()
    prepared(model, "cube " * 80 + "<zorb>", path, say=said.append)  # cut
    assert said[0] == line
    said.clear()
    prepared(model, "a (<zorb>:1.2)", path, syntax="a1111", say=said.append)
    assert said == []
    prepared(
        model, "a (zeb) on grass", (path, "(zeb)"), syntax="a1111", say=said.append
    )  # brackets, not letters
    assert said == ["the embedding '(zeb)' has no effect: no prompt has this word, as it is read"]


def test_the_account_and_a_resumed_run(model: Model, tmp_path: Path) -> None:
    path = diffusers_file(tmp_path / "a.safetensors", "<zorb>", vectors(2))
    run = prepared(model, "a <zorb>", (path, "kubist"), sampler="unipc")
    digest = sha256(path.read_bytes()).hexdigest()
    assert run.recipe["embeddings"] == [{"name": str(path), "sha256": digest, "trigger": "kubist"}]
    next(run)
    saved = run.save(tmp_path / "half.run")
    path.unlink()  # its words are tensors by now
    again = model.resume(saved, say=silent)
    list(again)
    list(run)
    assert torch.equal(again.latents, run.latents)


def test_a_name_of_the_models_own(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "model", nets=())
    (folder / "words").mkdir()
    path = diffusers_file(folder / "words" / "zorb.safetensors", "<zorb>", vectors(2))
    table = json.loads((folder / "rawdiff.json").read_text())
    table["embeddings"] = {"zorb": "words/zorb.safetensors"}
    (folder / "rawdiff.json").write_text(json.dumps(table))
    own = load(folder)
    ends = []
    for one in ("zorb", path):
        run = prepared(own, "a <zorb>", one)
        list(run)
        ends.append(run.latents)
    assert torch.equal(*ends)
    with pytest.raises(UsageError, match=r"embedding 'zurb': this model brings none .* \(it has zorb\)"):
        prepared(own, "a <zorb>", "zurb")


# --------------------------------------------------------------------------------------------- layouts


def a1111(held: Tensor, **changes: Any) -> dict[str, Any]:
    param = {"string_to_token": {"*": 265}, "string_to_param": {"*": held}, "name": "kubist", "step": 500}
    return {**param, "sd_checkpoint": None, "sd_checkpoint_name": None, **changes}


LAYOUTS: dict[str, tuple[str, Callable[[Path, Tensor], Any], str]] = {
    "diffusers": ("x.safetensors", lambda path, held: save_file({"<zorb>": held}, path), "<zorb>"),
    "diffusers, pickled": ("learned_embeds.bin", lambda path, held: torch.save({"<zorb>": held}, path), "<zorb>"),
    "a1111": ("x.pt", lambda path, held: torch.save(a1111(held), path), "kubist"),
    "a1111, no name": ("zorb.pt", lambda path, held: torch.save(a1111(held, name=None), path), "zorb"),
    "a1111, safetensors": ("zorb.safetensors", lambda path, held: save_file({"emb_params": held}, path), "zorb"),
    "the first": (
        "x.pt",
        lambda path, held: torch.save(
            {
                "string_to_token": {"*": torch.tensor(265)},
                "string_to_param": nn.ParameterDict({"*": nn.Parameter(held)}),
                "name": "kubist",
            },
            path,
        ),
        "kubist",
    ),
    "a tensor": ("zorb.pt", lambda path, held: torch.save(held, path), "zorb"),
    "an old pickle": (
        "x.pt",
        lambda path, held: torch.save(a1111(held), path, _use_new_zipfile_serialization=False),
        "kubist",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layouts(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    name, write, word = LAYOUTS[layout]
    held = vectors(4).to(dtype)
    write(tmp_path / name, held)
    found = read_embedding(tmp_path / name)
    assert found.trigger == word
    assert found.vectors.dtype == dtype
    assert torch.equal(found.vectors, held)
    assert not found.vectors.requires_grad
    assert found.sha256 == sha256((tmp_path / name).read_bytes()).hexdigest()
    assert read_embedding(tmp_path / name, "other").trigger == "other"
    write(tmp_path / name, held[0].clone())
    assert torch.equal(read_embedding(tmp_path / name).vectors, held[:1])


# ---------------------------------------------------------------------------------------------- refused


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def packed(path: Path, method: int = zipfile.ZIP_STORED, times: int = 1) -> None:
    """A pickle's archive anew, each record listed so many times."""
    torch.save(vectors(200), path)
    records = {name: zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
        archive.filelist *= times


def nan(held: Tensor) -> Tensor:
    held[1, 2] = float("nan")
    return held


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: path.unlink(missing_ok=True), "no such file or directory"),
    "empty": (lambda path: path.write_bytes(b""), "is an empty file"),
    "a page": (lambda path: path.write_bytes(b"<!doctype html>"), "is a web page"),
    "text": (lambda path: path.write_bytes(b'{"a": 1}'), "is a JSON text; expected a textual-inversion"),
    "a folder": (lambda path: path.mkdir(), "not a regular file"),
    "large": (lambda path: (path.touch(), os.truncate(path, 2**27)), "has 128 MiB; expected a textual-inversion"),
    "several": (lambda path: save_file({"a": vectors(1), "b": vectors(1)}, path), r"holds 2 tensors \('a', 'b'\)"),
    "none": (lambda path: torch.save({}, path), "holds 0 tensors; expected the one"),
    "half of sdxl's": (
        lambda path: save_file({"clip_g": vectors(1)}, path),
        r"holds clip_g alone, expected both clip_l and clip_g \(SDXL\)",
    ),
    "unequal halves": (
        lambda path: save_file({"clip_l": vectors(2), "clip_g": vectors(3)}, path),
        "has clip_l 2 and clip_g 3 vectors, expected as many for both text encoders",
    ),
    "nan in one half": (
        lambda path: save_file({"clip_l": vectors(2), "clip_g": nan(vectors(2))}, path),
        "'clip_g' holds NaN",
    ),
    "nan": (lambda path: save_file({"<a>": nan(vectors(3))}, path), "'<a>' holds NaN; the file is damaged"),
    "inf": (lambda path: save_file({"<a>": vectors(3) / 0}, path), "'<a>' holds Inf; the file is damaged"),
    "integers": (lambda path: save_file({"<a>": torch.ones(2, 3).int()}, path), "'<a>' has dtype I32, expected"),
    "integers, pickled": (lambda path: torch.save(torch.ones(2, 3).int(), path), "has dtype int32, expected a flo"),
    "shape": (lambda path: save_file({"<a>": torch.ones(1, 2, 3)}, path), r"has shape \(1, 2, 3\), expected one v"),
    "no vector": (lambda path: save_file({"<a>": torch.ones(0, 3)}, path), r"has shape \(0, 3\), expected one"),
    "sparse": (lambda path: torch.save(torch.eye(3).to_sparse(), path), "is not a plain dense tensor|not a readable"),
    "numbers": (lambda path: torch.save([1, 2], path), "holds a list, expected a textual-inversion embedding"),
    "other things": (lambda path: torch.save({"a": [1]}, path), "holds other things than tensors"),
    "params": (lambda path: torch.save({"string_to_param": 5}, path), "holds other things than tensors"),
    "code": (lambda path: torch.save({"a": Bomb(path.with_name("ran"))}, path), "not a readable PyTorch file"),
    "one number for ever": (
        lambda path: torch.save({"a": torch.zeros(1).expand(20_000_000, 768)}, path),
        r"claims 61440000000 bytes with strides \(0, 0\), expected a dense one of at most 67108864",
    ),
    "the same in an old pickle": (
        lambda path: torch.save(
            {"a": torch.zeros(1).expand(2, 768)}, path, _use_new_zipfile_serialization=False
        ),
        r"claims 6144 bytes with strides \(0, 0\), expected a dense one",
    ),
    "turned": (lambda path: torch.save(torch.ones(3, 2).t(), path), r"with strides \(1, 2\), expected a dense one"),
    "compressed": (lambda path: packed(path, zipfile.ZIP_DEFLATED), "record '.*data.pkl' is compressed"),
    "twice the same bytes": (lambda path: packed(path, times=2), "its records have more bytes than the file"),
    "another name": (
        lambda path: torch.save({"a": vectors(1), "b": Counter()}, path),
        "it calls for 'collections Counter', and no code from a file is run",
    ),
    "word": (lambda path: save_file({" a\n": vectors(1)}, path), r"names its own trigger ' a\\n': expected a word"),
    "long word": (lambda path: save_file({"a" * 101: vectors(1)}, path), r"names its own trigger .* give one, as P"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_embedding(tmp_path: Path, case: str) -> None:
    write, words = REFUSED[case]
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(WeightsError, match=words) as caught:
        read_embedding(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("word", ["", " a", "a\n", "a\0", "a\ud800", "x" * 101, 5])
def test_what_is_no_trigger(tmp_path: Path, word: Any) -> None:
    path = diffusers_file(tmp_path / "a.safetensors", "<zorb>", vectors(1))
    with pytest.raises(UsageError, match=r"^trigger"):
        read_embedding(path, word)


def test_what_does_not_fit_the_model(model: Model, tmp_path: Path) -> None:
    wide = diffusers_file(tmp_path / "wide.safetensors", "<zorb>", vectors(1, width=48))
    with pytest.raises(
        WeightsError, match=r"its vectors have width 48, expected 32, as this model's text has"
    ):
        prepared(model, "a <zorb>", wide)
    many = diffusers_file(tmp_path / "many.safetensors", "<zorb>", vectors(76))
    with pytest.raises(WeightsError, match=r"has 76 vectors, expected at most 75: a prompt holds no more"):
        prepared(model, "a <zorb>", many)
    one = diffusers_file(tmp_path / "one.safetensors", "<zorb>", vectors(1))
    two = diffusers_file(tmp_path / "two.safetensors", "<zorb>", vectors(2))
    for word in ("cub", "cube", "Cube", "a", "<|endoftext|>"):
        with pytest.raises(
            UsageError, match=r"its trigger '.+' is a word of this model already: choose another"
        ):
            prepared(model, "a <zorb>", (one, word))
    for pair in ([one, one], [one, (two, "<ZORB>")], [(one, "zorb_1"), (two, "zorb")]):
        with pytest.raises(UsageError, match=r"its trigger '.+' is a word of .*one\.safetensors already"):
            prepared(model, "a <zorb>", *pair)
    for wrong in ("x.pt", [5], [("x.pt",)]):
        with pytest.raises(UsageError, match=r"^embeddings"):
            model.prepare("a", embeddings=wrong, say=silent)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("good") / "x.pt"
    torch.save(a1111(vectors(2)), path)
    return [save({"<zorb>": vectors(2)}), path.read_bytes()]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(0, 1))
def test_mutated_files(tmp_path: Path, good: list[bytes], seed: int, kind: int) -> None:
    """An error of ours on one line, or a valid embedding; nothing else."""
    path = tmp_path / "x.pt"
    path.write_bytes(mutate(random.Random(seed), good[kind], len(good[kind])))
    said = ""
    try:
        found = read_embedding(path)
        assert bool(found.vectors.isfinite().all())
    except WeightsError as error:
        said = str(error)
    assert "\n" not in said
