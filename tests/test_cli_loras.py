"""`--lora` and `--embedding`: from the command line, in batches, in recipes, and made again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import rawdiff as package
from rawdiff import Exact, images, recipe
from rawdiff.errors import UsageError
from rawdiff.jobs.extras import EmbeddingRequest, LoraRequest
from rawdiff.jobs.request import Request
from rawdiff.jobs.words import parse_embedding, parse_lora, request_from_words
from tests.cli_run import pixels, rawdiff
from tests.lora_files import kohya, random_changes, small_networks, write
from tests.reference import silent
from tests.small_models import TEXT_WIDTH, small_folder, small_text_encoder, small_unet

QUICK = ("gen", "-p", "a <zorb> cube", "--steps", "2", "--size", "64x64", "--seed", "3")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files for the small model: two LoRAs, an embedding, and a LoRA for another model."""
    folder = tmp_path_factory.mktemp("files")
    nets = {"unet": small_unet(0), "text_encoder": small_text_encoder(20)}
    for seed, name in enumerate(("style", "other")):
        write(folder / f"{name}.safetensors", kohya(random_changes(nets, seed)))
    foreign = random_changes(small_networks(shape="deep"))
    write(folder / "foreign.safetensors", kohya(foreign))
    held = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    save_file({"<zorb>": held}, folder / "zorb.safetensors")
    save_file({"<zorb>": held[:, :8].contiguous()}, folder / "narrow.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Path:
    folder = small_folder(tmp_path_factory.mktemp("model") / "own", nets=())
    (folder / "loras").mkdir()
    (folder / "loras" / "paper.safetensors").write_bytes(files["style.safetensors"])
    table = json.loads((folder / "rawdiff.json").read_text())
    (folder / "rawdiff.json").write_text(json.dumps({**table, "loras": {"paper": "loras/paper.safetensors"}}))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path, files: dict[str, bytes]) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(own))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


# --------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", LoraRequest("a.safetensors")),
        ("a.safetensors@0.8", LoraRequest("a.safetensors", 0.8)),
        ("paper@-.5", LoraRequest("paper", -0.5)),
        ("dir/a@b.safetensors@1e-1", LoraRequest("dir/a@b.safetensors", 0.1)),
        ("a@b.safetensors", LoraRequest("a@b.safetensors")),
        ("taken@0.5", LoraRequest("taken@0.5")),
    ],
)
def test_a_lora_is_parsed(text: str, expected: LoraRequest) -> None:
    assert parse_lora(text, lambda name: name == "taken@0.5") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.pt", EmbeddingRequest("a.pt")),
        ("a.pt=zorb", EmbeddingRequest("a.pt", "zorb")),
        ("a=b.pt=<zorb>", EmbeddingRequest("a=b.pt", "<zorb>")),
        ("taken=b.pt", EmbeddingRequest("taken=b.pt")),
    ],
)
def test_an_embedding_is_parsed(text: str, expected: EmbeddingRequest) -> None:
    assert parse_embedding(text, lambda name: name == "taken=b.pt") == expected


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"lora": ["paper@much"]}, "'much' is no scale, such as 0.8"),
        ({"lora": ["a.safetensors@nan"]}, "lora a.safetensors: scale nan; expected a finite number"),
        ({"lora": [""]}, "lora: its path is empty"),
        ({"lora": ["a\0b"]}, "holds a NUL character"),
        ({"lora": ["none", "a.safetensors"]}, "lora none: drops every one"),
        ({"embedding": ["a.pt="]}, "expected PATH[=TRIGGER]"),
        ({"embedding": ["=zorb"]}, "expected PATH[=TRIGGER]"),
        ({"embedding": [""]}, "embedding: its path is empty"),
        ({"embedding": ["none", "none"]}, "embedding none: drops every one"),
        ({"lora": ["a.safetensors"] * 65}, "loras: 65 of them, expected at most 64"),
        ({"embedding": ["a.pt"] * 65}, "embeddings: 65 of them, expected at most 64"),
        ({"control": ["depth=a.png"] * 65}, "controls: 65 of them, expected at most 64"),
    ],
)
def test_what_makes_no_sense(said: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        request_from_words({"prompt": "x", **said}).check()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_those_given_take_the_place_of_all() -> None:
    base = Request("x", loras=(LoraRequest("a.safetensors"),), repeats=("kv",))
    assert base.merged(Request()).loras == base.loras
    assert base.merged(request_from_words({"lora": ["paper"]})).loras == (LoraRequest("paper"),)
    assert base.merged(request_from_words({"lora": ["none"]})).loras == ()
    assert base.merged(Request()).repeats == ("kv",)


# ------------------------------------------------------------------------------------------ pictures


def test_drawn_shown_and_made_again(here: Path) -> None:
    plain = rawdiff(*QUICK).ok()
    assert not {"loras", "embeddings", "repeats"} & images.read_recipe(plain.lines[0])["picture"].keys()
    words = ("--lora", "paper@0.7", "--lora", "./other.safetensors@-0.25", "--embedding", "zorb.safetensors")
    first = rawdiff(*QUICK, *words).ok()
    assert "lora paper 0.7, lora ./other.safetensors -0.25, seed 3" in first.err
    path = first.lines[0]
    found = recipe.read(path)
    assert [one["scale"] for one in found["picture"]["loras"]] == [0.7, -0.25]
    assert found["made"]["loras"] == ["paper", "./other.safetensors"]
    assert found["picture"]["embeddings"][0]["trigger"] == "<zorb>"
    parameters = recipe.parse_parameters(images.read_text(path)["parameters"])
    assert parameters["Prompt"] == "a <zorb> cube <lora:paper:0.7> <lora:other:-0.25>"
    assert parameters["TI hashes"] == f"<zorb>: {found['picture']['embeddings'][0]['sha256'][:12]}"
    for fewer in (words[:4], words[2:], (*words[:2], *words[4:])):  # each of them matters
        other = rawdiff(*QUICK, *fewer).ok()
        assert np.abs(pixels(other.lines[0]).astype(int) - pixels(path)).max() > 8
    shown = rawdiff("info", path).ok().out
    assert "paper (the model's own), scale 0.7" in shown
    assert "./other.safetensors (the same), scale -0.25" in shown
    assert "zorb.safetensors (the same), for <zorb>" in shown
    again = rawdiff("gen", "--from", path).ok()
    assert images.read_recipe(again.lines[0]) == images.read_recipe(path)
    bare = rawdiff("gen", "--from", path, "--lora", "none", "--embedding", "none").ok()
    assert "not the same as" in bare.err
    assert images.read_recipe(bare.lines[0])["id"] == images.read_recipe(plain.lines[0])["id"]
    changed = rawdiff("gen", "--from", path, "--lora", "paper@0.7").ok()
    assert "in loras" in changed.err
    dry = rawdiff("gen", "--from", path, "--dry-run").ok()
    assert "lora paper, scale 0.7" in dry.lines
    assert "embedding zorb.safetensors for <zorb>, 2 vectors" in dry.lines


def test_files_that_a_recipe_names(
    here: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    words = ("--lora", "style.safetensors", "--embedding", "zorb.safetensors=kubist", "-p", "kubist")
    path = here / rawdiff(*QUICK, *words, "-o", "sub/p.png").ok().lines[0]
    for name, what in (("style.safetensors", "lora"), ("zorb.safetensors", "embedding")):
        (here / name).write_bytes(files["other.safetensors"])
        done = rawdiff("gen", "--from", path)
        assert (done.code, done.out) == (4, "")
        assert f"{name}: is not the recipe's {what} (its SHA-256 must begin with" in done.error
        assert f"{name} (changed)" in rawdiff("info", path).ok().out
        (here / name).unlink()
        done = rawdiff("gen", "--from", path)
        assert (done.code, done.out) == (4, "")
        assert f"{name}: the recipe's {what} is not there" in done.error
        assert f"name another with --{what} PATH" in done.error
        (path.parent / name).write_bytes(files[name])  # beside the picture is as good
    again = rawdiff("gen", "--from", path).ok()
    assert images.read_recipe(again.lines[0]) == images.read_recipe(path)


def test_the_config_beside_a_file_counts(here: Path) -> None:
    nets = {"unet": small_unet(0), "text_encoder": small_text_encoder(20)}
    held = {
        f"base_model.model.{name}.lora_{letter}.weight": value
        for (part, name), change in random_changes(nets).items()
        if part == "unet"
        for letter, value in (("A", change.down), ("B", change.up))
    }
    write(here / "adapter_model.safetensors", held)
    config = here / "adapter_config.json"
    config.write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    path = rawdiff(*QUICK, "--lora", "adapter_model.safetensors").ok().lines[0]
    rawdiff("gen", "--from", path).ok()
    config.write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    done = rawdiff("gen", "--from", path)
    assert done.code == 4
    assert (
        "the adapter_config.json beside it is not the one that the recipe's LoRA was read with" in done.error
    )


def test_python_and_the_command_line_tell_the_same(here: Path, own: Path) -> None:
    words = ("--lora", "paper@0.7", "--embedding", "zorb.safetensors")
    drawn = rawdiff(*QUICK, *words, "--model", own).ok().lines[0]
    model = package.load(own, device="cpu")
    options: dict[str, Any] = {"loras": [("paper", 0.7)], "embeddings": ["zorb.safetensors"], "say": silent}
    run = model.prepare("a <zorb> cube", size=(64, 64), steps=2, seed=3, **options)
    list(run)
    path = run.save_image("mine.png")
    assert images.read_recipe(path) == images.read_recipe(drawn)
    assert images.read_text(path)["parameters"] == images.read_text(drawn)["parameters"]


def test_repeated_work_is_in_the_recipe(here: Path, own: Path) -> None:
    """It shows in the last bits, and so `--from` does the same."""
    model = package.load(own, device="cpu")
    options: dict[str, Any] = {"size": (64, 64), "steps": 2, "seed": 3, "say": silent}
    run = model.prepare("a cube", exact=Exact(kv=False, prefix=False), **options)
    list(run)
    path = run.save_image("mine.png")
    assert images.read_recipe(path)["picture"]["repeats"] == ["kv", "prefix"]
    again = rawdiff("gen", "--from", path).ok()
    assert images.read_recipe(again.lines[0]) == images.read_recipe(path)
    assert re.search(r"^ +repeats +kv, prefix$", rawdiff("info", path).ok().out, re.MULTILINE)
    with pytest.raises(UsageError, match="expected an Exact"):
        model.prepare("a cube", exact="kv", **options)  # type: ignore[arg-type]


def test_a_batch(here: Path) -> None:
    (here / "list").mkdir()
    (here / "list" / "style.safetensors").write_bytes((here / "style.safetensors").read_bytes())
    lines: list[dict[str, Any]] = [
        {"prompt": "a cube", "lora": ["paper@0.5"]},
        {"prompt": "a cube", "lora": "style.safetensors@0.5"},
        {"prompt": "a cube"},
        {"prompt": "a cube", "lora": ["missing.safetensors"]},
    ]
    lines = [
        {"seed": 3, "steps": 2, "size": "64x64", **line, "out": f"{k}.png"} for k, line in enumerate(lines)
    ]
    manifest = here / "list" / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    done = rawdiff("batch", manifest, "-o", "out")
    assert done.code == 7
    assert "line 4: " in done.err
    assert "missing.safetensors: no such file" in done.err
    drawn = [pixels(here / "out" / f"{k}.png") for k in range(3)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert "3 already there" in rawdiff("batch", manifest, "-o", "out").err
    alone = rawdiff("gen", "-p", "a cube", "--seed", "3", "--steps", "2", "--size", "64x64").ok()
    assert np.array_equal(pixels(alone.lines[0]), drawn[2])  # what was on before leaves no trace
    manifest.write_text(json.dumps({"prompt": "a cube", "lora": ["../style.safetensors"]}))
    assert "leads out of the manifest's folder" in rawdiff("batch", manifest, "-o", "out").error


def test_doctor_looks_at_those_of_the_model(here: Path, own: Path, tmp_path: Path) -> None:
    assert re.search(r"loras/paper.safetensors +[0-9a-f]{64}", rawdiff("doctor").ok().out)
    copied = tmp_path / "copied"
    shutil.copytree(own, copied)
    shutil.copy(here / "foreign.safetensors", copied / "loras" / "paper.safetensors")
    done = rawdiff("doctor", "--model", copied)
    assert done.code == 4
    assert re.search(r"FAULT +--model +.*layers are not in this model", done.out)


def test_what_is_wrong_is_told_before_weights_are_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rawdiff.jobs.workshop.load", lambda *_, **__: pytest.fail("weights were loaded"))
    (here / "cut.safetensors").write_bytes((here / "style.safetensors").read_bytes()[:-8])
    cases = [
        ("--lora", "papr@0.5", 2, "lora 'papr': this model brings none of that name (it has paper)"),
        ("--lora", "gone.safetensors", 4, "gone.safetensors: no such file or directory"),
        ("--lora", "style.safetensors@inf", 2, "scale inf; expected a finite number"),
        ("--lora", "zorb.safetensors", 4, "is a textual-inversion embedding ('<zorb>'); expected a LoRA"),
        ("--lora", "foreign.safetensors", 4, "layers are not in this model"),
        ("--lora", "cut.safetensors", 4, "cut.safetensors: "),
        ("--embedding", "zurb", 2, "embedding 'zurb': this model brings none of that name (it has none)"),
        ("--embedding", "gone.pt", 4, "gone.pt: no such file or directory"),
        ("--embedding", "style.safetensors", 4, "tensors ("),
        ("--embedding", "narrow.safetensors", 4, "its vectors have width 8, expected 32"),
        ("--embedding", "zorb.safetensors=cube", 2, "its trigger 'cube' is a word of this model already"),
    ]
    for option, value, code, said in cases:
        done = rawdiff(*QUICK, option, value)
        assert (done.code, done.out) == (code, ""), (value, done.err)
        assert said in done.error
    assert not (here / "output_images").exists()
